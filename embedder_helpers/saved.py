"""Saved embedders: a folder that gives the same embeddings in another process, or another's hands.

    embedder.json       what it is: keys, presets with their fingerprints, classes, checksums, and
                        what it scored, where a run left it
    roberta/            a Keras preset of RoBERTa as it was trained, tokenizer included
    joint.safetensors   what stands before and behind it: standardisation, projection, head
    gemma/              on request, a Keras preset of the cut Gemma; else it is loaded by its name

No pickle, and nothing of the run's own settings: what only trained or scored it is left out.
"""

import dataclasses
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from keras import ops

from embedder_helpers import platform
from embedder_helpers.config import Experiment, InputError, cutoffs, make_experiment
from embedder_helpers.embedder import Embedder, build_embedder
from embedder_helpers.head import Head
from embedder_helpers.presets import find_preset, load_preset
from embedder_helpers.result import Result

FORMAT = 1  # raised when a folder's content changes
KEYS = (
    "kind", "llm_preset", "llm_layers", "layer_pooling", "final_norm", "fusion", "projection",
    "projection_start", "slm_preset", "pooling", "max_tokens",
)  # fmt: skip
JOINT = ("standardise", "layer_pooling", "projection")  # layers that RoBERTa's preset has not


def save(
    embedder: Embedder,
    folder: str | Path,
    with_gemma: bool = False,
    result: Result | None = None,
) -> Path:
    """Saves an embedder; a folder that is there already is replaced once the new one is whole.

    Costs the bytes of RoBERTa's weights in float32, and with Gemma those of its cut blocks and
    embedding table.

    Args:
        embedder: trained or not.
        folder: to save in.
        with_gemma: save the cut Gemma too; its licence goes with it.
        result: what the embedder scored, to save beside it.

    Raises:
        InputError: the folder cannot be written.
    """
    folder = Path(folder)
    platform.writable_folder(folder.parent)
    part = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", suffix=".part", dir=folder.parent))
    try:
        _write(embedder, part, with_gemma, result)
        if folder.exists():
            folder.replace(part.with_suffix(".old"))
        part.replace(folder)
    except OSError as error:
        raise InputError(f"the embedder cannot be saved in {folder} ({error.strerror})") from None
    finally:
        for left in (part, part.with_suffix(".old")):
            shutil.rmtree(left, ignore_errors=True)
    return folder


def _write(embedder: Embedder, folder: Path, with_gemma: bool, result: Result | None) -> None:
    from safetensors.numpy import save_file

    folder.chmod(0o755)  # a temporary folder is its owner's alone
    experiment = _resolved(embedder)
    if embedder.roberta:
        _write_preset(folder / "roberta", embedder.roberta, embedder.tokenizer)
    if embedder.gemma and with_gemma:
        _write_gemma(embedder, folder / "gemma")
    arrays = {one.path: ops.convert_to_numpy(one) for one in _joint(embedder)}
    if embedder.head:
        arrays |= {"head/kernel": embedder.head.kernel, "head/bias": embedder.head.bias}
    arrays = {name: np.array(value, order="C") for name, value in arrays.items()}  # not views
    save_file(arrays, folder / "joint.safetensors")
    told = {
        "format": FORMAT,
        "experiment": {key: experiment.as_dict()[key] for key in KEYS},
        "presets": {
            role: {"name": one.name, "fingerprint": one.fingerprint}
            for role, one in embedder.presets.items()
        },
        "classes": embedder.head.classes.tolist() if embedder.head else None,
        "width": embedder.width,
        "versions": platform.versions(),
        "result": dataclasses.asdict(result) if result else None,
        "files": {name: _checksum(path) for name, path in _files(folder)},
    }
    told["revision"] = hashlib.sha256(json.dumps(told["files"]).encode()).hexdigest()[:8]
    text = json.dumps(told, indent=1, ensure_ascii=False) + "\n"
    (folder / "embedder.json").write_text(text, encoding="utf-8")


def _resolved(embedder: Embedder) -> Experiment:
    """The Experiment with its cutoffs counted from the bottom, so that it holds for a cut Gemma."""
    experiment = embedder.experiment
    keys = {**experiment.as_dict(), "projection_start": experiment.start()}
    if embedder.gemma:
        blocks = embedder.presets["llm_preset"].blocks
        found = cutoffs(experiment.llm_layers, blocks)
        keys["llm_layers"] = found if len(found) > 1 else found[0]
        if experiment.final_norm == "last" and found[-1] < blocks:
            keys["final_norm"] = "none"
    return make_experiment(keys)


def _write_preset(folder: Path, backbone: Any, tokenizer: Any) -> None:
    backbone.save_to_preset(str(folder))
    tokenizer.save_to_preset(str(folder))


def _write_gemma(embedder: Embedder, folder: Path) -> None:
    """Gemma up to the deepest cutoff, in float32."""
    import keras_hub

    backbone = load_preset(
        keras_hub.models.Backbone,
        "llm_preset",
        embedder.gemma.preset,
        num_layers=max(depth.cutoff for depth in embedder.depths),
        dtype="float32",
    )
    _write_preset(folder, backbone, embedder.gemma.tokenizer)


def _joint(embedder: Embedder) -> list[Any]:
    """The variables of the layers that stand between Gemma and RoBERTa."""
    return [one for one in embedder.model.variables if one.path.split("/")[0].startswith(JOINT)]


def load(folder: str | Path, llm_preset: str | None = None) -> Embedder:
    """The embedder in a folder: on the same machine it gives the same embeddings bit for bit.

    Args:
        folder: that `save` wrote.
        llm_preset: where its Gemma is, if not in the folder, nor where it was found when saved.

    Raises:
        InputError: not a whole saved embedder, or Gemma cannot be had, or is another one.
    """
    folder = Path(folder)
    told = read_saved(folder)
    keys = dict(told["experiment"])
    if (folder / "roberta").is_dir():
        keys["slm_preset"] = str(folder / "roberta")
    inside = (folder / "gemma").is_dir()
    if keys["kind"] != "roberta_only":
        keys["llm_preset"] = str(folder / "gemma") if inside else llm_preset or keys["llm_preset"]
        if not inside:
            _check_gemma(folder, keys["llm_preset"], told["presets"]["llm_preset"]["fingerprint"])
    embedder = build_embedder(make_experiment(keys, where=str(folder / "embedder.json")))
    _fill(embedder, folder, told["classes"])
    return embedder


def read_saved(folder: Path) -> dict[str, Any]:
    """What `embedder.json` in a folder tells; every file that it names is there and whole.

    Raises:
        InputError: it is not, or was saved by a later version.
    """
    path = folder / "embedder.json"
    if not path.is_file():
        raise InputError(
            f"{folder} holds no saved embedder: give a folder that `save_embedder: true` left, "
            "which has a file embedder.json"
        )
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        form, files = told["format"], told["files"]
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{path} is damaged: save the embedder again") from None
    if form != FORMAT:
        version = told.get("versions", {}).get("embedder_helpers")
        raise InputError(f"{folder} was saved by version {version} of this package: update it")
    for name, checksum in files.items():
        if not (folder / name).is_file() or _checksum(folder / name) != checksum:
            raise InputError(f"{folder}: {name} is missing or damaged: copy the whole folder again")
    return told


def _check_gemma(folder: Path, name: str, wanted: str) -> None:
    """Raises InputError where Gemma is another one than the embedder was made with.

    A handle's fingerprint is its version, a folder's its content: one cannot vouch for the other.
    """
    try:
        found = find_preset("llm_preset", name).fingerprint
    except InputError as error:
        raise InputError(
            f"the embedder in {folder} needs the Gemma it was made with ({error}); tell where it "
            "is: load(folder, llm_preset=…), or --llm"
        ) from None
    if found != wanted and ("@" in found) == ("@" in wanted):
        raise InputError(
            f"{name!r} is not the Gemma that the embedder in {folder} was made with: "
            "tell where that is with load(folder, llm_preset=…), or --llm"
        )


def _fill(embedder: Embedder, folder: Path, classes: list | None) -> None:
    """Gives an embedder the weights and the head in `joint.safetensors`."""
    from safetensors.numpy import load_file

    arrays = load_file(folder / "joint.safetensors")
    for variable in _joint(embedder):
        variable.assign(arrays[variable.path])
    if classes is not None:
        embedder.head = Head(arrays["head/kernel"], arrays["head/bias"], np.array(classes))


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield path.relative_to(folder).as_posix(), path


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
