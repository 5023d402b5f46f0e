"""Uploads against a stand-in of the hubs: what arrives, what is refused, what stays secret."""

import json
import shutil
import tempfile

import numpy as np
import pytest
from made_links import link_files
from made_presets import write_gemma
from made_results import SHA, result
from stand_in_hub import SIGNATURE, stand_in
from task_files import write_folder

from embedder_helpers.__main__ import main
from embedder_helpers.builtin import BUILTIN_FOLDER
from embedder_helpers.config import Experiment
from embedder_helpers.data.tasks import load_task
from embedder_helpers.errors import InputError
from embedder_helpers.models.architectures import build_embedder, load_embedder
from embedder_helpers.results.data_sets import data_key, data_source, mteb_task
from embedder_helpers.results.result import write_result
from embedder_helpers.sharing import publish as publish_module
from embedder_helpers.sharing.publish import parse_address, prepare_upload, push_to_hub, upload
from embedder_helpers.utils import files
from embedder_helpers.utils.files import file_digest
from embedder_helpers.utils.json_files import write_json

TOKEN = "hf_a-secret-that-nobody-may-see"
TEXTS = ["It works.", "No."]


@pytest.fixture
def no_account(monkeypatch, tmp_path):
    """An empty home, and no token anywhere."""
    import huggingface_hub.constants
    import kagglehub.config

    for name in ("HUGGING_FACE_TOKEN", "HF_TOKEN", "KAGGLE_API_TOKEN", "KAGGLE_KEY"):
        monkeypatch.setenv(name, "")  # so that what an upload sets is undone
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    monkeypatch.setattr(kagglehub.config, "DEFAULT_KAGGLE_CREDENTIALS_FOLDER", str(tmp_path))


@pytest.fixture
def hub(no_account, monkeypatch):
    """A stand-in that replaces both hubs, with an account.

    Hugging Face's client reads HF_ENDPOINT when it is imported. Kaggle's has a table of URLs, none
    of them with a free port.
    """
    import huggingface_hub.constants
    from kagglesdk import kaggle_env

    with stand_in(TOKEN) as server:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        # To name its caller to Kaggle, the client inspects the whole stack for each request.
        monkeypatch.setattr("kagglehub.clients.get_user_agent", lambda: "tests")
        urls = kaggle_env._env_to_endpoint
        monkeypatch.setitem(urls, kaggle_env.KaggleEnv.PROD, server.url)
        monkeypatch.setenv("HUGGING_FACE_TOKEN", TOKEN)
        monkeypatch.setenv("KAGGLE_API_TOKEN", TOKEN)
        yield server


@pytest.fixture(autouse=True)
def no_secret_is_shown(capfd, caplog):
    """No test's output may hold the token, or the signature of a URL."""
    yield
    out, err = capfd.readouterr()
    for secret in (TOKEN, SIGNATURE):
        assert secret not in out + err + caplog.text


@pytest.fixture
def publish(capfd):
    """Run the command; returns its exit status, its output and the last line on stderr."""

    def run(*arguments):
        status = main(["publish", *map(str, arguments)])
        out, err = capfd.readouterr()
        for secret in (TOKEN, SIGNATURE):
            assert secret not in out + err
        return status, out, (err.splitlines() or [""])[-1]

    return run


def content(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def change_manifest(folder, **values):
    """Replace values of embedder.json, as somebody does who wants its checksum to match."""
    path = folder / "embedder.json"
    manifest = json.loads(path.read_text()) | values
    del manifest["checksum"]
    write_json(path, manifest)


def download(files, folder):
    """Write what a hub received, as a download would."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


# --- uploads -------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", ["hf:me/mine", "kaggle:me/mine"])
def test_the_prepared_files_arrive_and_the_folder_stays_as_it_is(to, publish, hub, saved_hybrid):
    before = content(saved_hybrid)
    hub.busy = 1 if to.startswith("hf") else 0  # its client logs this, and tries again
    status, out, _ = publish(saved_hybrid, "--to", to)
    assert status == 0 and f"published: {parse_address(to).page}" in out
    with prepare_upload(saved_hybrid, to) as prepared:
        assert hub.repos["me/mine"] == content(prepared.folder)
    assert content(saved_hybrid) == before


def test_a_download_gives_the_same_embeddings(
    publish, hub, saved_late_hybrid, late_hybrid, tmp_path
):
    publish(saved_late_hybrid, "--to", "kaggle:me/mine")
    loaded = load_embedder(download(hub.repos["me/mine"], tmp_path / "download"))
    np.testing.assert_array_equal(loaded.encode(TEXTS), late_hybrid.encode(TEXTS))


def test_an_embedder_uploads_itself(hub, tiny_embedders, tmp_path):
    embedder = tiny_embedders["gemma_only"]
    assert embedder.push_to_hub("hf:me/mine") == "https://huggingface.co/me/mine"
    assert hub.created["me/mine"]["private"]
    saved = content(embedder.save(tmp_path / "saved"))
    uploaded = hub.repos["me/mine"]
    assert uploaded.keys() == saved.keys() | {"README.md"}
    assert uploaded["joint.safetensors"] == saved["joint.safetensors"]


def test_an_embedder_uploads_its_gemma_and_is_public_on_request(hub, tiny_embedders):
    push_to_hub(tiny_embedders["gemma_only"], "hf:me/mine", public=True, with_gemma=True)
    assert not hub.created["me/mine"]["private"]
    assert "gemma/config.json" in hub.repos["me/mine"]


def test_an_embedder_is_not_saved_for_an_invalid_address(tiny_embedders, monkeypatch):
    monkeypatch.setattr(tiny_embedders["gemma_only"], "save", None, raising=False)
    with pytest.raises(InputError, match="'me/mine'.*hf:owner/model"):
        push_to_hub(tiny_embedders["gemma_only"], "me/mine")


def test_a_new_repository_is_private_unless_public_is_set(publish, hub, saved_gemma):
    publish(saved_gemma, "--to", "hf:me/hidden")
    publish(saved_gemma, "--to", "hf:me/open", "--public")
    publish(saved_gemma, "--to", "kaggle:me/hidden-too")
    assert hub.created["me/hidden"]["private"] and not hub.created["me/open"]["private"]
    assert hub.created["me/hidden-too"]["isPrivate"]


def test_public_is_refused_for_kaggle_before_any_request(publish, hub, saved_gemma):
    status, _, message = publish(saved_gemma, "--to", "kaggle:me/other", "--public")
    assert status == 2 and "--public" in message and "private models only" in message
    assert not hub.requests


def test_a_public_repository_gets_nothing_without_public(publish, hub, saved_gemma):
    hub.repos["me/open"], hub.created["me/open"] = {}, {"private": False}
    status, _, message = publish(saved_gemma, "--to", "hf:me/open")
    assert status == 2 and "is public: add --public" in message
    assert hub.repos["me/open"] == {}


def test_a_second_upload_replaces_the_embedder_and_nothing_else(publish, hub, saved_gemma):
    hub.created["me/mine"] = {"private": True}
    hub.repos["me/mine"] = {"gemma/config.json": b"old", "figure.png": b"theirs"}
    assert publish(saved_gemma, "--to", "hf:me/mine")[0] == 0
    assert "gemma/config.json" not in hub.repos["me/mine"]
    assert hub.repos["me/mine"]["figure.png"] == b"theirs"


def test_kaggle_gets_the_license_by_its_name_and_a_version_the_second_time(
    publish, hub, saved_gemma
):
    for _ in range(2):
        assert publish(saved_gemma, "--to", "kaggle:me/mine")[0] == 0
    assert hub.created["me/mine/keras"]["licenseName"] == "Apache 2.0"
    assert hub.requests[-1].endswith("CreateModelInstanceVersion")


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("to", "path", "status", "parts"),
    [
        ("hf:me/mine", "repos/create", 401, ["me/mine (401)", "set HF_TOKEN"]),
        ("hf:me/mine", "", 403, ["me/mine (403)", "check that 'me'"]),
        ("hf:me/mine", "commit", 403, ["me/mine (403)"]),
        ("hf:me/mine", "commit", 409, ["Hugging Face refuses me/mine (409)"]),
        ("kaggle:me/mine", "GetModel", 401, ["me/mine (401)", "set KAGGLE_API_TOKEN"]),
        ("kaggle:me/mine", "Model", 403, ["me/mine (403)"]),
        ("kaggle:me/mine", "CreateModelInstance", 409, ["Kaggle refuses me/mine (409)"]),
        ("kaggle:me/mine", "storage", 400, ["uploaded to Kaggle (BackendError)"]),
    ],
)
def test_a_refusal_is_reported_in_a_sentence_with_a_remedy(
    to, path, status, parts, publish, hub, saved_gemma
):
    hub.refuse = {path: status}
    code, _, message = publish(saved_gemma, "--to", to)
    assert code == 2 and message.startswith("error: ")
    assert all(part in message for part in parts), message
    assert not hub.repos.get("me/mine")


@pytest.mark.parametrize("to", ["hf:me/mine", "kaggle:me/mine"])
def test_a_hub_that_cannot_be_reached_is_reported(to, publish, hub, saved_gemma):
    hub.shutdown()
    hub.server_close()
    code, _, message = publish(saved_gemma, "--to", to)
    assert code == 2 and "check that the network is on" in message


@pytest.mark.parametrize(
    ("to", "secret"), [("hf:me/mine", "HF_TOKEN"), ("kaggle:me/mine", "KAGGLE_API_TOKEN")]
)
def test_without_an_account_the_name_of_the_secret_is_shown(
    to, secret, publish, no_account, saved_gemma
):
    code, _, message = publish(saved_gemma, "--to", to)
    assert code == 2 and f"set {secret}" in message


@pytest.mark.parametrize(
    ("to", "remedy"),
    [
        ("me/mine", "must be kaggle:owner/model or hf:owner/model"),
        ("hf:mine", "must be kaggle:owner/model or hf:owner/model"),
        ("hf:me/mine/more", "must be kaggle:owner/model or hf:owner/model"),
        ("hf:me/mi--ne", "Hugging Face allows only letters"),
        ("hf:/mine", "Hugging Face allows only letters"),
        ("hf:me/mine.git", "Hugging Face allows only letters"),
        ("hf:me/my model", "Hugging Face allows only letters"),
        ("kaggle:me/my_model", "Kaggle allows only letters"),
        ("kaggle:me/-model", "Kaggle allows only letters"),
    ],
)
def test_an_invalid_address_is_reported(to, remedy):
    with pytest.raises(InputError) as caught:
        parse_address(to)
    assert repr(to) in str(caught.value) and remedy in str(caught.value)


def test_the_command_reports_an_invalid_address(publish, saved_gemma):
    status, _, message = publish(saved_gemma, "--to", "me/mine", "--dry-run")
    assert status == 2 and "'me/mine'" in message


def test_a_folder_without_an_embedder_is_reported(publish, tmp_path):
    status, _, message = publish(tmp_path, "--to", "hf:me/mine", "--dry-run")
    assert status == 2 and "holds no saved embedder" in message


# --- what is uploaded ----------------------------------------------------------------------------


def test_a_dry_run_shows_everything_and_sends_no_request(publish, hub, saved_gemma):
    status, out, _ = publish(saved_gemma, "--to", "hf:me/mine", "--dry-run")
    assert status == 0 and hub.requests == []
    with prepare_upload(saved_gemma, "hf:me/mine") as prepared:
        files = content(prepared.folder)
    for name, data in files.items():
        assert f"{len(data):>15,}  {name}" in out
    assert f"{sum(map(len, files.values())):>15,}  bytes in {len(files)} files" in out
    assert files["README.md"].decode() in out
    assert "private if new" in out and "license:    apache-2.0" in out


@pytest.fixture(scope="module")
def local_gemma(tmp_path_factory):
    """Embedders of a Gemma that is a local folder: `part` without and `whole` with its weights.

    Their result names other local folders, and a result of RoBERTa alone lies beside them.
    """
    folder = tmp_path_factory.mktemp("machine")
    write_gemma("gemma3", 3, folder / "my_gemma")
    options = dict(kind="gemma_only", llm_preset=str(folder / "my_gemma"), llm_layers=2)
    embedder = build_embedder(Experiment(**options))
    private = {"task": str(folder / "letters"), "states_dir": str(folder / "states")}
    own = result(cutoffs=(2,), **options, **private, task_data=str(folder / "data"))
    own.task.update(texts={"drawn": 4, "scored": 4}, name="letters")
    embedder.save(folder / "part", False, own.as_stored())
    embedder.save(folder / "whole", True, own.as_stored())
    write_result(result("roberta_only", (), task="letters"), folder / "letters-roberta.json")
    return folder


def test_a_gemma_that_others_do_not_have_is_reported(publish, local_gemma):
    status, _, message = publish(local_gemma / "part", "--to", "hf:me/mine", "--dry-run")
    assert status == 2 and str(local_gemma / "my_gemma") in message and "--llm" in message


@pytest.mark.parametrize(
    ("llm", "remedy"),
    [
        ("hf://google", "must be what others can download"),
        ("gemma_2b_em", "did you mean 'gemma_2b_en'"),
    ],
)
def test_an_invalid_handle_is_reported(llm, remedy, local_gemma):
    with (
        pytest.raises(InputError) as caught,
        prepare_upload(local_gemma / "part", "hf:me/mine", llm=llm),
    ):
        pass
    assert repr(llm) in str(caught.value) and remedy in str(caught.value)


def test_a_local_folder_is_not_a_handle(publish, local_gemma):
    folder, part = local_gemma / "my_gemma", local_gemma / "part"
    status, _, message = publish(part, "--to", "hf:me/mine", "--llm", folder)
    assert status == 2 and str(folder) in message and "others can download" in message


def test_a_handle_is_refused_where_gemma_is_in_the_folder(local_gemma):
    with pytest.raises(InputError, match="llm .* is 'hf://me/gemma'.*leave it out"):
        with prepare_upload(local_gemma / "whole", "hf:me/mine", llm="hf://me/gemma"):
            pass


@pytest.mark.parametrize(("name", "llm"), [("part", "hf://me/gemma"), ("whole", None)])
def test_the_copy_names_no_local_folder(name, llm, local_gemma):
    with prepare_upload(local_gemma / name, "hf:me/mine", llm=llm) as prepared:
        files = content(prepared.folder)
    assert not [file for file, data in files.items() if str(local_gemma).encode() in data]
    assert b"Gemma Terms of Use" in files["NOTICE"]
    manifest = json.loads(files["embedder.json"])
    assert manifest["experiment"]["llm_preset"] == (llm or "my_gemma")
    assert manifest["result"]["experiment"]["task"] == "letters"
    assert not manifest["result"]["experiment"]["states_dir"]


def test_a_copy_with_its_gemma_loads_without_the_local_folder(local_gemma, tmp_path, monkeypatch):
    expected = load_embedder(local_gemma / "whole").encode(TEXTS)
    with prepare_upload(local_gemma / "whole", "hf:me/mine") as prepared:
        download(content(prepared.folder), tmp_path / "download")
    monkeypatch.chdir(tmp_path)
    (local_gemma / "my_gemma").rename(tmp_path / "elsewhere")
    embeddings = load_embedder(tmp_path / "download").encode(TEXTS)
    (tmp_path / "elsewhere").rename(local_gemma / "my_gemma")
    np.testing.assert_array_equal(embeddings, expected)


def test_files_that_are_not_the_embedders_are_not_uploaded(saved_gemma, tmp_path):
    copy = shutil.copytree(saved_gemma, tmp_path / "copy")
    (copy / "diary.txt").write_text("private")
    with prepare_upload(copy, "hf:me/mine") as prepared:
        assert "diary.txt" not in content(prepared.folder)


def test_a_result_of_another_version_is_left_out(saved_gemma, tmp_path):
    copy = shutil.copytree(saved_gemma, tmp_path / "copy")
    change_manifest(copy, result={"of": "later"})
    with prepare_upload(copy, "hf:me/mine") as prepared:
        files = content(prepared.folder)
    assert json.loads(files["embedder.json"])["result"] is None
    assert b"not saved with this embedder" in files["README.md"]


def test_results_beside_the_folder_are_shown_in_the_card(local_gemma):
    with prepare_upload(local_gemma / "whole", "hf:me/mine") as prepared:
        card = (prepared.folder / "README.md").read_text(encoding="utf-8")
    assert "| RoBERTa only" in card and "| Gemma only" in card


def test_results_that_do_not_exist_are_reported(publish, saved_gemma, tmp_path):
    status, _, message = publish(
        saved_gemma, "--to", "hf:me/mine", "--results", tmp_path, "--dry-run"
    )
    assert status == 2 and str(tmp_path) in message and "no results" in message


def test_the_copy_is_deleted_when_the_context_ends(saved_gemma):
    with prepare_upload(saved_gemma, "hf:me/mine") as prepared:
        folder = prepared.folder
    assert not folder.exists()


# --- folders of strangers ------------------------------------------------------------------------


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    """The folder in which copies are made, and an empty one beside it."""
    folder = tmp_path / "scratch"
    (folder / "planted").mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def named(folder, name):
    """Let embedder.json name a file as one of the embedder's, with its checksum."""
    files = json.loads((folder / "embedder.json").read_text())["files"]
    change_manifest(folder, files=files | {name: file_digest(folder / name).hex()})


@pytest.mark.parametrize("name", ["../planted/file", "/absolute", "README.md", "NOTICE"])
def test_a_name_that_is_no_file_of_the_embedder_is_an_error(saved_gemma, scratch, tmp_path, name):
    folder = shutil.copytree(saved_gemma, tmp_path / "embedder")
    (tmp_path / "planted").mkdir()
    (tmp_path / "planted" / "file").write_text("outside")
    (folder / "README.md").write_text("mine")
    (folder / "NOTICE").write_text("mine")
    name = str(tmp_path / "planted" / "file") if name == "/absolute" else name
    named(folder, name)
    with pytest.raises(InputError, match=str(name).split("/")[-1]):
        with prepare_upload(folder, "hf:me/mine"):
            pass
    assert content(scratch) == {} and list(scratch.iterdir()) == [scratch / "planted"]
    assert (folder / "README.md").read_text() == (folder / "NOTICE").read_text() == "mine"


def test_links_to_a_cache_are_published_as_their_files(publish, hub, saved_hybrid, tmp_path):
    folder = shutil.copytree(saved_hybrid, tmp_path / "embedder")
    cached = link_files(folder, tmp_path / "model")
    assert publish(cached, "--to", "hf:me/mine", "--dry-run")[0] == 0
    with prepare_upload(cached, "hf:me/mine") as prepared:
        copied = content(prepared.folder)
    for name in ("joint.safetensors", "roberta/model.weights.h5"):
        assert copied[name] == (cached / name).read_bytes()


def test_files_that_were_checked_are_not_read_again_before_the_upload(saved_gemma):
    with prepare_upload(saved_gemma, "hf:me/mine") as prepared:
        before = files._file_digest.cache_info().misses
        prepared.check()
        assert files._file_digest.cache_info().misses == before


def test_a_file_that_changes_before_the_upload_is_noticed(hub, saved_gemma, tmp_path):
    folder = shutil.copytree(saved_gemma, tmp_path / "embedder")
    with prepare_upload(folder, "hf:me/mine") as prepared:
        (folder / "joint.safetensors").write_bytes(b"other weights")
        with pytest.raises(InputError, match="'joint.safetensors' changed"):
            upload(prepared)
    assert not hub.requests


def test_a_file_that_changes_during_the_upload_is_noticed(hub, saved_gemma, tmp_path, monkeypatch):
    folder = shutil.copytree(saved_gemma, tmp_path / "embedder")

    def change(prepared):
        (folder / "joint.safetensors").write_bytes(b"other weights")

    monkeypatch.setattr(publish_module, "_upload_to_hugging_face", change)
    with prepare_upload(folder, "hf:me/mine") as prepared:
        with pytest.raises(InputError, match="'joint.safetensors' changed.*upload it again"):
            upload(prepared)


def test_the_copy_is_deleted_after_an_error(saved_gemma, scratch):
    with pytest.raises(KeyboardInterrupt), prepare_upload(saved_gemma, "hf:me/mine"):
        raise KeyboardInterrupt
    assert list(scratch.iterdir()) == [scratch / "planted"]


@pytest.mark.parametrize("requested", ["data/{}", "{}"])
@pytest.mark.parametrize("name", ["sample", "EmotionClassification", "letters"])
@pytest.mark.parametrize("task_data", ["copies/mine", None])
def test_a_result_is_published_as_of_the_data_that_it_was_of(name, requested, task_data):
    one = result(task=name)
    one.inputs["task"] = SHA
    one.experiment.update(task=requested.format(name), task_data=task_data)
    del one.task["source"], one.task["path"]
    published = publish_module._result_without_paths(one)
    for identity in (data_source, mteb_task, data_key):
        assert identity(published) == identity(one)
    assert "data/" not in str(published) and "copies" not in str(published)


def test_the_names_of_other_files_are_not_published(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    write_folder(folder)
    (folder / "private.csv").touch()
    one = result(task="mine")
    one.task["notes"] = list(load_task(str(folder)).notes)
    assert "private" not in str(publish_module._result_without_paths(one))


def test_a_folder_of_a_built_in_models_name_is_not_published_as_that_model(tmp_path):
    folder = shutil.copytree(BUILTIN_FOLDER / "tiny_gemma", tmp_path / "tiny_gemma")
    options = dict(kind="gemma_only", llm_layers=1, llm_preset=str(folder))
    build_embedder(Experiment(**options)).save(tmp_path / "saved", True)
    with prepare_upload(tmp_path / "saved", "hf:me/mine") as prepared:
        manifest = json.loads((prepared.folder / "embedder.json").read_text())
        assert prepared.license == "gemma"
    assert manifest["presets"]["llm_preset"]["name"] == "tiny_gemma (local files)"
