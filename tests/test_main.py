"""The command line: sweeps, tables, hidden states; invalid input is one sentence and status 2."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from embedder_helpers.__main__ import main
from embedder_helpers.builtin import BUILTIN_FOLDER, BUILTIN_PRESETS
from embedder_helpers.models import presets
from embedder_helpers.models.batching import from_lengths
from embedder_helpers.models.cache_folder import spec_prefix
from embedder_helpers.models.gemma import HiddenStateSpec
from embedder_helpers.models.hidden_states import HiddenStateCache
from embedder_helpers.models.shard_file import shard_path, write_shard
from embedder_helpers.results.tables import CSV_FILE, LAYERS_FIGURE, SCORES_FIGURE, TABLE_FILE
from embedder_helpers.utils import progress


def error_of(capsys, *arguments):
    """The line on standard error with which a command ends; nothing is on standard output."""
    assert main([str(argument) for argument in arguments]) == 2
    output = capsys.readouterr()
    (line,) = [line for line in output.err.splitlines() if line.startswith("error: ")]
    assert output.err.endswith(f"{line}\n") and not output.out
    return line


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("llm_layers", "--set 'llm_layers': write setting=value"),
        ("=1", "write setting=value"),
        ("llm_layers=[1", "the value is not YAML"),
        ("llm_layers=0", "llm_layers is 0, but must be"),
        ("llm_layers=ten", "llm_layers is 'ten', but must be"),
        ("pooling=cls", "pooling is 'cls', but must be one of mean, max, first, last"),
        ("learning_rate=-1", "learning_rate is -1"),
        ("llm_layer=1", "unknown setting 'llm_layer'; did you mean 'llm_layers'"),
    ],
)
def test_a_bad_setting_is_reported(capsys, tmp_path, setting, words):
    assert words in error_of(capsys, "sweep", "quickstart", "--set", setting, "--out", tmp_path)


def test_a_missing_config_is_reported_with_the_nearest_name(capsys, tmp_path):
    error = error_of(capsys, "sweep", "quickstrat", "--out", tmp_path)
    assert "did you mean 'quickstart'" in error


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("task: [", "as YAML"),
        ("- sample\n", "must hold `setting: value` lines"),
        ("kind: both\n", "kind is 'both'"),
        ("color: red\n", "unknown setting 'color'"),
    ],
)
def test_a_bad_config_is_reported_with_its_path(capsys, tmp_path, content, words):
    path = tmp_path / "my.yaml"
    path.write_text(content)
    error = error_of(capsys, "sweep", path, "--out", tmp_path / "out")
    assert words in error and str(path) in error


def test_a_bad_config_among_good_ones_is_reported_before_any_runs(capsys, tmp_path):
    out = tmp_path / "out"
    assert "no config file 'zzz'" in error_of(capsys, "sweep", "quickstart", "zzz", "--out", out)
    assert not out.exists()


def test_an_unknown_task_is_reported_with_the_nearest_one(capsys, tmp_path):
    setting = "task=EmotionClasification"
    error = error_of(capsys, "sweep", "quickstart", "--set", setting, "--out", tmp_path)
    assert "did you mean 'EmotionClassification'" in error


def test_a_task_folder_without_files_is_reported(capsys, tmp_path):
    error = error_of(capsys, "sweep", "quickstart", "--set", f"task={tmp_path}", "--out", tmp_path)
    assert "has no train split" in error


def test_an_output_folder_that_cannot_be_written_is_reported(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    error = error_of(capsys, "sweep", "quickstart", "--out", tmp_path / "file" / "results")
    assert "cannot be written" in error and "--out" in error


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("llm_preset=tiny_gema", "there is no preset 'tiny_gema'; did you mean 'tiny_gemma'"),
        ("llm_preset=./nowhere", "there is no folder './nowhere'"),
        ("slm_preset=tiny_gemma", "is a GemmaBackbone, but a RoBERTa model is needed"),
        ("llm_layers=19", "llm_layers is 19, but this Gemma has 18 layers"),
        ("llm_layers=[18, -1]", "names a layer twice"),
        ("max_tokens=513", "max_tokens is 513, but tiny_roberta has 512 positions"),
    ],
)
def test_a_setting_that_does_not_fit_the_presets_is_an_error_before_any_computation(
    capsys, tmp_path, setting, words
):
    assert words in error_of(capsys, "sweep", "quickstart", "--set", setting, "--out", tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("folder", [".", "nowhere"])
def test_a_table_of_an_empty_folder_says_how_to_create_results(capsys, tmp_path, folder):
    error = error_of(capsys, "table", tmp_path / folder)
    assert "contains no results: run an experiment with --out" in error


@pytest.mark.parametrize(
    "arguments", [[], ["sweep"], ["fly"], ["sweep", "quickstart", "--sets", "a"]]
)
def test_an_invalid_command_ends_with_the_usage(capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: python -m embedder_helpers" in capsys.readouterr().err


RUN = ["sweep", "quickstart", "--set", "kind=gemma_only", "--set", "llm_layers=1", "--out"]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The folder of one short run, Gemma alone after its first layer."""
    folder = tmp_path_factory.mktemp("results")
    assert main([*RUN, str(folder)]) == 0
    return folder


def test_a_sweep_leaves_its_results_their_tables_and_figure_and_nothing_else(results):
    (result,) = results.glob("*.json")
    assert result.name.startswith("sample-gemma_only-k1-")
    assert {path.name for path in results.iterdir()} == {
        result.name,
        TABLE_FILE,
        SCORES_FIGURE,
        CSV_FILE,
    }
    assert (results / SCORES_FIGURE).read_bytes().startswith(b"\x89PNG")


def test_the_result_holds_what_was_run_and_the_scores(results):
    found = json.loads(next(results.glob("*.json")).read_text())
    assert (found["experiment"]["kind"], found["cutoffs"], found["blocks"]) == (
        "gemma_only",
        [1],
        18,
    )
    single = [run["accuracy"] for run in found["experiments"]]
    assert len(single) == 10
    assert found["scores"]["accuracy"] == pytest.approx(sum(single) / 10)
    assert found["head"] is None and found["history"] == []


def test_the_table_names_the_embedder_and_its_cutoff_in_both_spellings(results):
    lines = (results / TABLE_FILE).read_text().splitlines()
    cells = [cell.strip() for cell in lines[2].split("|")]
    assert cells[1:5] == ["Gemma only [1]", "1", "-18", "sample"]


def test_a_second_run_reads_the_result_and_does_not_rewrite_it(results, capsys):
    (result,) = results.glob("*.json")
    before = result.stat().st_mtime_ns, result.read_bytes()
    assert main([*RUN, str(results)]) == 0
    assert f"1 experiments, 1 of them finished in {results}" in capsys.readouterr().err
    assert (result.stat().st_mtime_ns, result.read_bytes()) == before


def test_run_is_another_name_of_sweep(results, capsys):
    assert main(["run", *RUN[1:], str(results)]) == 0
    assert f"1 experiments, 1 of them finished in {results}" in capsys.readouterr().err


def test_an_incomplete_result_file_is_recomputed(results, tmp_path, capsys):
    (result,) = results.glob("*.json")
    (tmp_path / result.name).write_text(result.read_text()[:100])
    assert main([*RUN, str(tmp_path)]) == 0
    again, before = (json.loads((f / result.name).read_text()) for f in (tmp_path, results))
    assert again["scores"] == before["scores"]


def test_the_table_command_prints_the_runs_table(results, capsys):
    assert main(["table", str(results)]) == 0
    assert (results / TABLE_FILE).read_text().strip() in capsys.readouterr().out


def write_config(folder, *experiments):
    """A config with some experiments of Gemma's first layers, or a damaged preset."""
    half = folder / "half"
    half.mkdir()
    source = BUILTIN_FOLDER / "tiny_roberta"
    (half / "config.json").write_text((source / "config.json").read_text())
    size = (source / "model.weights.h5").stat().st_size
    (half / "model.weights.h5").write_bytes(bytes(size))
    kinds = {
        "gemma": "{kind: gemma_only, each: {llm_layers: [1, 2, 3]}}",
        "broken": f"{{kind: roberta_only, epochs: 0, slm_preset: {half}}}",
    }
    path = folder / "several.yaml"
    lines = [f"  - {kinds[name]}\n" for name in experiments]
    path.write_text("task: sample\nexperiments:\n" + "".join(lines))
    return path


@pytest.fixture(scope="module")
def partly_failed(tmp_path_factory):
    """The exit status and the folder of a sweep of which one experiment fails."""
    folder = tmp_path_factory.mktemp("partly")
    status = main(["sweep", str(write_config(folder, "gemma", "broken")), "--out", str(folder)])
    return status, folder


def test_a_sweep_of_which_some_experiments_failed_ends_in_status_1(partly_failed):
    status, folder = partly_failed
    assert status == 1 and len(list(folder.glob("*.json"))) == 3


def test_the_table_of_a_sweep_holds_what_was_finished(partly_failed):
    _, folder = partly_failed
    text = (folder / TABLE_FILE).read_text()
    assert text.count("| Gemma only [1-3] ") == 2  # over the cutoffs, and with every column
    assert "RoBERTa only" not in text
    assert (folder / LAYERS_FIGURE).read_bytes().startswith(b"\x89PNG")


def test_a_failed_experiment_is_reported_at_the_end(partly_failed, capsys):
    _, folder = partly_failed
    assert main(["sweep", str(folder / "several.yaml"), "--out", str(folder)]) == 1
    (line,) = [
        line for line in capsys.readouterr().err.splitlines() if line.startswith("not finished")
    ]
    assert line.startswith("not finished: sample-roberta_only-untrained-")
    assert "slm_preset" in line and "cannot be loaded by keras-hub" in line


def test_experiments_skipped_for_lack_of_time_are_reported(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("embedder_helpers.experiments.session.fits_deadline", lambda *_: False)
    config = write_config(tmp_path, "gemma")
    error = error_of(capsys, "sweep", config, "--out", tmp_path / "out", "--hours", "0.1")
    assert "skipped for lack of time (HOURS, or --hours)" in error
    assert not list((tmp_path / "out").glob("*.json"))


def test_impossible_hours_are_reported_before_anything_is_loaded(capsys, tmp_path):
    config = write_config(tmp_path, "gemma")
    error = error_of(capsys, "sweep", config, "--out", tmp_path, "--hours", "-2")
    assert "hours is -2.0, but must be a number above 0" in error


def test_a_sweep_of_which_all_experiments_failed_ends_in_status_2(capsys, tmp_path):
    config = write_config(tmp_path, "broken")
    assert "cannot be loaded by keras-hub" in error_of(capsys, "sweep", config, "--out", tmp_path)


@pytest.fixture
def requested(monkeypatch):
    """The experiments that a command asks for; none is run."""
    found = []

    def sweep(experiments, out, hours, cluster, cpus_per_worker):
        found.extend(experiments)
        return [], {}

    monkeypatch.setattr("embedder_helpers.experiments.sweep.run_experiments", sweep)
    monkeypatch.setattr("embedder_helpers.results.report.summarize", lambda results, out: None)
    return found


def test_the_baselines_option_adds_both_baselines_of_each_hybrid(requested, tmp_path):
    options = ["--set", "llm_layers=2", "--set", "seed=7", "--out", str(tmp_path)]
    assert main(["sweep", "quickstart", "--baselines", *options]) == 0
    assert [experiment.kind for experiment in requested] == ["roberta_only", "gemma_only", "hybrid"]


def test_a_setting_holds_for_every_experiment_of_every_config(requested, tmp_path):
    setting = ["--set", "max_train_texts=null", "--set", "seed=7", "--out", str(tmp_path)]
    assert main(["sweep", "quickstart", "quickstart_sweep", *setting]) == 0
    assert len(requested) > 2
    values = {(experiment.max_train_texts, experiment.seed) for experiment in requested}
    assert values == {(None, 7)}


# The verdict


@pytest.fixture
def asked(monkeypatch):
    """The arguments of the verdict that a command asks for; none is run."""
    found = types.SimpleNamespace(
        sentence="It is better.", notes=["A note."], table=lambda: pd.DataFrame({"a": [1]})
    )
    arguments = {}

    def verdict(hybrid, out, **options):
        arguments.update(options, hybrid=hybrid, out=out)
        return found

    monkeypatch.setattr("embedder_helpers.experiments.verdict.verdict", verdict)
    return arguments


def test_a_verdict_is_printed_with_its_notes_its_table_and_its_folder(asked, capsys):
    assert main(["verdict", "quickstart", "--set", "epochs=3", "--out", "there"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("It is better.\n\nA note.\n\n| a")
    assert printed.endswith("page, figures and tables: there\n")
    hybrid = asked.pop("hybrid")
    assert (hybrid.kind, hybrid.task, hybrid.epochs) == ("hybrid", "sample", 3)
    assert asked == {
        "out": "there", "seeds": [33, 34, 35], "sizes": (8, 32, 128, 512), "encoder": None,
        "hours": None, "cluster": None, "cpus_per_worker": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "seeds", "sizes"),
    [
        (["--set", "seed=7"], (33, 34, 35), (8, 32, 128, 512)),
        (["--seeds", "7", "--sizes", "4", "16"], [7], [4, 16]),
        (["--seeds", "1", "2", "--sizes"], [1, 2], []),
    ],
)
def test_seeds_and_sizes_of_a_verdict_are_options(asked, options, seeds, sizes):
    assert main(["verdict", "quickstart", *options]) == 0
    assert (asked["seeds"], asked["sizes"]) == (seeds, sizes)
    assert asked["out"] == Path("results/verdict_sample")


@pytest.mark.parametrize(("config", "is_named"), [("quickstart", False), ("ablation", True)])
def test_a_config_of_several_recipes_is_named(asked, capsys, config, is_named):
    assert main(["verdict", config]) == 0
    assert ("on the first one's settings" in capsys.readouterr().err) is is_named


def test_a_verdict_without_a_hybrid_is_reported(asked, capsys):
    error = error_of(capsys, "verdict", "quickstart", "--set", "kind=roberta_only")
    assert "the config has none: set kind: hybrid" in error and not asked


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--sizes", "0"], "sizes has 0"),
        (["--seeds", "-1"], "seed is -1"),
        (["--encoder", "./none"], "there is no folder './none'"),
        (["--hours", "0"], "hours is 0.0"),
        (["--set", "task=./none"], "./none"),
    ],
)
def test_bad_options_of_a_verdict_are_reported_before_anything_runs(
    capsys, tmp_path, monkeypatch, options, words
):
    monkeypatch.setattr("embedder_helpers.experiments.verdict.run_experiments", None)
    assert words in error_of(capsys, "verdict", "quickstart", "--out", tmp_path, *options)


@pytest.fixture
def states(tmp_path):
    """A folder with hidden states of two models, each of one text at one cutoff."""
    cache = HiddenStateCache(tmp_path / "states")
    for name in BUILTIN_PRESETS:
        role = "llm_preset" if name == "tiny_gemma" else "slm_preset"
        preset = presets.find_preset(role, name)
        model = types.SimpleNamespace(preset=preset, dtype="float32")
        folder, keys = cache.model_folder(model), [bytes(16)]
        folder.mkdir()
        values = from_lengths(np.zeros((2, preset.width), "float16"), [2])
        write_shard(shard_path(folder, spec_prefix(HiddenStateSpec(3, "rms")), keys), keys, values)
    return cache.folder


def models_in(folder):
    return sorted(path.parent.name.split("-")[0] for path in folder.glob("*/*.safetensors"))


def test_cached_hidden_states_are_listed_by_model_and_cutoff(capsys, states):
    assert main(["states", "--dir", str(states)]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split()[:5] == ["model", "cutoff", "norm", "texts", "gigabytes"]
    found = sorted((row.split()[0].split("-")[0], *row.split()[1:4]) for row in rows)
    assert found == [("tiny_gemma", "3", "rms", "1"), ("tiny_roberta", "3", "rms", "1")]


def test_an_empty_cache_is_reported_with_its_folder(capsys, tmp_path):
    assert main(["states", "--dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"no hidden states in {tmp_path}\n"


def test_the_hidden_states_of_one_model_are_deleted_by_its_name_in_the_listing(capsys, states):
    (model,) = [path.name for path in states.iterdir() if path.name.startswith("tiny_gemma-")]
    assert main(["states", "--dir", str(states), "--clear", model]) == 0
    assert models_in(states) == ["tiny_roberta"]
    assert "GB freed in" in capsys.readouterr().out


def test_the_hidden_states_of_all_models_are_deleted(states):
    assert main(["states", "--dir", str(states), "--clear"]) == 0
    assert models_in(states) == []


def test_a_model_without_hidden_states_is_reported(capsys, states):
    error = error_of(capsys, "states", "--dir", states, "--clear", "gemma_2b")
    assert "contains no hidden states of 'gemma_2b'" in error
    assert len(models_in(states)) == 2


def test_sweeps_and_the_states_command_share_the_default_folder(results, states_folder, capsys):
    assert main(["states"]) == 0
    assert "tiny_gemma-" in capsys.readouterr().out


# Classifying texts


class StandIn:
    """An embedder that calls every text a label, without a model."""

    def predict(self, texts, cascade=None):
        return pd.DataFrame({"text": texts, "label": "wet", "p(wet)": 0.75})


@pytest.fixture
def predict(monkeypatch, tmp_path):
    """Runs `predict` in a folder with a file of texts; returns the exit status."""
    loaded = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "embedder_helpers.models.architectures.load_embedder",
        lambda *arguments: loaded.append(arguments) or StandIn(),
    )
    rows = {"id": ["007", "008"], "text": ["=1+1", "Ein Schöner 😀"], "note": ["a,b", ""]}
    pd.DataFrame(rows).to_csv("in.csv", index=False)

    def run(*arguments):
        return main(["predict", "embedder", *map(str, arguments)])

    run.loaded = loaded
    return run


def read_strings(path):
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def test_predictions_follow_the_columns_of_the_file(predict, capsys):
    assert predict("--file", "in.csv", "--out", "new/out.csv") == 0
    table = read_strings("new/out.csv")
    assert list(table) == ["id", "text", "note", "label", "p(wet)"]
    assert table["id"].tolist() == ["007", "008"] and table["note"].tolist() == ["a,b", ""]
    assert table["text"][1] == "Ein Schöner 😀" and set(table["p(wet)"]) == {"0.75"}
    output = capsys.readouterr()
    assert not output.out and "texts: 2" in output.err


def test_values_of_json_lines_are_kept_as_they_are(predict):
    with open("in.jsonl", "w") as file:
        file.write('{"text": "a", "n": 1}\n{"text": "b", "more": [1, 2]}\n')
    assert predict("--file", "in.jsonl", "--out", "out.csv") == 0
    table = read_strings("out.csv")
    assert table["n"].tolist() == ["1", ""] and table["more"].tolist() == ["", "[1, 2]"]


def test_a_column_named_like_a_prediction_is_kept_and_marked(predict):
    pd.DataFrame({"text": ["a"], "label": ["dry"]}).to_csv("labeled.csv", index=False)
    assert predict("--file", "labeled.csv", "--out", "out.csv") == 0
    table = read_strings("out.csv")
    assert (table["label (file)"][0], table["label"][0]) == ("dry", "wet")
    assert predict("--file", "out.csv", "--out", "again.csv") == 0
    (row,) = read_strings("again.csv").to_dict("records")
    assert sorted(value for name, value in row.items() if "label" in name) == ["dry", "wet", "wet"]


def test_texts_are_written_as_they_are_so_that_they_can_be_joined(predict):
    assert predict("--file", "in.csv", "--out", "out.csv") == 0
    assert read_strings("out.csv")["text"].tolist() == read_strings("in.csv")["text"].tolist()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--file", "in.csv", "--out", "in.csv"], "the same file"),
        (["--file", "in.csv", "--out", "link.csv"], "the same file"),
        (["--text", "a", "--out", "out.json"], "end in .csv"),
        (["--text", "a", "--out", "."], "is a folder"),
        (["--text", "a", "--out", "in.csv/out.csv"], "cannot be written"),
        (["--text", "a", "--out", "x" * 5000], "cannot be the path"),
        (["--file", "x" * 5000], "cannot be the path"),
        (["--file", "nowhere.csv"], "no file nowhere.csv"),
        (["--file", "in.csv", "--text-column", "body"], "--text-column"),
        (["--text", " "], "--text"),
    ],
)
def test_bad_options_are_reported_before_the_model_is_loaded(predict, capsys, arguments, words):
    Path("link.csv").symlink_to("in.csv")
    before = Path("in.csv").read_bytes()
    assert predict(*arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line and len(line) < 500
    assert not predict.loaded and Path("in.csv").read_bytes() == before


def test_a_cascade_is_asked_for_with_its_probability(predict, capsys, monkeypatch):
    asked = []
    stand_in = StandIn.predict

    def predict_in_cascade(self, texts, cascade=None):
        asked.append(cascade)
        return stand_in(self, texts).assign(answered_by="roberta_only")

    monkeypatch.setattr(StandIn, "predict", predict_in_cascade)
    assert predict("--text", "a", "--cascade", "0.9") == 0
    assert "roberta_only" in capsys.readouterr().out
    assert predict("--text", "a") == 0
    assert asked == [0.9, None]


@pytest.mark.parametrize("probability", ["1.5", "-0.1", "nan"])
def test_a_cascade_s_probability_is_checked_before_the_model_is_loaded(
    predict, capsys, probability
):
    assert predict("--text", "a", f"--cascade={probability}") == 2
    assert "must be a probability from 0 to 1" in capsys.readouterr().err
    assert not predict.loaded


def test_a_tilde_is_the_home_folder(predict, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    assert predict("--text", "a", "--out", "~/out.csv") == 0
    assert predict("--file", "~/out.csv", "--out", "out.csv") == 0
    assert (tmp_path / "home" / "out.csv").is_file() and not (tmp_path / "~").exists()


# What reads the output


def run_module(*arguments, **options):
    environment = {**os.environ, **options.pop("environment", {})}
    return subprocess.Popen(
        [sys.executable, "-m", "embedder_helpers", *map(str, arguments)],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options,
    )  # fmt: skip


def test_letters_that_the_code_page_lacks_are_escaped(predict, monkeypatch):
    output = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", output)
    assert predict("--text", "Schöner 😀") == 0
    assert "Schöner \\U0001f600".encode("cp1252") in output.buffer.getvalue()


def test_standard_output_holds_the_table_alone(predict, capsys, monkeypatch):
    monkeypatch.setattr(progress, "DELAY", 0)  # bars are shown at once

    def predict_with_a_bar(self, texts, cascade=None):
        with progress.progress_bar(1, "embedding", "token") as bar:
            bar.update()
        return pd.DataFrame({"text": texts})

    monkeypatch.setattr(StandIn, "predict", predict_with_a_bar)
    assert predict("--text", "a") == 0
    output = capsys.readouterr()
    assert output.out.startswith("| text") and len(output.out.split()) == 7 and output.err


@pytest.mark.skipif(os.name != "posix", reason="needs a pipe")
def test_a_reader_that_ends_early_ends_a_command_without_a_word(results):
    process = run_module("table", results)
    process.stdout.close()
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 141
    assert b"Error" not in errors and b"Traceback" not in errors


@pytest.mark.skipif(os.name != "posix", reason="needs a shell that closes a stream")
@pytest.mark.parametrize("stream", ["1", "2"])
def test_a_command_works_with_a_closed_stream(results, stream):
    line = f'"$0" -m embedder_helpers table "$1" {stream}>&-'
    process = subprocess.run(["sh", "-c", line, sys.executable, results], timeout=300)
    assert process.returncode == 0


def test_secrets_in_the_error_of_a_library_are_not_shown(predict, capsys, monkeypatch):
    def fail(self, texts, cascade=None):
        raise ConnectionError("https://user:pw@host/?token=hf_secret")

    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(StandIn, "predict", fail)
    assert predict("--text", "a") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "ConnectionError" in line and "hf_secret" not in line and "pw@" not in line


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device without space")
def test_an_output_whose_disk_is_full_is_reported(results):
    with open("/dev/full", "w") as full:
        arguments = [sys.executable, "-m", "embedder_helpers", "table", str(results)]
        process = subprocess.run(arguments, stdout=full, stderr=subprocess.PIPE, timeout=300)
    *_, line = process.stderr.splitlines()
    assert process.returncode == 2 and line.startswith(b"error: ") and b"space" in line
    assert b"Traceback" not in process.stderr


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_interrupt_or_a_failing_disk_ends_a_command_in_one_sentence(
    predict, capsys, monkeypatch, error
):
    def fail(self, texts, cascade=None):
        raise error

    monkeypatch.setattr(StandIn, "predict", fail)
    assert predict("--text", "a") == (2 if isinstance(error, OSError) else 130)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(("error: ", "stopped"))


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs signals")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_sweep_that_is_stopped_says_so_and_leaves_no_parts_of_files(tmp_path, name):
    arguments = ["sweep", "quickstart", "--set", f"states_dir={tmp_path / 'states'}"]
    process = run_module(*arguments, "--out", tmp_path / "out")
    for line in process.stderr:
        if b"finished in" in line:  # the sweep has begun
            break
    process.send_signal(getattr(signal, name))
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 130
    assert errors.splitlines()[-1].startswith(b"stopped") and b"Traceback" not in errors
    assert not list((tmp_path / "out").glob(".*"))


# Disks that fail at the end


def test_a_table_that_cannot_be_written_is_still_printed(results, tmp_path, capsys):
    shutil.copytree(results, tmp_path / "copy")
    (tmp_path / "copy" / TABLE_FILE).unlink()
    (tmp_path / "copy" / TABLE_FILE).mkdir()
    assert main(["table", str(tmp_path / "copy")]) == 2
    output = capsys.readouterr()
    assert "| Gemma only [1]" in output.out
    assert f"cannot be written ({TABLE_FILE}: " in output.err.splitlines()[-1]


def test_a_sweep_whose_csv_cannot_be_written_ends_in_status_1_with_its_table(
    results, tmp_path, capsys
):
    shutil.copytree(results, tmp_path / "copy")
    (tmp_path / "copy" / CSV_FILE).unlink()
    (tmp_path / "copy" / CSV_FILE).mkdir()
    assert main([*RUN, str(tmp_path / "copy")]) == 1
    output = capsys.readouterr()
    assert "| Gemma only [1]" in output.out
    assert "cannot be written" in output.err.splitlines()[-1]


@pytest.mark.parametrize(
    "arguments",
    [["table"], ["report"], ["mteb", "--org", "a", "--out", "o"], ["predict", "--text", "a"],
     ["publish", "--to", "hf:a/b"], ["states", "--dir"]],
    ids=lambda arguments: arguments[0],
)  # fmt: skip
@pytest.mark.parametrize("path", ["x" * 5000, "a\0b"], ids=["long", "NUL"])
def test_a_path_that_cannot_be_one_is_reported_in_a_short_sentence(
    capsys, tmp_path, monkeypatch, arguments, path
):
    monkeypatch.chdir(tmp_path)
    position = len(arguments) if arguments[-1] == "--dir" else 1
    error = error_of(capsys, *arguments[:position], path, *arguments[position:])
    assert len(error) < 800
    assert not list(tmp_path.iterdir())
