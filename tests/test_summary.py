from made_results import result

from embedder_helpers import report
from embedder_helpers.summary import summarise


def test_a_summary_of_two_cutoffs_or_fewer_leaves_their_table_and_figure(tmp_path, capsys):
    (tmp_path / report.LAYERS).write_text("of other results")
    results = [result(), result("gemma_only"), result(cutoffs=(4,)), result("roberta_only", ())]
    summarise(results, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {report.TABLE, report.FIGURE}
    assert (tmp_path / report.TABLE).read_text() in capsys.readouterr().out


def test_a_summary_of_many_cutoffs_adds_the_layer_table_and_its_figure(tmp_path, capsys):
    results = [result(cutoffs=(cutoff,)) for cutoff in (1, 10, 18)]
    summarise(results, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        report.TABLE,
        report.FIGURE,
        report.LAYERS,
    }
    text = (tmp_path / report.TABLE).read_text()
    assert text.startswith(report.as_markdown(report.layer_table(results)))
    assert text.endswith(report.as_text(results))
    assert text in capsys.readouterr().out


def test_cutoffs_of_different_tasks_make_no_curve(tmp_path):
    results = [result(cutoffs=(cutoff,), task=f"task {cutoff}") for cutoff in (1, 10, 18)]
    summarise(results, tmp_path)
    assert not (tmp_path / report.LAYERS).exists()
