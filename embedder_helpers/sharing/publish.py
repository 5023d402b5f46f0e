"""Upload a saved embedder, with its model card, to Hugging Face or Kaggle.

What is uploaded is a copy that holds the embedder's own files and no path of this machine; the
folder stays as it is. `model_card` writes the card; `models.saving` knows the folder's format.
"""

import contextlib
import dataclasses
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedder_helpers import __version__
from embedder_helpers.builtin import BUILTIN_PRESETS
from embedder_helpers.data.tasks import LOCAL_SUFFIX
from embedder_helpers.errors import InputError, show
from embedder_helpers.models import presets
from embedder_helpers.models.manifest import CHEAP_FOLDER
from embedder_helpers.models.saving import MANIFEST_FILE, Manifest, read_manifest
from embedder_helpers.results.data_sets import data_key, data_source
from embedder_helpers.results.result import Result, read_result
from embedder_helpers.results.tables import load_results
from embedder_helpers.sharing.licenses import GEMMA, GEMMA_TERMS, license_of
from embedder_helpers.sharing.model_card import model_card, saved_result
from embedder_helpers.utils import environment, hub
from embedder_helpers.utils.files import as_path, file_digest, path_exists

if TYPE_CHECKING:  # imports Keras, which takes seconds
    from embedder_helpers.models.embedder import Embedder

SERVICES = {"hf": "Hugging Face", "kaggle": "Kaggle"}
PAGES = {"hf": "https://huggingface.co/", "kaggle": "https://www.kaggle.com/models/"}
KAGGLE_LICENSES = {"apache-2.0": "Apache 2.0", "mit": "MIT"}  # Kaggle has no name for the others
CARD_FILE, NOTICE_FILE = "README.md", "NOTICE"
WRITTEN_FILES = (MANIFEST_FILE, CARD_FILE, NOTICE_FILE)  # here, besides the embedder's own
KAGGLE_SLUG = "[A-Za-z0-9]+(-[A-Za-z0-9]+)*"


@dataclass(frozen=True)
class Address:
    """Where an embedder is uploaded to.

    Attributes:
        hub: `hf` or `kaggle`.
        name: `owner/model`.
    """

    hub: str
    name: str

    @property
    def service(self) -> str:
        """The hub's name for people."""
        return SERVICES[self.hub]

    @property
    def page(self) -> str:
        """URL of the model's page."""
        return PAGES[self.hub] + self.name


def parse_address(address: str) -> Address:
    """Parse `kaggle:owner/model` or `hf:owner/model`.

    Raises:
        InputError: it is neither, or the hub does not allow such a name.
    """
    hub, _, name = address.partition(":")
    if hub not in SERVICES or name.count("/") != 1:
        raise InputError(
            f"the address is {show(address)}, but must be kaggle:owner/model or hf:owner/model"
        )
    if hub == "kaggle" and not re.fullmatch(f"{KAGGLE_SLUG}/{KAGGLE_SLUG}", name):
        raise InputError(
            f"the address is {show(address)}, but Kaggle allows only letters, digits and single "
            "hyphens between them"
        )
    if hub == "hf":
        _validate_hugging_face_name(address, name)
    return Address(hub, name)


def _validate_hugging_face_name(address: str, name: str) -> None:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
        if all(name.split("/")):
            return
    except HFValidationError:
        pass
    raise InputError(
        f"the address is {show(address)}, but Hugging Face allows only letters, digits, `-`, `_` "
        "and `.`, at most 96, no `--` or `..`, and no `-` or `.` at the start or end"
    ) from None


@dataclass(frozen=True)
class Upload:
    """What will be uploaded, in a folder of its own.

    Attributes:
        address: address of the repository.
        public: whether a new repository is public.
        license: license of the whole, by Hugging Face's identifier.
        folder: folder of the copy, card included.
        checksums: SHA-256 of the embedder's own files, by their paths in the folder.
    """

    address: Address
    public: bool
    license: str
    folder: Path
    checksums: Mapping[str, str]

    def check(self) -> None:
        """Check that the embedder's files are those that were checked; costs no time if they are.

        Raises:
            InputError: one was changed or removed.
        """
        for name, checksum in self.checksums.items():
            path = self.folder / name
            if not path.is_file() or file_digest(path.resolve()).hex() != checksum:
                raise InputError(
                    f"{show(name)} changed while the embedder was uploaded: what is on the hub may "
                    "be damaged, so upload it again"
                )

    @property
    def files(self) -> list[Path]:
        """The files, sorted by name."""
        return sorted(path for path in self.folder.rglob("*") if path.is_file())

    def describe(self) -> str:
        """Address, visibility, license, files and their sizes in bytes, in lines."""
        sizes = {
            path.relative_to(self.folder).as_posix(): path.stat().st_size for path in self.files
        }
        lines = [
            f"to:         {self.address.service}, {self.address.page}",
            f"visibility: {self._describe_visibility()}",
            f"license:    {self._describe_license()}",
            *(f"{size:>15,}  {name}" for name, size in sizes.items()),
            f"{sum(sizes.values()):>15,}  bytes in {len(sizes)} files",
        ]
        return "\n".join(lines)

    def _describe_visibility(self) -> str:
        visibility = "public" if self.public else "private"
        text = f"{visibility} if new; an existing repository keeps its visibility"
        if self.address.hub == "kaggle":
            return f"{text} (kagglehub creates private models only)"
        return f"{text}; a public one is refused unless --public is given"

    def _describe_license(self) -> str:
        if self.address.hub == "hf":
            return self.license
        if self.license in KAGGLE_LICENSES:
            return KAGGLE_LICENSES[self.license]
        return f"{self.license}, for which Kaggle has no name: set it on the model's page"


def push_to_hub(
    embedder: "Embedder",
    address: str,
    *,
    results: str | Path | None = None,
    llm: str | None = None,
    public: bool = False,
    with_gemma: bool = False,
) -> str:
    """Save an embedder and upload it with a model card.

    Args:
        embedder: embedder to upload; it is saved into a temporary folder.
        address: `hf:owner/model` or `kaggle:owner/model`.
        results: folder of results to show in the card beside the embedder's own.
        llm: name or handle by which others find its Gemma: that of a Keras preset, or an `hf://`
            or `kaggle://` handle.
        public: whether to make a new repository public (Hugging Face only).
        with_gemma: whether to include the truncated Gemma, whose license then applies.

    Returns:
        URL of the model's page.

    Raises:
        InputError: an address, account, results or Gemma that cannot be used; a refusal by the
            hub, or no network.
    """
    parse_address(address)  # reported before the embedder is saved
    with tempfile.TemporaryDirectory(prefix="push-to-hub-") as part:
        folder = embedder.save(Path(part) / "embedder", with_gemma)
        options = {"results": results, "llm": llm, "public": public}
        with prepare_upload(folder, address, **options) as prepared:
            return upload(prepared)


@contextlib.contextmanager
def prepare_upload(
    folder: str | Path,
    to: str,
    *,
    results: str | Path | None = None,
    llm: str | None = None,
    public: bool = False,
) -> Iterator[Upload]:
    """Copy a saved embedder as it will be uploaded; the copy is deleted when the context ends.

    A cheap classifier attached for a cascade is left out: it is a model of its own.

    Args:
        folder: folder of the saved embedder.
        to: `hf:owner/model` or `kaggle:owner/model`.
        results: folder of results to show in the card; None: the folder that holds `folder`.
        llm: name or handle by which others find its Gemma: that of a Keras preset, or an `hf://`
            or `kaggle://` handle.
        public: whether to make a new repository public (Hugging Face only).

    Raises:
        InputError: an address, folder, results or Gemma that cannot be used.
    """
    address, folder = parse_address(to), as_path(folder).resolve()
    if public and address.hub == "kaggle":
        raise InputError(
            "public (--public): kagglehub creates private models only; leave it out, and make the "
            f"model public in the settings of {address.page}"
        )
    manifest = _with_gemma_address(_without_cheap(read_manifest(folder)), llm, folder)
    manifest = _without_local_paths(manifest)
    shown = [_result_without_paths(result) for result in _results(folder, results)]
    license = license_of(manifest)
    with tempfile.TemporaryDirectory(prefix="publish-") as part:
        copy = Path(part).resolve()
        for name in manifest.files:
            _link_or_copy(folder, name, copy)
        _write(copy / MANIFEST_FILE, manifest.as_json())
        _write(copy / CARD_FILE, model_card(manifest, shown, address.hub, address.name))
        if license == GEMMA:
            _write(copy / NOTICE_FILE, _gemma_notice(manifest))
        yield Upload(address, public, license, copy, manifest.files)


def _link_or_copy(folder: Path, name: str, copy: Path) -> None:
    """A link, which costs no disk, where the system allows one.

    The manifest's names and checksums were checked when it was read.

    Raises:
        InputError: the name is one that is written here.
    """
    file, target = (folder / name).resolve(), copy / name
    if name in WRITTEN_FILES:
        raise InputError(
            f"{show(name)}, which {show(str(folder / MANIFEST_FILE))} names, is not a file of the "
            "embedder's own: publish a folder that was written by `save_embedder: true`"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        target.symlink_to(file)
    except OSError:
        shutil.copyfile(file, target)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


def _gemma_notice(manifest: Manifest) -> str:
    """The notice that section 3.1 of Gemma's terms requires."""
    text = f"Gemma is provided under and subject to the Gemma Terms of Use found at {GEMMA_TERMS}\n"
    if manifest.contains_gemma:
        text += "The Gemma in gemma/ was changed: it is truncated after a layer, and in float32.\n"
    return text


def _with_gemma_address(manifest: Manifest, llm: str | None, folder: Path) -> Manifest:
    """The manifest with its Gemma where others find it.

    Raises:
        InputError: others could not load it.
    """
    gemma = manifest.presets.get("llm_preset")
    if not gemma or manifest.contains_gemma:
        if llm:
            raise InputError(
                f"llm (--llm) is {show(llm)}, but the embedder in {show(str(folder))} loads no "
                "Gemma from elsewhere: leave it out"
            )
        return manifest
    if llm:
        _validate_handle(llm)
        experiment = manifest.experiment | {"llm_preset": llm}
        return dataclasses.replace(manifest, experiment=experiment)
    if gemma["name"] not in BUILTIN_PRESETS and "@" not in gemma["fingerprint"]:
        raise InputError(
            f"its Gemma, {show(manifest.experiment['llm_preset'])}, is a folder of this machine, "
            "which others do not have: say where they find it with llm (--llm: a Keras preset's "
            "name, an hf:// or kaggle:// handle), or include it with with_gemma (save_embedder: "
            "with_gemma)"
        )
    return manifest


def _validate_handle(llm: str) -> None:
    if re.fullmatch(r"hf://[\w.-]+/[\w.-]+|kaggle://[\w.-]+(/[\w.-]+){3,4}", llm):
        return
    if "://" in llm or path_exists(Path(llm)):
        raise InputError(
            f"llm (--llm) is {show(llm)}, but must be what others can download: a Keras preset's "
            "name, hf://owner/model or kaggle://owner/model/keras/variation"
        )
    presets.kaggle_handle("llm_preset", llm)


def _without_cheap(manifest: Manifest) -> Manifest:
    """The manifest without the cheap classifier of a cascade."""
    prefix = f"{CHEAP_FOLDER}/"
    files = {name: sha for name, sha in manifest.files.items() if not name.startswith(prefix)}
    return dataclasses.replace(manifest, files=files, cheap_temperature=None)


def _without_local_paths(manifest: Manifest) -> Manifest:
    """The manifest without this machine's paths."""
    result = saved_result(manifest.result)
    return dataclasses.replace(
        manifest,
        experiment={key: _last_part(value) for key, value in manifest.experiment.items()},
        presets={
            role: preset | {"name": _last_part(preset["name"])}
            for role, preset in manifest.presets.items()
        },
        result=_result_without_paths(result).as_stored() if result else None,
    )


def _result_without_paths(result: Result) -> Result:
    """The result with names in place of paths, of the same data."""
    # Older results show by their paths only what the data are, and what they are not.
    task = result.task | {"name": data_key(result)[0], "source": data_source(result)}
    if "path" in task:
        task["path"] = _last_part(task["path"])
    experiment = result.experiment | {"states_dir": None, "task": task["name"]}
    for key in ("task_data", "llm_preset", "slm_preset"):
        experiment[key] = _last_part(experiment[key])
    return dataclasses.replace(result, experiment=experiment, task=task)


def _last_part(value: Any) -> Any:
    """The last part of a path; other values, and handles of a hub, as they are."""
    if not isinstance(value, str) or value.startswith(("hf://", "kaggle://")):
        return value
    name = re.split(r"[/\\]", value.rstrip("/\\"))[-1] or value
    # Not the built-in preset's name, which stands for its weights and license.
    return name + LOCAL_SUFFIX if name in BUILTIN_PRESETS and name != value else name


def _results(folder: Path, results: str | Path | None) -> list[Result]:
    if results:
        return load_results(results)
    files = map(read_result, sorted(folder.parent.glob("*.json")))
    return [result for result in files if result]


def upload(prepared: Upload) -> str:
    """Upload what was prepared.

    Returns:
        URL of the model's page.

    Raises:
        InputError: no account, a refusal by the hub, or no network. Both hubs show uploaded files
            only after a last request, so that a failed upload leaves nothing to see. Or a file that
            changed meanwhile.
    """
    prepared.check()
    with _without_logs():
        if prepared.address.hub == "hf":
            _upload_to_hugging_face(prepared)
        else:
            _upload_to_kaggle(prepared)
    prepared.check()
    return prepared.address.page


@contextlib.contextmanager
def _without_logs() -> Iterator[None]:
    """Suppress log lines: that of a retry holds a signed URL, which is a secret."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def _upload_to_hugging_face(prepared: Upload) -> None:
    import huggingface_hub

    address = prepared.address
    token = hub.hugging_face_token() or huggingface_hub.get_token()
    if not token:
        raise InputError(
            f"Hugging Face needs an account to upload to: {hub.HUGGING_FACE_TOKEN_ADVICE} that may "
            "write"
        )
    api = huggingface_hub.HfApi(token=token)
    try:
        api.create_repo(address.name, private=not prepared.public, exist_ok=True)
        is_private = api.model_info(address.name).private
    except Exception as error:  # of the hub, or of its HTTP library
        raise _refusal(address, error) from None
    if not (is_private or prepared.public):
        raise InputError(
            f"{address.page} exists and is public: add --public (public=True), or choose another "
            "name"
        )
    try:
        api.upload_folder(
            repo_id=address.name,
            folder_path=prepared.folder,
            commit_message=f"Upload an embedder of embedder_helpers {__version__}",
            delete_patterns=["gemma/*", "roberta/*"],  # of an embedder uploaded before
        )
    except Exception as error:
        raise _refusal(address, error) from None


def _upload_to_kaggle(prepared: Upload) -> None:
    import kagglehub
    from kagglehub.config import get_kaggle_credentials

    if token := environment.get_secret("KAGGLE_API_TOKEN"):
        os.environ["KAGGLE_API_TOKEN"] = token
    try:
        credentials = get_kaggle_credentials()
    except ValueError:
        raise InputError(
            f"kaggle.json holds no account and key: {hub.KAGGLE_TOKEN_ADVICE}"
        ) from None
    if not credentials:
        raise InputError(f"Kaggle needs an account to upload to: {hub.KAGGLE_TOKEN_ADVICE}")
    try:
        kagglehub.model_upload(
            f"{prepared.address.name}/keras/default",
            str(prepared.folder),
            license_name=KAGGLE_LICENSES.get(prepared.license),
            version_notes=f"embedder_helpers {__version__}",
        )
    except Exception as error:
        raise _refusal(prepared.address, error) from None


def _refusal(address: Address, error: Exception) -> InputError:
    """What to do about a hub's error; its own text, which can hold secrets, is not shown."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    status = status or getattr(error, "error_code", None)
    advice = hub.HUGGING_FACE_TOKEN_ADVICE if address.hub == "hf" else hub.KAGGLE_TOKEN_ADVICE
    service, name = address.service, address.name
    if status == 401:
        return InputError(f"{service} does not recognize the account for {name} (401): {advice}")
    if status == 403:
        return InputError(
            f"{service} does not let this account write {name} (403): check that "
            f"{show(name.split('/')[0])} is its name, and that its token may write"
        )
    if status:
        return InputError(
            f"{service} refuses {name} ({status}): see whether its page {address.page} says why, "
            "or try again later"
        )
    return InputError(
        f"{name} could not be uploaded to {service} ({type(error).__name__}): check that the "
        "network is on (on Kaggle: Settings, Internet), and try again"
    )
