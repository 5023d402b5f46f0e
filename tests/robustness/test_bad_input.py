"""Whatever is brought: it works, or one sentence says what is wrong; within seconds and memory."""

import contextlib
import csv
import datetime
import decimal
import io
import json
import os
import shutil
import tempfile
from pathlib import Path

import hypothesis
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import strategies as st
from odd_inputs import as_json, damaged_bytes, odd_document, scalars, values, words
from orderly import Commands
from rounds import FAILURES, FIRST_SEED, ROUNDS

from embedder_helpers.config import Experiment, settings
from embedder_helpers.config_files import CONFIG_FOLDER
from embedder_helpers.errors import InputError
from embedder_helpers.utils.json_files import write_json

pytestmark = pytest.mark.slow


def trials(count):
    """So many examples in a round; always the same ones, but for another first seed."""

    def decorate(test):
        test = hypothesis.settings(
            max_examples=count * ROUNDS,
            derandomize=FIRST_SEED == 0,
            database=None,
            report_multiple_bugs=False,
            deadline=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        )(test)
        return hypothesis.seed(FIRST_SEED)(test) if FIRST_SEED else test

    return decorate


def train_nothing():
    """Plan a sweep or a verdict only: what is fuzzed is read before the first training."""
    from embedder_helpers.experiments import sweep, verdict

    def stop(*_):
        raise InputError("nothing is trained here")

    sweep._run_all = lambda *_: {}
    verdict._run = stop


def orderly_commands(prepare=None):
    commands = Commands(prepare)
    yield commands
    assert not commands.kept, f"failures are kept in {FAILURES}"


@pytest.fixture(scope="module")
def planning():
    """Commands of which none trains."""
    yield from orderly_commands(train_nothing)


@pytest.fixture(scope="module")
def running():
    """Commands that do all they say."""
    yield from orderly_commands()


@contextlib.contextmanager
def copy_of(folder, *names):
    """A copy of some files and folders, or of all, for one example."""
    with tempfile.TemporaryDirectory() as parent:
        copy = Path(parent) / "run"
        if not names:
            shutil.copytree(folder, copy)
        for name in names:
            source, target = folder / name, copy / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
        yield copy


# === Configs and settings ===

# Twenty lines that stand for a million values.
ALIASES = "a0: &a0 [x, x]\n" + "".join(
    f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 20)
)

names = st.sampled_from(sorted(settings()))
files = st.sampled_from(["weather", "gemma", "roberta", "sweep.yaml", "gemma/config.json"])
setting_values = values | files | st.sampled_from(["sample", "hybrid", "auto", "mean", "add"])
configs = (
    st.dictionaries(names | words, setting_values, max_size=4).map(as_json)  # JSON is YAML
    | st.fixed_dictionaries(
        {"each": st.dictionaries(names, st.lists(setting_values, max_size=40), max_size=6)}
    ).map(as_json)
    | st.fixed_dictionaries({"experiments": values}).map(as_json)
    | st.text("&*!:-[]{}#\n \t\"'%@|>?,.~<=0a\0é", max_size=60)
    | st.sampled_from(sorted(CONFIG_FOLDER.glob("*.yaml"))).flatmap(
        lambda path: damaged_bytes(path.read_bytes())
    )
    | st.sampled_from(
        [
            "[" * 5000,
            "{a: " * 5000,
            ALIASES,
            "a: &a {b: *a}",
            "? [a, b]\n: 1\n",
            "task: !!python/object/apply:os.system [exit]",
            "seed: 1\nseed: 2\n",
            "seed: 0o17\nepochs: 1_0\nlearning_rate: .inf\n",
            "task: 2024-13-45\n",
        ]
    )
)  # fmt: skip


@trials(40)
@hypothesis.given(content=configs)
def test_a_config_of_any_content(planning, inputs, content):
    with copy_of(inputs) as folder:
        raw = content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
        (folder / "odd.yaml").write_bytes(raw)
        planning.run(folder, "sweep", "odd.yaml", "--out", "out")


@trials(40)
@hypothesis.given(
    overrides=st.lists(
        st.tuples(names | words, setting_values.map(as_json) | words).map("=".join), max_size=3
    )
)
def test_any_override(planning, inputs, overrides):
    with copy_of(inputs) as folder:
        arguments = [argument for override in overrides for argument in ("--set", override)]
        planning.run(folder, "sweep", "sweep.yaml", "--out", "out", *arguments)


objects = values | st.sampled_from(
    [np.int64(3), np.float32(0.5), np.array([1, 2]), np.array(3), np.nan, pd.NA, pd.NaT,
     np.bool_(1), Path("weather"), b"bytes", {1, 2}, (1, 2), range(3), type, 1j,
     decimal.Decimal("0.1"), datetime.date.today(), pd.DataFrame({"a": [1]})]
)  # fmt: skip


@trials(100)
@hypothesis.given(chosen=st.dictionaries(names, objects, max_size=3))
def test_any_object_as_a_setting(chosen):
    try:
        experiment = Experiment(**chosen)
    except InputError as error:
        assert len(str(error)) <= 1200 and "\n" not in str(error)
    else:
        json.dumps(experiment.as_dict())
        hash(experiment)


# === Tables ===

odd_texts = st.text(max_size=12) | st.sampled_from(["It rains.", "The sun shone.", "x" * 70000])
labels = st.sampled_from([0, 1, "a", "b"])
rows = st.lists(
    st.fixed_dictionaries({"text": odd_texts, "label": labels}), min_size=0, max_size=12
) | st.lists(
    st.fixed_dictionaries(
        {"text": odd_texts | values, "label": labels | values},
        optional={"split": st.sampled_from(["train", "test", "validation"]) | scalars},
    )
    | st.dictionaries(words | st.sampled_from(["text", "label"]), values, max_size=3),
    max_size=6,
)
columns = st.sampled_from(
    [
        pa.array([1, 2, 3, 4] * 3), pa.array([1.0, 2.0, 1.0, None] * 3), pa.array(["a", "b"] * 6),
        pa.array(["a", "b", None] * 4).dictionary_encode(), pa.array([b"a", b"\xff"] * 6),
        pa.array([[1], [2]] * 6), pa.array([{"a": 1}] * 12), pa.array([True, False] * 6),
        pa.array([datetime.datetime(2024, 1, 1)] * 12), pa.array([decimal.Decimal("1.5")] * 12),
        pa.nulls(12), pa.array([2**64 - 1, 0] * 6, pa.uint64()),
        pa.array(["x y", "z"] * 6, pa.large_string()), pa.array([datetime.time(1, 2)] * 12),
        pa.array([datetime.timedelta(1)] * 12),
    ]
)  # fmt: skip


def to_csv(table):
    header = list(dict.fromkeys(name for row in table for name in row))
    file = io.StringIO()
    with contextlib.suppress(csv.Error):
        writer = csv.writer(file)
        writer.writerows([header, *([row.get(name) for name in header] for row in table)])
    return file.getvalue().encode("utf-8", "surrogatepass")


def to_jsonl(table):
    return "".join(as_json(row) + "\n" for row in table).encode()


def to_parquet(chosen):
    file = io.BytesIO()
    pyarrow.parquet.write_table(pa.table(chosen), file)
    return file.getvalue()


contents = (
    st.tuples(st.just("csv"), rows.map(to_csv))
    | st.tuples(st.just("jsonl"), rows.map(to_jsonl))
    | st.tuples(
        st.just("parquet"),
        st.fixed_dictionaries({"text": columns, "label": columns}, optional={"split": columns}).map(
            to_parquet
        ),
    )
)
tables = contents | contents.flatmap(
    lambda file: st.tuples(st.just(file[0]), damaged_bytes(file[1]))
)


@trials(60)
@hypothesis.given(table=tables, alone=st.booleans())
def test_a_table_of_any_content(planning, inputs, table, alone):
    ending, content = table
    with copy_of(inputs) as folder:
        name = f"odd.{ending}" if alone else f"odd/train.{ending}"
        if not alone:
            shutil.copytree(folder / "weather", folder / "odd")
            (folder / "odd" / "train.jsonl").unlink()
        (folder / name).write_bytes(content)
        task = name if alone else "odd"
        planning.run(folder, "sweep", "sweep.yaml", "--out", "out", "--set", f"task={task}")
        planning.run(folder, "predict", "nowhere", "--file", name)


# === Command lines ===

paths = st.sampled_from(
    [".", "out", "weather", "sweep.yaml", "nowhere", "out/report", "states", "gemma", "pipe",
     "loop", "weather/train.jsonl", "weather/train.jsonl/x", "embedder", "hf:a/b", "kaggle:a/b",
     "T4", "quickstart"]
)  # fmt: skip
options = st.sampled_from(
    ["--out", "--set", "--baselines", "--hours", "--on", "--text", "--file", "--text-column",
     "--llm", "--to", "--results", "--public", "--dir", "--clear", "--org", "--help", "--",
     "--seeds", "--sizes", "--encoder", "--cascade", "--cluster", "--cpus-per-worker", "--workers"]
)  # fmt: skip
commands = st.sampled_from(
    ["sweep", "verdict", "run", "estimate", "table", "report", "leaderboard", "mteb", "predict",
     "states"]
)  # fmt: skip
arguments = st.lists(
    st.tuples(options, paths | words).map(list) | (paths | words | options).map(lambda one: [one]),
    max_size=5,
).map(lambda parts: [word for part in parts for word in part])
usual = st.sampled_from(
    [["table", "out"], ["report", "out"], ["mteb", "out", "--org", "o", "--out", "m"],
     ["predict", "embedder", "--text", "rain"],
     ["predict", "embedder", "--file", "weather/test.jsonl"],
     ["publish", "embedder", "--dry-run", "--to", "hf:a/b"], ["states", "--dir", "states"],
     ["sweep", "sweep.yaml", "--out", "out"], ["estimate", "sweep.yaml"],
     ["verdict", "sweep.yaml", "--out", "verdict"]]
)  # fmt: skip
command_lines = st.tuples(usual | commands.map(lambda name: [name]), arguments).map(
    lambda parts: parts[0] + parts[1]
)


@trials(60)
@hypothesis.given(line=command_lines)
def test_any_command_line(planning, undisturbed, line):
    hypothesis.assume(not any(word.startswith(("/", "~", "..")) for word in line))
    with copy_of(undisturbed.folder) as folder:
        os.symlink("loop", folder / "loop")
        os.mkfifo(folder / "pipe")
        os.symlink(next(folder.glob("out/embedder-*-roberta_only-*")), folder / "embedder")
        planning.run(folder, *line)


# === Folders of strangers ===


@pytest.fixture(scope="module")
def embedders(undisturbed):
    """The saved embedders."""
    return sorted(undisturbed.folder.glob("out/embedder-*"))


def use_embedder(commands, folder):
    name = "embedder"
    commands.run(folder, "predict", name, "--text", "It rains.")
    commands.run(folder, "publish", name, "--to", "hf:a/b", "--dry-run")


@trials(25)
@hypothesis.given(data=st.data())
def test_a_strangers_manifest(running, embedders, data):
    source = data.draw(st.sampled_from(embedders))
    manifest = json.loads((source / "embedder.json").read_text())
    manifest.pop("checksum", None)
    manifest = data.draw(odd_document(manifest))
    with tempfile.TemporaryDirectory() as parent:
        folder = shutil.copytree(source, Path(parent) / "embedder")
        (folder / "embedder.json").write_text(as_json(manifest))
        use_embedder(running, Path(parent))


@trials(15)
@hypothesis.given(data=st.data())
def test_a_strangers_preset_inside_a_saved_embedder(running, embedders, data):
    source = data.draw(st.sampled_from(embedders))
    files = sorted(path.relative_to(source) for path in source.glob("*/**/*") if path.is_file())
    hypothesis.assume(files)
    name = data.draw(st.sampled_from(files))
    with tempfile.TemporaryDirectory() as parent:
        folder = shutil.copytree(source, Path(parent) / "embedder")
        (folder / name).write_bytes(data.draw(odd_file(source / name)))
        write_manifest_with_checksums(folder)
        use_embedder(running, Path(parent))


def odd_file(path):
    content = path.read_bytes()
    damaged = damaged_bytes(content)
    if path.suffix != ".json":
        return damaged
    return damaged | odd_document(json.loads(content)).map(lambda odd: as_json(odd).encode())


def write_manifest_with_checksums(folder):
    import hashlib

    manifest = json.loads((folder / "embedder.json").read_text())
    manifest.pop("checksum", None)
    for name in manifest["files"]:
        manifest["files"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    write_json(folder / "embedder.json", manifest)


@trials(15)
@hypothesis.given(data=st.data())
def test_a_strangers_preset(running, inputs, data):
    role, name, kind = data.draw(
        st.sampled_from([("llm", "gemma", "gemma_only"), ("slm", "roberta", "roberta_only")])
    )
    files = sorted(p.relative_to(inputs) for p in (inputs / name).rglob("*") if p.is_file())
    file = data.draw(
        st.sampled_from([*files, *[path for path in files if path.suffix == ".json"] * 3])
    )
    with copy_of(inputs) as folder:
        (folder / file).write_bytes(data.draw(odd_file(inputs / file)))
        sets = [f"kind={kind}", "epochs=0", "llm_layers=1", "save_embedder=false"]
        arguments = [argument for one in sets for argument in ("--set", one)]
        running.run(folder, "sweep", "sweep.yaml", "--out", "out", *arguments)
        running.run(folder, "estimate", "sweep.yaml")


@trials(40)
@hypothesis.given(data=st.data())
def test_a_strangers_results(planning, undisturbed, data):
    paths = sorted(undisturbed.folder.glob("out/*.json"))
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "out"
        folder.mkdir()
        for path in paths:
            result = json.loads(path.read_text())
            result.pop("checksum", None)
            odd = data.draw(odd_document(result))
            (folder / path.name).write_text(as_json(odd))
        for command in (["table"], ["report"], ["mteb", "--org", "o", "--out", "m"]):
            planning.run(Path(parent), command[0], "out", *command[1:])
