"""Publishing, against a stand-in of the hubs: what arrives, what is refused, what stays secret."""

import json
import os
import shutil

import numpy as np
import pytest
from made_presets import write_gemma
from made_results import result
from stand_in_hub import SIGNATURE, stand_in

from embedder_helpers.__main__ import main
from embedder_helpers.config import Experiment
from embedder_helpers.embedder import build_embedder
from embedder_helpers.publish import address, staged
from embedder_helpers.result import write_result
from embedder_helpers.saved import load, save

TOKEN = "hf_a-secret-that-nobody-may-see"
TEXTS = ["It works.", "No."]


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory):
    """The folder of a saved hybrid, untrained, and its embeddings of TEXTS."""
    embedder = build_embedder(Experiment(fusion="add", llm_layers=1, max_tokens=32))
    folder = save(embedder, tmp_path_factory.mktemp("publish") / "hybrid")
    return folder, embedder.encode(TEXTS)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """One of few files."""
    embedder = build_embedder(Experiment(kind="gemma_only", llm_layers=1))
    return save(embedder, tmp_path_factory.mktemp("publish") / "small")


@pytest.fixture
def no_account(monkeypatch, tmp_path):
    """An empty home, and no token anywhere."""
    import huggingface_hub.constants
    import kagglehub.config

    for name in ("HUGGING_FACE_TOKEN", "HF_TOKEN", "KAGGLE_API_TOKEN", "KAGGLE_KEY"):
        monkeypatch.setenv(name, "")  # what publishing sets is undone with it
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    monkeypatch.setattr(kagglehub.config, "DEFAULT_KAGGLE_CREDENTIALS_FOLDER", str(tmp_path))


@pytest.fixture
def hub(no_account, monkeypatch):
    """A stand-in of both hubs, in the place of both, with an account.

    Hugging Face's client takes the address as HF_ENDPOINT gives it when it is imported. Kaggle's
    has a table of addresses, none of them with a free port.
    """
    import huggingface_hub.constants
    from kagglesdk import kaggle_env

    with stand_in(TOKEN) as server:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        table = kaggle_env._env_to_endpoint
        # To name its caller to Kaggle, the client looks at the whole stack for each request.
        monkeypatch.setattr("kagglehub.clients.get_user_agent", lambda: "tests")
        monkeypatch.setitem(table, kaggle_env.KaggleEnv.PROD, server.url)
        monkeypatch.setenv("HUGGING_FACE_TOKEN", TOKEN)
        monkeypatch.setenv("KAGGLE_API_TOKEN", TOKEN)
        yield server


@pytest.fixture(autouse=True)
def nothing_secret_is_told(capfd, caplog):
    """No test's output may hold the token, or the signature of an address."""
    yield
    out, err = capfd.readouterr()
    for secret in (TOKEN, SIGNATURE):
        assert secret not in out + err + caplog.text


@pytest.fixture
def run(capfd):
    """Runs the command; gives its exit status, output and last words on stderr."""

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


def arrived(files, folder):
    """Writes what a hub got, as a download would."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


@pytest.mark.parametrize("to", ["hf:me/mine", "kaggle:me/mine"])
def test_what_arrives_is_what_was_shown_and_gives_the_same_embeddings(
    to, run, hub, hybrid, tmp_path
):
    folder, expected = hybrid
    before = content(folder)
    hub.busy = 1 if to.startswith("hf") else 0  # its client says so, and tries again
    status, out, _ = run(folder, "--to", to)
    assert status == 0 and f"published: {address(to).page}" in out
    with staged(folder, to) as one:
        assert hub.repos["me/mine"] == content(one.folder)
    assert content(folder) == before
    there = load(arrived(hub.repos["me/mine"], tmp_path / "there"))
    np.testing.assert_array_equal(there.encode(TEXTS), expected)


def test_a_new_repository_is_private_unless_asked_for(run, hub, small):
    run(small, "--to", "hf:me/hidden")
    run(small, "--to", "hf:me/open", "--public")
    assert [hub.made[name]["private"] for name in ("me/hidden", "me/open")] == [True, False]
    run(small, "--to", "kaggle:me/hidden-too")
    assert hub.made["me/hidden-too"]["isPrivate"]
    asked = len(hub.asked)
    status, _, told = run(small, "--to", "kaggle:me/other", "--public")
    assert status == 2 and "kagglehub makes private models only" in told
    assert len(hub.asked) == asked


def test_a_public_repository_gets_nothing_without_public(run, hub, small):
    hub.repos["me/open"], hub.made["me/open"] = {}, {"private": False}
    status, _, told = run(small, "--to", "hf:me/open")
    assert status == 2 and "is there and public: add --public" in told
    assert hub.repos["me/open"] == {}


def test_publishing_again_replaces_the_embedder_and_leaves_what_is_not_its_own(run, hub, small):
    hub.made["me/mine"] = {"private": True}
    hub.repos["me/mine"] = {"gemma/config.json": b"old", "figure.png": b"theirs"}
    assert run(small, "--to", "hf:me/mine")[0] == 0
    assert "gemma/config.json" not in hub.repos["me/mine"]
    assert hub.repos["me/mine"]["figure.png"] == b"theirs"


def test_kaggle_is_told_the_licence_by_its_name_and_gets_a_version_the_second_time(run, hub, small):
    for _ in range(2):
        assert run(small, "--to", "kaggle:me/mine")[0] == 0
    assert hub.made["me/mine/keras"]["licenseName"] == "Apache 2.0"
    assert hub.asked[-1].endswith("CreateModelInstanceVersion")


@pytest.mark.parametrize(
    ("to", "where", "status", "words"),
    [
        ("hf:me/mine", "repos/create", 401, "does not know who publishes me/mine (401): set HUGG"),
        ("hf:me/mine", "", 403, "does not let this account write me/mine (403): check that 'me'"),
        ("hf:me/mine", "commit", 403, "does not let this account write me/mine (403)"),
        ("hf:me/mine", "commit", 409, "Hugging Face refuses me/mine (409)"),
        ("kaggle:me/mine", "GetModel", 401, "does not know who publishes me/mine (401): set KAGG"),
        ("kaggle:me/mine", "Model", 403, "does not let this account write me/mine (403)"),
        ("kaggle:me/mine", "CreateModelInstance", 409, "Kaggle refuses me/mine (409)"),
        ("kaggle:me/mine", "storage", 400, "could not be sent to Kaggle (BackendError)"),
    ],
)
def test_a_refusal_is_told_in_a_sentence_with_what_to_do(to, where, status, words, run, hub, small):
    hub.refuse = {where: status}
    code, _, told = run(small, "--to", to)
    assert code == 2 and told.startswith("error: ") and words in told
    assert "me/mine" not in hub.repos or not hub.repos["me/mine"]


@pytest.mark.parametrize("to", ["hf:me/mine", "kaggle:me/mine"])
def test_a_service_that_is_not_there_is_told(to, run, hub, small):
    hub.shutdown()
    hub.server_close()
    code, _, told = run(small, "--to", to)
    assert code == 2 and "see that the network is on" in told


@pytest.mark.parametrize(
    ("to", "secret"), [("hf:me/mine", "HUGGING_FACE_TOKEN"), ("kaggle:me/mine", "KAGGLE_API_TOKEN")]
)
def test_without_an_account_the_secret_is_named(to, secret, run, no_account, small):
    code, _, told = run(small, "--to", to)
    assert code == 2 and f"has to know who publishes: set {secret}" in told


def test_a_dry_run_shows_all_and_asks_nobody(run, hub, small):
    status, out, _ = run(small, "--to", "hf:me/mine", "--dry-run")
    assert status == 0 and hub.asked == []
    with staged(small, "hf:me/mine") as one:
        for name, data in content(one.folder).items():
            assert f"{len(data):>15,}  {name}" in out
        total = sum(map(len, content(one.folder).values()))
        assert f"{total:>15,}  bytes in" in out
        assert (one.folder / "README.md").read_text() in out
    assert "private if it is new" in out and "licence:    apache-2.0" in out


@pytest.mark.parametrize(
    ("to", "words"),
    [
        ("me/mine", "must be kaggle:owner/model or hf:owner/model"),
        ("hf:mine", "must be kaggle:owner/model or hf:owner/model"),
        ("hf:me/mine/more", "must be kaggle:owner/model or hf:owner/model"),
        ("hf:me/mi--ne", "Hugging Face takes letters"),
        ("hf:/mine", "Hugging Face takes letters"),
        ("hf:me/mine.git", "Hugging Face takes letters"),
        ("hf:me/my model", "Hugging Face takes letters"),
        ("kaggle:me/my_model", "Kaggle takes letters"),
        ("kaggle:me/-model", "Kaggle takes letters"),
    ],
)
def test_an_address_that_no_hub_takes_is_told(to, words, run, small):
    status, _, told = run(small, "--to", to, "--dry-run")
    assert status == 2 and words in told


def test_a_folder_that_holds_no_embedder_is_told(run, tmp_path):
    status, _, told = run(tmp_path, "--to", "hf:me/mine", "--dry-run")
    assert status == 2 and "holds no saved embedder" in told


@pytest.fixture(scope="module")
def of_a_folder(tmp_path_factory):
    """A saved embedder whose Gemma is a folder of this machine; its result tells more folders."""
    tmp_path = tmp_path_factory.mktemp("machine")
    write_gemma("gemma3", 3, tmp_path / "my_gemma")
    keys = dict(kind="gemma_only", llm_preset=str(tmp_path / "my_gemma"), llm_layers=2)
    embedder = build_embedder(Experiment(**keys))
    private = {"task": str(tmp_path / "letters"), "states_dir": str(tmp_path / "states")}
    told = result(cutoffs=(2,), **keys, **private, task_data=str(tmp_path / "data"))
    told.task.update(texts={"drawn": 4, "scored": 4}, name="letters")
    for name, with_gemma in (("part", False), ("whole", True)):
        save(embedder, tmp_path / name, with_gemma, told)
    write_result(result("roberta_only", (), task="letters"), tmp_path / "letters-roberta.json")
    return tmp_path


def test_a_gemma_that_others_do_not_have_is_told(run, of_a_folder):
    status, _, told = run(of_a_folder / "part", "--to", "hf:me/mine", "--dry-run")
    assert status == 2 and "is a folder of this machine" in told and "--llm" in told


@pytest.mark.parametrize(
    ("llm", "words"),
    [
        ("hf://google", "must be what others can fetch"),
        ("gemma_2b_em", "did you mean 'gemma_2b_en'"),
    ],
)
def test_a_handle_that_is_none_is_told(llm, words, run, of_a_folder):
    part = of_a_folder / "part"
    status, _, told = run(part, "--to", "hf:me/mine", "--llm", llm, "--dry-run")
    assert status == 2 and words in told
    status, _, told = run(part, "--to", "hf:me/mine", "--llm", of_a_folder / "my_gemma")
    assert status == 2 and "must be what others can fetch" in told


def test_the_copy_reads_gemma_from_the_handle_and_names_no_folder_of_this_machine(of_a_folder):
    for name, llm in (("part", "hf://me/gemma"), ("whole", None)):
        with staged(of_a_folder / name, "hf:me/mine", llm=llm) as one:
            files = content(one.folder)
            assert not [path for path, data in files.items() if str(of_a_folder).encode() in data]
            assert b"Gemma Terms of Use" in files["NOTICE"]
            told = json.loads(files["embedder.json"])
            assert told["experiment"]["llm_preset"] == (llm or "my_gemma")
            assert told["result"]["experiment"]["task"] == "letters"
            assert not told["result"]["experiment"]["states_dir"]


def test_a_copy_with_its_gemma_inside_loads_where_the_folder_is_gone(
    of_a_folder, tmp_path, monkeypatch
):
    expected = load(of_a_folder / "whole").encode(TEXTS)
    with staged(of_a_folder / "whole", "hf:me/mine") as one:
        arrived(content(one.folder), tmp_path / "there")
    monkeypatch.chdir(tmp_path)
    (of_a_folder / "my_gemma").rename(tmp_path / "elsewhere")
    np.testing.assert_array_equal(load(tmp_path / "there").encode(TEXTS), expected)
    (tmp_path / "elsewhere").rename(of_a_folder / "my_gemma")


def test_files_that_are_not_the_embedders_are_not_sent(small, tmp_path):
    copy = shutil.copytree(small, tmp_path / "copy")
    (copy / "diary.txt").write_text("private")
    with staged(copy, "hf:me/mine") as one:
        assert "diary.txt" not in content(one.folder)


def test_results_beside_the_folder_are_told_in_the_card(of_a_folder):
    with staged(of_a_folder / "whole", "hf:me/mine") as one:
        text = (one.folder / "README.md").read_text(encoding="utf-8")
    assert "| RoBERTa only" in text and "| Gemma only" in text


def test_results_that_are_asked_for_must_be_there(run, small, tmp_path):
    status, _, told = run(small, "--to", "hf:me/mine", "--results", tmp_path, "--dry-run")
    assert status == 2 and "holds no results" in told


def test_the_copy_is_gone_afterwards(small):
    with staged(small, "hf:me/mine") as one:
        place = one.folder
    assert not os.path.exists(place)
