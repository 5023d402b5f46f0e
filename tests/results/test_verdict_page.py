"""The page of a verdict, read as a browser does."""

import re

import pandas as pd
import pytest
from page_parser import Page

from embedder_helpers.errors import InputError
from embedder_helpers.results.verdict_page import (
    LEVELS,
    MAX_LETTERS,
    PageFigure,
    PageTable,
    PageText,
    write_page,
)

NASTY = "</p></span><script>alert(\"x\")</script><img src=x onerror='y'>&amp;"
PNG = b"\x89PNG\r\n\x1a\n"
SENTENCE = "On weather the hybrid is better than RoBERTa alone by 1.3 points [0.5, 2.1]."


def tokens(text, changes):
    """A row for each word with the white space before it."""
    spans = [match.span() for match in re.finditer(r"\s*\S+", text)]
    starts, ends = zip(*spans, strict=True) if spans else ((), ())
    return pd.DataFrame({"start": starts, "end": ends, "change": changes})


def text_of(text, answers=("wet", "dry"), label="wet", changes=None):
    names = dict(zip(("hybrid", "RoBERTa alone"), answers, strict=True))
    coloured = None if changes is None else tokens(text, changes)
    return PageText(text, label, names, coloured, "wet")


@pytest.fixture
def write(tmp_path):
    """Writes a page of texts and reads it."""

    def write(*texts, title="The verdict", sentence=SENTENCE, **content):
        path = write_page(tmp_path / "page.html", title, sentence, texts=texts, **content)
        return Page(path.read_text(encoding="utf-8"))

    return write


def shown(page):
    return page.text_in("article")


def spans(page):
    return [one for one in page.all_of("span") if "title" in one]


# The whole


def test_a_page_has_the_sentence_figures_tables_and_texts_in_this_order(write):
    page = write(
        text_of("Rain."),
        figures=[PageFigure("Learning curve", PNG, "two curves", "More texts help.")],
        tables=[PageTable("Labels", "A row per label", pd.DataFrame({"label": ["wet"]}))],
        notes=["The protocol agrees."],
    )
    headings = [text for path, text in page.texts if re.search(r"/h[1-3]$", path)]
    assert headings == [
        "The verdict", "Learning curve", "Labels", "Texts", "Only hybrid is right (1)",
    ]  # fmt: skip
    assert page.text_in("title") == "The verdict"
    paragraphs = [text for path, text in page.texts if path.endswith("/p")]
    assert paragraphs[:2] == [SENTENCE, "The protocol agrees."]
    assert page.text_in("figcaption") == "More texts help."
    assert page.text_in("caption") == "A row per label"
    (image,) = page.all_of("img")
    assert image["alt"] == "two curves" and image["src"].startswith("data:image/png;base64,")


def test_nothing_is_fetched_and_no_script_is_in_it(write):
    page = write(
        text_of(NASTY, (NASTY, '"'), NASTY, [0.1] * len(NASTY.split())),
        title=NASTY,
        sentence=NASTY,
        figures=[PageFigure(NASTY, f"<svg>{NASTY}</svg>", NASTY, NASTY)],
        tables=[PageTable(NASTY, NASTY, pd.DataFrame({NASTY: [NASTY]}))],
        notes=[NASTY],
    )
    assert page.loads_nothing()
    for tag in ("title", "h1", "figcaption", "caption", "th", "td", "article"):
        assert NASTY in page.text_in(tag)
    assert len(page.all_of("img")) == 1


def test_what_is_empty_is_left_out(write):
    page = write(tables=[PageTable("Labels", "none", pd.DataFrame({"label": []}))])
    assert [tag for tag, _ in page.elements if re.fullmatch("h[1-4]|table", tag)] == ["h1"]


def test_a_page_replaces_the_one_before_and_leaves_nothing_else(write, tmp_path):
    write(sentence="first")
    assert "second" in write(sentence="second").text_in("p")
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


@pytest.mark.parametrize("name", ["page.txt", "folder"])
def test_what_cannot_be_a_page_is_refused(tmp_path, name):
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=name):
        write_page(tmp_path / name, "t", "s")


def test_a_page_can_be_read_in_the_dark(write):
    style = write().text_in("style")
    assert "color-scheme: light dark" in style
    # No color of a text or of the page, which would not fit one of the two.
    assert not re.search(r"(?<![-\w])color:|body[^}]*background", style)


# Texts


def test_texts_are_grouped_by_who_is_right(write):
    page = write(
        text_of("one", ("wet", "dry")),
        text_of("two", ("dry", "wet")),
        text_of("three", ("wet", "dry")),
        text_of("four", ("dry", "dry")),
        text_of("five", ("wet", "wet")),
    )
    assert [text for path, text in page.texts if path.endswith("/h3")] == [
        "Only hybrid is right (2)",
        "Only RoBERTa alone is right (1)",
        "None is right (1)",
        "All are right (1)",
    ]
    assert "label: wet; hybrid: wet; RoBERTa alone: dry" in shown(page)


def test_labels_of_numbers_are_compared_as_they_are(write):
    page = write(PageText("one", 1, {"hybrid": 1, "RoBERTa alone": 0}))
    assert page.text_in("h3") == "Only hybrid is right (1)"


def test_a_token_is_coloured_by_its_share_of_the_largest_change(write):
    page = write(
        text_of("It did rain today here", changes=[-0.4, 0.2, -0.08, 0.0, float("nan")]),
        text_of("Yes", changes=[0.01]),
    )
    coloured = [(span["class"], span["title"]) for span in spans(page)]
    assert coloured == [("f5", "-0.400"), ("a2", "+0.200"), ("f1", "-0.080"), ("a1", "+0.010")]
    style = page.text_in("style")
    assert all(f".{kind}{level} " in style for kind in "fa" for level in range(1, LEVELS + 1))
    assert "0.400" in page.text_in("p") and "colours: wet" in shown(page)


def test_text_and_colours_together_reproduce_the_text(write):
    text = "  It did\n\n\train <b>today</b> & here. "
    page = write(text_of(text, changes=[-0.4, 0.2, -0.08, 0.0, 0.3, 0.1]))
    assert shown(page).endswith(text)


def test_what_no_token_covers_is_shown_faded(write):
    coloured = tokens("It rained", [0.1, 0.2])
    page = write(PageText("It rained all day.", "wet", {"hybrid": "wet"}, coloured))
    (rest,) = [text for path, text in page.texts if "all day" in text]
    assert rest == " all day." and {"class": "rest"} in page.all_of("span")


def test_texts_without_colours_have_no_legend(write):
    for changes in (None, [0.0]):
        page = write(text_of("Rain.", changes=changes))
        assert "speaks for" not in page.text_in("p") and not spans(page)
        assert shown(page).endswith("Rain.")


def test_a_very_long_text_is_cut(write):
    text = "rain " * 20_000
    changes = [0.1] * 20_000
    for page in (write(text_of(text)), write(text_of(text, changes=changes))):
        assert len(shown(page)) < MAX_LETTERS + 200
        assert f"({len(text) - MAX_LETTERS} more letters)" in shown(page)
    one_word = "a" * 100_000
    page = write(text_of(one_word, changes=[0.1]))
    assert "a" * MAX_LETTERS in shown(page) and "a" * (MAX_LETTERS + 1) not in shown(page)


def test_a_text_from_right_to_left_says_so_itself_and_cannot_turn_the_page_around(write):
    page = write(text_of("שלום \u202eעולם\u2066 \x1b", changes=[0.1, 0.2, 0.3]))
    assert [one["dir"] for one in page.all_of("p") if "dir" in one] == ["auto"]
    assert "שלום" in shown(page)
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x1b]", shown(page))


def test_half_of_a_surrogate_pair_does_not_fail(write):
    assert "\ufffd" in shown(write(text_of("a\ud83db", changes=[0.1])))
