"""Damaged files: noticed, replaced, or of no effect; never another answer, never a traceback."""

import json
import random
import shutil
import tempfile
from pathlib import Path

import forked
import pytest
import small_run
from damages import NOT_FILES, damage
from orderly import LETTERS, Commands
from rounds import seeds

from embedder_helpers.errors import InputError
from embedder_helpers.results.tables import find_results

pytestmark = pytest.mark.slow

TEXTS = ["The rain fell on day 3.", "The sun shone, and nobody measured it.", "é"]


@pytest.fixture(scope="module")
def commands():
    return Commands()


def files_read_back(folder):
    """The files that a later run reads: results, predictions, saved embedders, hidden states."""
    patterns = ("out/*.json", "out/predictions/*", "out/embedder-*/**/*", "states/**/k*")
    return sorted(
        path for pattern in patterns for path in folder.glob(pattern) if path.stat().st_size
    )


def choose(paths, chance):
    return chance.choice([path for path in paths if path.is_file()])


@pytest.mark.parametrize("seed", seeds(1))
def test_a_damaged_result_is_as_it_was_or_missing(undisturbed, seed):
    before = find_results(undisturbed.folder / "out")
    with tempfile.TemporaryDirectory() as parent:
        for trial in range(100):
            chance, folder = random.Random(100 * seed + trial), Path(parent) / str(trial)
            shutil.copytree(undisturbed.folder / "out", folder)
            path = choose(sorted(folder.glob("*.json")), chance)
            way = damage(path, chance)
            try:
                found = find_results(folder)
            except InputError as error:
                assert len(str(error)) <= LETTERS, way
                continue
            missing = before.keys() - found.keys()
            assert missing <= {path.name} and found.items() <= before.items(), (trial, way)


def encode(folder):
    """Embeddings, and predictions if there is a head; or the message of an InputError."""
    from embedder_helpers.models.architectures import load_embedder

    try:
        embedder = load_embedder(folder)
        encoded = embedder.encode(TEXTS).tobytes()
        return encoded, embedder.head and embedder.predict(TEXTS).to_json(), None
    except InputError as error:
        return None, None, str(error)


@pytest.fixture(scope="module")
def encoded(undisturbed, commands):
    """What each saved embedder makes of the texts."""
    folders = sorted(undisturbed.folder.glob("out/embedder-*"))
    encoded = {folder: commands.call(encode, folder) for folder in folders}
    assert len(encoded) == 3 and not any(message for *_, message in encoded.values())
    return encoded


@pytest.mark.parametrize("seed", seeds(1))
def test_a_damaged_embedder_is_refused_or_encodes_as_before(commands, encoded, seed):
    for trial in range(60):
        chance = random.Random(60 * seed + trial)
        source = chance.choice(list(encoded))
        with tempfile.TemporaryDirectory() as parent:
            folder = shutil.copytree(source, Path(parent) / "embedder")
            path = choose(sorted(folder.rglob("*")), chance)
            way = damage(path, chance)
            *answer, message = commands.call(encode, folder)
            where = trial, path.relative_to(folder), way
            assert message or tuple(answer) == encoded[source][:2], where
            assert len(message or "") <= LETTERS, where


GEMMA_ONLY = ["kind=gemma_only", "llm_layers=2", "save_embedder=false"]
AGAIN = ["sweep", "sweep.yaml", "--out", "again"]
AGAIN += [argument for setting in GEMMA_ONLY for argument in ("--set", setting)]


def scores_again(commands, folder):
    """Scores of Gemma alone, from the hidden states that should be in the cache; or the error."""
    ended = commands.run(folder, *AGAIN)
    if ended.status == 2:
        return ended.err.splitlines()[-1]
    (path,) = folder.glob("again/*.json")
    return json.loads(path.read_text())["experiments"]


@pytest.fixture(scope="module")
def scores(undisturbed, commands, tmp_path_factory):
    folder = tmp_path_factory.mktemp("scores") / "run"
    return scores_again(commands, shutil.copytree(undisturbed.folder, folder))


@pytest.mark.parametrize("seed", seeds(1))
def test_damaged_hidden_states_are_computed_again(commands, undisturbed, scores, seed):
    for trial in range(12):
        chance = random.Random(12 * seed + trial)
        with tempfile.TemporaryDirectory() as parent:
            folder = shutil.copytree(undisturbed.folder, Path(parent) / "run")
            path = choose(sorted(folder.glob("states/*/k*")), chance)
            way = damage(path, chance)
            found = scores_again(commands, folder)
            is_refused = way in NOT_FILES and path.name in found
            assert found == scores or is_refused, (trial, path.name, way, found)


@pytest.mark.parametrize("seed", seeds(5))
def test_a_sweep_replaces_what_is_damaged(undisturbed, place, seed):
    chance = random.Random(seed)
    folder = shutil.copytree(undisturbed.folder, place)
    done = []
    for path in chance.sample(files_read_back(folder), chance.choice([1, 1, 2, 5])):
        if path.is_file():
            done.append((str(path.relative_to(folder)), damage(path, chance)))
    status, log = forked.run(folder, small_run.sweep_and_report)
    assert "Traceback" not in log, (done, log)
    if status == 0:
        wrong = small_run.differences(folder, undisturbed.contents)
        assert not wrong, done
    else:  # something has a file's name that is not ours to remove
        assert status in (1, 2) and any(way in NOT_FILES for _, way in done), log
