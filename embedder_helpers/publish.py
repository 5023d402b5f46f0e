"""Publishing: a saved embedder, with its model card, to Hugging Face or Kaggle.

What is sent is a copy that holds the embedder's own files and no path of this machine; the folder
stays as it was. The card's words are `card`'s, the folder's format is `saved`'s.
"""

import contextlib
import dataclasses
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedder_helpers import __version__, platform, presets
from embedder_helpers.card import GEMMA, GEMMA_TERMS, Licence, card, gemma_inside, licence
from embedder_helpers.config import InputError
from embedder_helpers.local import exists
from embedder_helpers.report import load_results
from embedder_helpers.result import Result, read_result
from embedder_helpers.saved import read_saved, saved_result

SERVICES = {"hf": "Hugging Face", "kaggle": "Kaggle"}
PAGES = {"hf": "https://huggingface.co/", "kaggle": "https://www.kaggle.com/models/"}
SLUG = "[A-Za-z0-9]+(-[A-Za-z0-9]+)*"  # what Kaggle's addresses hold


@dataclass(frozen=True)
class Address:
    """Where an embedder goes.

    Attributes:
        hub: `hf` or `kaggle`.
        name: `owner/model`.
    """

    hub: str
    name: str

    @property
    def service(self) -> str:
        """The hub in words."""
        return SERVICES[self.hub]

    @property
    def page(self) -> str:
        """The address of its page."""
        return PAGES[self.hub] + self.name


def address(to: str) -> Address:
    """The address in `kaggle:owner/model` or `hf:owner/model`.

    Raises:
        InputError: it is spelled otherwise, or holds what the hub takes in no name.
    """
    hub, _, name = to.partition(":")
    if hub not in SERVICES or name.count("/") != 1:
        raise InputError(f"--to is {to!r}, but must be kaggle:owner/model or hf:owner/model")
    if hub == "kaggle" and not re.fullmatch(f"{SLUG}/{SLUG}", name):
        raise InputError(
            f"--to is {to!r}, but Kaggle takes letters, digits and single hyphens between them only"
        )
    if hub == "hf":
        _check_hugging_face_name(to, name)
    return Address(hub, name)


def _check_hugging_face_name(to: str, name: str) -> None:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
        if all(name.split("/")):
            return
    except HFValidationError:
        pass
    raise InputError(
        f"--to is {to!r}, but Hugging Face takes letters, digits, `-`, `_` and `.` only, at most "
        "96, no `--` or `..`, and none of `-` and `.` at an end"
    ) from None


@dataclass(frozen=True)
class Publication:
    """What would be sent, in a folder of its own.

    Attributes:
        to: where.
        public: whether everybody may read a new repository.
        licence: of the whole.
        folder: the copy, card included.
    """

    to: Address
    public: bool
    licence: Licence
    folder: Path

    @property
    def files(self) -> list[Path]:
        """The files, in the order of their names."""
        return sorted(path for path in self.folder.rglob("*") if path.is_file())

    def told(self) -> str:
        """Address, visibility, licence, files and sizes, in lines."""
        sizes = {path.relative_to(self.folder).as_posix(): path.stat() for path in self.files}
        lines = [
            f"to:         {self.to.service}, {self.to.page}",
            f"visibility: {'public' if self.public else 'private'} if it is new; "
            f"one that is there {_stays(self.to.hub)}",
            f"licence:    {_licence_words(self)}",
            *(f"{size.st_size:>15,}  {name}" for name, size in sizes.items()),
            f"{sum(size.st_size for size in sizes.values()):>15,}  bytes in {len(sizes)} files",
        ]
        return "\n".join(lines)


def _stays(hub: str) -> str:
    if hub == "kaggle":
        return "stays what it is (kagglehub makes private ones only)"
    return "stays what it is, and a public one is refused without --public"


def _licence_words(one: Publication) -> str:
    if one.to.hub == "hf":
        return one.licence.hf
    if one.licence.kaggle:
        return one.licence.kaggle
    return f"{one.licence.hf}, for which Kaggle has no name: set it on the model's page"


@contextlib.contextmanager
def staged(
    folder: str | Path,
    to: str,
    *,
    results: str | Path | None = None,
    llm: str | None = None,
    public: bool = False,
) -> Iterator[Publication]:
    """A copy of a saved embedder as it would be sent; gone when the context ends.

    Args:
        folder: of the saved embedder, which stays as it is.
        to: `kaggle:owner/model` or `hf:owner/model`.
        results: folder of the results to tell in the card; None: the one that `folder` lies in.
        llm: where others find its Gemma: a Keras preset's name, an `hf://` or `kaggle://` handle.
        public: let everybody read a new repository.

    Raises:
        InputError: an address, folder or Gemma that cannot be used.
    """
    place, folder = address(to), Path(folder).absolute()
    if public and place.hub == "kaggle":
        raise InputError(
            "--public: kagglehub makes private models only; leave it out, and make the model "
            f"public in the settings of {place.page}"
        )
    told = _public(_with_gemma_at(read_saved(folder), llm, folder))
    beside = [_without_paths(one) for one in _results(folder, results)]
    with tempfile.TemporaryDirectory(prefix="publish-") as part:
        copy = Path(part)
        for name in told["files"]:
            _place(folder / name, copy / name)
        _write(copy / "embedder.json", json.dumps(told, indent=1, ensure_ascii=False) + "\n")
        _write(copy / "README.md", card(told, beside, place.hub, place.name))
        if licence(told) is GEMMA:
            _write(copy / "NOTICE", _notice(told))
        yield Publication(place, public, licence(told), copy)


def _place(file: Path, there: Path) -> None:
    """A link, which costs no disk, where the system lets one be made."""
    there.parent.mkdir(parents=True, exist_ok=True)
    try:
        there.symlink_to(file)
    except OSError:
        shutil.copyfile(file, there)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


def _notice(told: dict[str, Any]) -> str:
    """The notice that Gemma's terms ask for, section 3.1."""
    text = f"Gemma is provided under and subject to the Gemma Terms of Use found at {GEMMA_TERMS}\n"
    if gemma_inside(told):
        text += "The Gemma in gemma/ was changed: it is cut behind a block, and saved in float32.\n"
    return text


def _with_gemma_at(told: dict[str, Any], llm: str | None, folder: Path) -> dict[str, Any]:
    """What a folder tells, with its Gemma where others find it.

    Raises:
        InputError: others could not load it.
    """
    found = told["presets"].get("llm_preset")
    if not found or gemma_inside(told):
        if llm:
            raise InputError(f"--llm: the embedder in {folder} reads no Gemma from elsewhere")
        return told
    if llm:
        _check_handle(llm)
        return told | {"experiment": told["experiment"] | {"llm_preset": llm}}
    if found["name"] not in presets.BUILTIN and "@" not in found["fingerprint"]:
        raise InputError(
            f"its Gemma, {told['experiment']['llm_preset']!r}, is a folder of this machine, which "
            "others do not have: tell where they find it with --llm (a Keras preset's name, an "
            "hf:// or kaggle:// handle), or save it with save_embedder: with_gemma"
        )
    return told


def _check_handle(llm: str) -> None:
    if re.fullmatch(r"hf://[\w.-]+/[\w.-]+|kaggle://[\w.-]+(/[\w.-]+){3,4}", llm):
        return
    if "://" in llm or exists(Path(llm)):
        raise InputError(
            f"--llm is {llm!r}, but must be what others can fetch: a Keras preset's name, "
            "hf://owner/model or kaggle://owner/model/keras/variation"
        )
    presets.kaggle_handle("llm_preset", llm)


def _public(told: dict[str, Any]) -> dict[str, Any]:
    """What a folder tells, without this machine's paths."""
    keys = {key: _last(value) for key, value in told["experiment"].items()}
    used = {role: one | {"name": _last(one["name"])} for role, one in told["presets"].items()}
    result = saved_result(told)
    kept = dataclasses.asdict(_without_paths(result)) if result else None
    return told | {"experiment": keys, "presets": used, "result": kept}


def _without_paths(result: Result) -> Result:
    """A result whose places are names."""
    keys = result.experiment | {"states_dir": None, "task": result.task["name"]}
    for key in ("task_data", "llm_preset", "slm_preset"):
        keys[key] = _last(keys[key])
    return dataclasses.replace(result, experiment=keys)


def _last(value: Any) -> Any:
    """The last part of a path; what is no path, and a hub's handle, as it is."""
    if not isinstance(value, str) or value.startswith(("hf://", "kaggle://")):
        return value
    return re.split(r"[/\\]", value.rstrip("/\\"))[-1] or value


def _results(folder: Path, given: str | Path | None) -> list[Result]:
    if given:
        return load_results(given)
    found = map(read_result, sorted(folder.parent.glob("*.json")))
    return [one for one in found if one]


def send(one: Publication) -> str:
    """Sends what is staged.

    Returns:
        The address of its page.

    Raises:
        InputError: no account, a refusal, or no network. What was sent until then is not shown:
            both hubs take the files in first, and show them by a last request.
    """
    with _no_log():
        if one.to.hub == "hf":
            _to_hugging_face(one)
        else:
            _to_kaggle(one)
    return one.to.page


@contextlib.contextmanager
def _no_log() -> Iterator[None]:
    """Logs nothing meanwhile: the line of a retry holds an address that is signed, a secret."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def _to_hugging_face(one: Publication) -> None:
    import huggingface_hub

    token = presets.hugging_face_token() or huggingface_hub.get_token()
    if not token:
        raise InputError(
            f"Hugging Face has to know who publishes: {presets.HUGGING_FACE_TOKEN} that may write"
        )
    api = huggingface_hub.HfApi(token=token)
    try:
        api.create_repo(one.to.name, private=not one.public, exist_ok=True)
        hidden = api.model_info(one.to.name).private
    except Exception as error:  # of the hub, of its HTTP library
        raise _refusal(one, error) from None
    if not (hidden or one.public):
        raise InputError(
            f"{one.to.page} is there and public: add --public, or publish under another name"
        )
    try:
        api.upload_folder(
            repo_id=one.to.name,
            folder_path=one.folder,
            commit_message=f"Publish an embedder of embedder_helpers {__version__}",
            delete_patterns=["gemma/*", "roberta/*"],  # of an embedder that was there before
        )
    except Exception as error:
        raise _refusal(one, error) from None


def _to_kaggle(one: Publication) -> None:
    import kagglehub
    from kagglehub.config import get_kaggle_credentials

    if token := platform.secret("KAGGLE_API_TOKEN"):
        os.environ["KAGGLE_API_TOKEN"] = token
    try:
        known = get_kaggle_credentials()
    except ValueError:
        raise InputError(f"kaggle.json holds no account and key: {presets.KAGGLE_TOKEN}") from None
    if not known:
        raise InputError(f"Kaggle has to know who publishes: {presets.KAGGLE_TOKEN}")
    try:
        kagglehub.model_upload(
            f"{one.to.name}/keras/default",
            str(one.folder),
            license_name=one.licence.kaggle,
            version_notes=f"embedder_helpers {__version__}",
        )
    except Exception as error:
        raise _refusal(one, error) from None


def _refusal(one: Publication, error: Exception) -> InputError:
    """What to do about an error of a hub; its own text, which can hold secrets, is not told."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    status = status or getattr(error, "error_code", None)
    advice = presets.HUGGING_FACE_TOKEN if one.to.hub == "hf" else presets.KAGGLE_TOKEN
    where, owner = one.to.service, one.to.name.split("/")[0]
    if status == 401:
        return InputError(f"{where} does not know who publishes {one.to.name} (401): {advice}")
    if status == 403:
        return InputError(
            f"{where} does not let this account write {one.to.name} (403): check that {owner!r} is "
            "its name, and that its token may write"
        )
    if status:
        return InputError(
            f"{where} refuses {one.to.name} ({status}): see whether its page {one.to.page} tells "
            "why, or try again later"
        )
    return InputError(
        f"{one.to.name} could not be sent to {where} ({type(error).__name__}): see that the "
        "network is on (on Kaggle: Settings, Internet), and try again"
    )
