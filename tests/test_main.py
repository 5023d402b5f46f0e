"""The command line: a run and its table; mistakes end in one sentence and status 2."""

import json

import pytest

from embedder_helpers.__main__ import main
from embedder_helpers.report import FIGURE, TABLE


def told_by(capsys, *arguments):
    """The one line on stderr with which a command ends."""
    assert main([str(one) for one in arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ")
    return lines[0]


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("llm_layers", "--set 'llm_layers': write key=value"),
        ("=1", "write key=value"),
        ("llm_layers=[1", "the value is not YAML"),
        ("llm_layers=0", "llm_layers is 0, but must be"),
        ("llm_layers=ten", "llm_layers is 'ten', but must be"),
        ("pooling=cls", "pooling is 'cls', but must be one of mean, max, first, last"),
        ("learning_rate=-1", "learning_rate is -1"),
        ("llm_layer=1", "unknown key 'llm_layer'; did you mean 'llm_layers'"),
    ],
)
def test_a_bad_setting_is_told(capsys, tmp_path, setting, words):
    assert words in told_by(capsys, "run", "quickstart", "--set", setting, "--out", tmp_path)


def test_a_missing_config_is_told_with_the_nearest_name(capsys, tmp_path):
    told = told_by(capsys, "run", "quickstrat", "--out", tmp_path)
    assert "did you mean 'quickstart'" in told


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("task: [", "is not YAML"),
        ("- sample\n", "must hold `key: value` lines"),
        ("kind: both\n", "kind is 'both'"),
        ("colour: red\n", "unknown key 'colour'"),
    ],
)
def test_a_bad_config_is_told_with_its_path(capsys, tmp_path, content, words):
    path = tmp_path / "my.yaml"
    path.write_text(content)
    told = told_by(capsys, "run", path, "--out", tmp_path / "out")
    assert words in told and str(path) in told


def test_a_bad_config_among_good_ones_is_told_before_any_runs(capsys, tmp_path):
    out = tmp_path / "out"
    assert "no config file 'zzz'" in told_by(capsys, "run", "quickstart", "zzz", "--out", out)
    assert not out.exists()


def test_an_unknown_task_is_told_with_the_nearest_one(capsys, tmp_path):
    setting = "task=EmotionClasification"
    told = told_by(capsys, "run", "quickstart", "--set", setting, "--out", tmp_path)
    assert "did you mean 'EmotionClassification'" in told


def test_a_task_folder_without_files_is_told(capsys, tmp_path):
    told = told_by(capsys, "run", "quickstart", "--set", f"task={tmp_path}", "--out", tmp_path)
    assert "has no train split" in told


def test_an_output_folder_that_cannot_be_written_is_told(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    told = told_by(capsys, "run", "quickstart", "--out", tmp_path / "file" / "results")
    assert "cannot be written" in told and "--out" in told


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("llm_preset=tiny_gema", "there is no preset 'tiny_gema'; did you mean 'tiny_gemma'"),
        ("llm_preset=./nowhere", "there is no folder './nowhere'"),
        ("slm_preset=tiny_gemma", "is a GemmaBackbone, but a RoBERTa model is needed"),
        ("llm_layers=19", "llm_layers is 19, but this Gemma has 18 blocks"),
        ("llm_layers=[18, -1]", "names a block twice"),
        ("max_tokens=513", "max_tokens is 513, but tiny_roberta has 512 positions"),
    ],
)
def test_what_the_presets_cannot_do_is_told_before_anything_is_computed(
    capsys, tmp_path, setting, words
):
    assert words in told_by(capsys, "run", "quickstart", "--set", setting, "--out", tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("folder", [".", "nowhere"])
def test_a_table_of_no_results_is_told_with_the_way_to_some(capsys, tmp_path, folder):
    told = told_by(capsys, "table", tmp_path / folder)
    assert "holds no results: run an experiment with --out" in told


@pytest.mark.parametrize("arguments", [[], ["run"], ["fly"], ["run", "quickstart", "--sets", "a"]])
def test_a_command_that_is_not_one_ends_with_its_usage(capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: python -m embedder_helpers" in capsys.readouterr().err


RUN = ["run", "quickstart", "--set", "kind=gemma_only", "--set", "llm_layers=1", "--out"]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The folder of one short run, by Gemma's first block alone."""
    folder = tmp_path_factory.mktemp("results")
    assert main([*RUN, str(folder)]) == 0
    return folder


def test_a_run_leaves_its_result_table_and_figure_and_nothing_else(results):
    (result,) = results.glob("*.json")
    assert result.name.startswith("sample-gemma_only-k1-")
    assert {path.name for path in results.iterdir()} == {result.name, TABLE, FIGURE}
    assert (results / FIGURE).read_bytes().startswith(b"\x89PNG")


def test_the_result_holds_what_was_run_and_the_scores(results):
    found = json.loads(next(results.glob("*.json")).read_text())
    assert (found["experiment"]["kind"], found["cutoffs"], found["blocks"]) == (
        "gemma_only",
        [1],
        18,
    )
    single = [one["accuracy"] for one in found["experiments"]]
    assert len(single) == 10
    assert found["scores"]["accuracy"] == pytest.approx(sum(single) / 10)
    assert found["head"] is None and found["history"] == []


def test_the_table_names_the_embedder_and_its_cutoff_in_both_spellings(results):
    lines = (results / TABLE).read_text().splitlines()
    cells = [cell.strip() for cell in lines[2].split("|")]
    assert cells[1:5] == ["Gemma only [1]", "1", "-18", "sample"]


def test_a_second_run_reads_the_result_and_does_not_write_it_again(results, capsys):
    (result,) = results.glob("*.json")
    before = result.stat().st_mtime_ns, result.read_bytes()
    assert main([*RUN, str(results)]) == 0
    assert f"{result.name}: found, not computed again" in capsys.readouterr().out
    assert (result.stat().st_mtime_ns, result.read_bytes()) == before


def test_a_result_that_is_not_whole_is_computed_again(results, tmp_path, capsys):
    (result,) = results.glob("*.json")
    (tmp_path / result.name).write_text(result.read_text()[:100])
    assert main([*RUN, str(tmp_path)]) == 0
    again, before = (json.loads((f / result.name).read_text()) for f in (tmp_path, results))
    assert again["scores"] == before["scores"]


def test_the_table_command_prints_the_runs_table(results, capsys):
    assert main(["table", str(results)]) == 0
    assert (results / TABLE).read_text().strip() in capsys.readouterr().out
