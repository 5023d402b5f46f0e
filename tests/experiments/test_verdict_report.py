"""The files of a verdict: which texts are shown, and that all of it is on one page."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from made_verdicts import MadeFolder
from page_parser import Page

from embedder_helpers.config import Experiment
from embedder_helpers.errors import InputError
from embedder_helpers.experiments import verdict_report
from embedder_helpers.experiments.verdict_report import decisive_texts, write_verdict
from embedder_helpers.models.attribution import Attribution
from embedder_helpers.results.verdict import assemble

NASTY = '<img src=x onerror="alert(1)"> & </p>'
SCORED = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = MadeFolder(tmp_path_factory.mktemp("made"), scored=SCORED, noise=0.2)
    made.add("roberta_only", 0.6)
    made.add("hybrid", 0.7)
    return made


@pytest.fixture(scope="module")
def verdict(folder):
    texts = [f"{NASTY} number {i}" for i in range(SCORED)]
    return assemble(folder.results, folder.path, texts=texts)


def scored(*rows):
    """A table of texts with the share of seeds that are right of each, and which one is alone."""
    columns = ["text", "hybrid", "RoBERTa", "only"]
    table = pd.DataFrame(rows, columns=columns)
    return table.assign(**{name: "wet" for name in ("label", "hybrid says", "RoBERTa says")})


def test_texts_of_which_more_seeds_agree_come_first_and_others_are_left_out(verdict):
    table = scored(
        ("two of three", 2 / 3, 0.0, "hybrid"),
        ("no one", 0.0, 0.0, ""),
        ("all", 1.0, 0.0, "hybrid"),
        ("all of RoBERTa", 0.0, 1.0, "RoBERTa"),
    )
    found = decisive_texts(dataclasses.replace(verdict, scored=table))
    assert sorted(found["text"]) == ["all", "all of RoBERTa", "two of three"]
    assert found["text"].tolist().index("all") < found["text"].tolist().index("two of three")


def test_of_each_of_the_two_only_so_many_are_shown(verdict):
    most = verdict_report.SHOWN_TEXTS
    rows = [
        (f"{only} {i}", 1.0, 0.0, only) for i in range(most + 5) for only in ("hybrid", "RoBERTa")
    ]
    found = decisive_texts(dataclasses.replace(verdict, scored=scored(*rows)))
    assert found["only"].value_counts().to_dict() == {"hybrid": most, "RoBERTa": most}


def test_without_predictions_no_text_is_decisive(verdict):
    assert decisive_texts(dataclasses.replace(verdict, scored=None)).empty


def test_the_page_has_the_sentence_the_tables_and_the_texts_and_no_markup_of_theirs(
    verdict, tmp_path
):
    path = write_verdict(verdict, tmp_path)
    assert path == tmp_path / "verdict.html"
    page = Page(path.read_text(encoding="utf-8"))
    assert page.loads_nothing()
    assert verdict.sentence in page.text_in("p")
    for note in verdict.notes:
        assert note in page.text_in("p")
    shown = decisive_texts(verdict)
    assert len(shown) and page.text_in("article").count(NASTY) == len(shown)
    assert "RoBERTa alone" in page.text_in("td") and "What is compared" in page.text_in("h2")
    names = [path.name for path in tmp_path.iterdir()]
    assert len(page.all_of("img")) == len([name for name in names if name.endswith(".png")])
    assert {"verdict.csv", "labels.csv", "texts.csv", "learning_curve.csv"} <= set(names)
    assert pd.read_csv(tmp_path / "texts.csv")["text"].tolist() == verdict.scored["text"].tolist()


def test_every_figure_has_words_for_those_who_cannot_see_it():
    from embedder_helpers.results.verdict_figures import FIGURES

    assert verdict_report.FIGURES.keys() == FIGURES.keys()
    assert all(all(words) for words in verdict_report.FIGURES.values())


def explained_whole(text):
    """An attribution of one token, the whole text."""
    row = {"token": text, "start": 0, "end": len(text), "gemma_norm": 2.0, "token_norm": 4.0}
    return Attribution(text, "wet", 0.9, pd.DataFrame([row | {"change": -0.5}]))


def test_only_the_beginning_of_texts_that_have_letters_is_explained(verdict, tmp_path, monkeypatch):
    long = "y" * (verdict_report.MAX_LETTERS + 9)
    rows = [(text, 1.0, 0.0, "hybrid") for text in ("  \n", long, "", "  short", 7)]
    given = []

    def attribute(hybrid, texts):
        given.extend(texts)
        return [explained_whole(text) for text in texts]

    monkeypatch.setattr(verdict_report, "attribute", attribute)
    table = dataclasses.replace(verdict, scored=scored(*rows))
    page = Page(write_verdict(table, tmp_path, hybrid=object()).read_text(encoding="utf-8"))
    assert given == [long[: verdict_report.MAX_LETTERS], "short"]
    coloured = [item for item in page.all_of("span") if item.get("title") == "-0.500"]
    assert len(coloured) == 2 and "y" * (verdict_report.MAX_LETTERS + 9) in page.text_in("article")
    tokens = pd.read_csv(tmp_path / "tokens.csv")
    assert tokens[["text", "start", "end"]].to_numpy().tolist() == [
        [1, 0, verdict_report.MAX_LETTERS],
        [3, 2, 7],
    ]


def test_tokens_are_grouped_by_their_small_letters_and_ordered_by_all_they_change():
    columns = ["token", "gemma_norm", "token_norm", "change"]
    rows = [(" If", 1, 2, -0.2), ("if ", 3, 2, -0.1), ("", 9, 9, 0.9), ("rain", 1, 1, 0.25)]
    found = verdict_report.decisive_tokens(pd.DataFrame(rows, columns=columns))
    assert found.columns.tolist() == ["token", "occurrences", "change", "length beside the token's"]
    expected = [["if", 2, -0.15, 1.0], ["rain", 1, 0.25, 1.0]]
    for row, values in zip(found.to_numpy().tolist(), expected, strict=True):
        assert row == [values[0], *map(pytest.approx, values[1:])]
    many = pd.DataFrame([(f"w{i}", 1, 1, i) for i in range(50)], columns=columns)
    assert verdict_report.decisive_tokens(many)["token"].tolist() == [
        f"w{i}" for i in range(49, 49 - verdict_report.SHOWN_TOKENS, -1)
    ]


def test_a_folder_that_cannot_be_written_is_an_error(verdict, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        write_verdict(verdict, tmp_path / "file" / "out")


@pytest.mark.parametrize("fusion", ["add", "prepend"])
def test_texts_are_coloured_by_a_trained_hybrid(fusion, verdict, tmp_path):
    from embedder_helpers.models.architectures import build_embedder
    from embedder_helpers.models.embedder import Head

    hybrid = build_embedder(Experiment(llm_layers=1, fusion=fusion, projection_start="random"))
    kernel = 0.1 * np.random.default_rng(0).normal(size=(hybrid.width, 3)).astype("float32")
    hybrid.head = Head(kernel, np.zeros(3, "float32"), np.array(["rain", "snow", "sun"]))
    three = verdict.scored[verdict.scored["only"] != ""].head(3).reset_index(drop=True)
    few = dataclasses.replace(verdict, scored=three)
    page = Page(write_verdict(few, tmp_path, hybrid).read_text(encoding="utf-8"))
    assert page.loads_nothing()
    assert any("title" in attributes for attributes in page.all_of("span"))
    assert "colours: " in page.text_in("h4") and "On which tokens?" in page.text_in("h2")
    tokens = pd.read_csv(tmp_path / "tokens.csv", keep_default_na=False)
    texts = pd.read_csv(tmp_path / "texts.csv")["text"]
    assert set(tokens["text"]) == set(range(3)) and tokens["change"].any()
    for row in tokens.to_dict("records"):
        covered = texts[row["text"]][row["start"] : row["end"]]
        assert row["token"].removeprefix("'") == covered  # no formula for a spreadsheet
    write_verdict(few, tmp_path)
    assert not (tmp_path / "tokens.csv").exists()
