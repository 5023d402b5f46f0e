"""Saved embedders: a folder that gives the same embeddings in another process, or another's hands.

    embedder.json       what it is: keys, presets with their fingerprints, classes, checksums, and
                        what it scored, where a run left it
    roberta/            a Keras preset of RoBERTa as it was trained, tokenizer included
    joint.safetensors   what stands before and behind it: standardisation, projection, head
    gemma/              on request, a Keras preset of the cut Gemma; else it is loaded by its name

No pickle. Of the settings of its run only the result tells; nothing of them is needed to load it.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from keras import ops
from safetensors.numpy import load_file

from embedder_helpers import platform
from embedder_helpers.config import Experiment, InputError, cutoffs, make_experiment
from embedder_helpers.embedder import Embedder, build_embedder
from embedder_helpers.head import Head
from embedder_helpers.presets import (
    BUILTIN,
    ROLES,
    Preset,
    file_digest,
    find_preset,
    load_preset,
)
from embedder_helpers.result import Result

FORMAT = 1  # raised when a folder's content changes
KEYS = (
    "kind", "llm_preset", "llm_layers", "layer_pooling", "final_norm", "fusion", "projection",
    "projection_start", "slm_preset", "pooling", "max_tokens",
)  # fmt: skip
KEPT = ("name", "fingerprint", "width")  # of a preset
JOINT = ("standardise", "layer_pooling", "projection")  # layers that RoBERTa's preset has not


def save(
    embedder: Embedder,
    folder: str | Path,
    with_gemma: bool = False,
    result: Result | None = None,
) -> Path:
    """Saves an embedder; an embedder that is there already is replaced once the new one is whole.

    Costs the bytes of RoBERTa's weights in float32, and with Gemma those of its cut blocks and
    embedding table.

    Args:
        embedder: trained or not.
        folder: to save in.
        with_gemma: save the cut Gemma too; its licence goes with it. One that came with the
            embedder is saved in any case.
        result: what the embedder scored, to save beside it.

    Raises:
        InputError: the folder cannot be written, or holds something else.
    """
    folder = Path(folder).resolve()
    platform.writable_folder(folder.parent, "another folder to save in")
    _check_replaceable(folder)
    _take_back(folder)
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # of a process that died
    try:
        part.mkdir()
        _write(embedder, part, with_gemma, result)
        if folder.exists():
            folder.replace(_old(folder))
        part.replace(folder)
    except OSError as error:  # h5py's text is a page
        reason = os.strerror(error.errno) if error.errno else type(error).__name__
        raise InputError(f"the embedder cannot be saved in {folder} ({reason})") from None
    finally:
        _take_back(folder)
        for left in (part, _old(folder)):
            shutil.rmtree(left, ignore_errors=True)
    return folder


def _check_replaceable(folder: Path) -> None:
    if folder.is_dir() and ((folder / "embedder.json").is_file() or not any(folder.iterdir())):
        return
    if folder.exists():
        raise InputError(f"{folder} holds something else: give a new folder to save in")


def _old(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def _take_back(folder: Path) -> None:
    """Gives an embedder its name back, if replacing it ended between its two renames."""
    if _old(folder).is_dir() and not folder.exists():
        _old(folder).replace(folder)


def _write(embedder: Embedder, folder: Path, with_gemma: bool, result: Result | None) -> None:
    experiment = _resolved(embedder)
    if embedder.roberta:
        _write_preset(folder / "roberta", embedder.roberta, embedder.tokenizer)
    if embedder.gemma and (with_gemma or _came_with(embedder)):
        _write_gemma(embedder, folder / "gemma")
    arrays = {one.path: ops.convert_to_numpy(one) for one in _joint(embedder)}
    if embedder.head:
        arrays |= {"head/kernel": embedder.head.kernel, "head/bias": embedder.head.bias}
    arrays = {name: np.array(value, order="C") for name, value in arrays.items()}  # not views
    (folder / "joint.safetensors").write_bytes(safetensors.numpy.save(arrays))
    result = result or embedder.result
    told = {
        "format": FORMAT,
        "experiment": {key: experiment.as_dict()[key] for key in KEYS},
        "presets": {
            role: {key: getattr(one, key) for key in KEPT} for role, one in embedder.presets.items()
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
    """The Experiment as it holds for a cut Gemma and in another folder.

    Cutoffs count from the bottom, and a folder's path from the root.
    """
    experiment = embedder.experiment
    keys = {**experiment.as_dict(), "projection_start": experiment.start()}
    for role, preset in embedder.presets.items():
        local = preset.name not in BUILTIN and Path(preset.name).is_dir()
        keys[role] = str(Path(preset.name).resolve()) if local else preset.name
    if embedder.gemma:
        blocks = embedder.presets["llm_preset"].blocks
        found = cutoffs(experiment.llm_layers, blocks)
        keys["llm_layers"] = found if len(found) > 1 else found[0]
        if experiment.final_norm == "last" and found[-1] < blocks:
            keys["final_norm"] = "none"
    return make_experiment(keys)


def _came_with(embedder: Embedder) -> bool:
    """Whether the embedder was loaded with its Gemma inside."""
    return (Path(embedder.gemma.preset.handle).parent / "embedder.json").is_file()


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


def load(
    folder: str | Path, llm_preset: str | None = None, stream_blocks: bool = False
) -> Embedder:
    """The embedder in a folder: on the same machine it gives the same embeddings bit for bit.

    Args:
        folder: that `save` wrote.
        llm_preset: where its Gemma is, if not in the folder, nor where it was found when saved.
        stream_blocks: keep one Gemma block at a time in memory.

    Raises:
        InputError: not a whole saved embedder, or Gemma cannot be had, or is another one.
    """
    folder = Path(folder).resolve()
    _take_back(folder)
    told = read_saved(folder)
    with _damage_told(folder):
        keys = told["experiment"] | {"stream_blocks": stream_blocks}
        experiment = make_experiment(keys, where=str(folder / "embedder.json"))
        presets = {role: _find(role, folder, told, llm_preset) for role in ROLES[experiment.kind]}
    embedder = build_embedder(experiment, presets)
    with _damage_told(folder):
        _fill(embedder, folder, told["classes"])
    embedder.result = saved_result(told)
    return embedder


@contextlib.contextmanager
def _damage_told(folder: Path) -> Iterator[None]:
    """Whatever is missing or of another kind in `embedder.json` is one sentence."""
    try:
        yield
    except InputError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError):
        raise _damaged(folder) from None


def saved_result(told: Mapping[str, Any]) -> Result | None:
    """What an embedder scored; None if its run left nothing, or another version did."""
    try:
        return Result(**told["result"])
    except (KeyError, TypeError):
        return None


def _find(role: str, folder: Path, told: Mapping[str, Any], llm_preset: str | None) -> Preset:
    """Where a preset is now; its name and fingerprint stay those of the one it was made from."""
    name, was = told["experiment"][role], told["presets"][role]
    inside = folder / {"llm_preset": "gemma", "slm_preset": "roberta"}[role]
    gemma = role == "llm_preset"
    if f"{inside.name}/config.json" in told["files"] and not (gemma and llm_preset):
        found = find_preset(role, str(inside))
        return dataclasses.replace(found, name=name, fingerprint=was["fingerprint"])
    if not gemma:
        raise _damaged(folder)
    return _find_gemma(folder, llm_preset or name, was)


def _damaged(folder: Path) -> InputError:
    return InputError(f"{folder / 'embedder.json'} is damaged: save the embedder again")


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
        form, files = told["format"], dict(told["files"])
    except (OSError, ValueError, KeyError, TypeError):
        raise _damaged(folder) from None
    if not files:
        raise _damaged(folder)
    if form != FORMAT:
        raise InputError(f"{folder} was saved by another version of this package: update it")
    for name, checksum in files.items():
        if not (folder / name).is_file() or _checksum(folder / name) != checksum:
            raise InputError(f"{folder}: {name} is missing or damaged: copy the whole folder again")
    return told


def _find_gemma(folder: Path, name: str, was: Mapping[str, Any]) -> Preset:
    """The Gemma of this name; raises InputError where it is another one than was saved with.

    A handle's fingerprint is its version, a folder's its content: between the two only the width
    can be compared.
    """
    try:
        found = find_preset("llm_preset", name)
    except InputError as error:
        raise InputError(
            f"the embedder in {folder} needs the Gemma it was made with ({error}); tell where it "
            "is: load(folder, llm_preset=…), or --llm"
        ) from None
    same = found.fingerprint == was["fingerprint"]
    if ("@" in found.fingerprint) != ("@" in was["fingerprint"]):
        same = found.width == was["width"]
    if not same:
        raise InputError(
            f"{name!r} is not the Gemma that the embedder in {folder} was made with: "
            "tell where that is with load(folder, llm_preset=…), or --llm"
        )
    return found


def _fill(embedder: Embedder, folder: Path, classes: list | None) -> None:
    """Gives an embedder the weights and the head in `joint.safetensors`."""
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
    return file_digest(path).hex()
