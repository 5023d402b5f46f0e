"""Pages in HTML: what is escaped, and that nothing is fetched."""

import base64

import numpy as np
import pandas as pd
import pytest
from page_parser import Page

from embedder_helpers.results.html_page import (
    escape_html,
    escape_lines,
    html_document,
    html_image,
    html_paragraphs,
    html_table,
)

NASTY = "</title></style><script>alert(\"x\")</script><img src=x onerror='y'>&amp;"


def test_a_document_has_a_title_a_heading_and_a_policy_against_everything_else():
    page = Page(html_document("Rain & shine", "<p>Fine.</p>", "p { color: red; }"))
    assert page.text_in("title") == page.text_in("h1") == "Rain & shine"
    assert page.text_in("p") == "Fine." and "color: red" in page.text_in("style")
    assert page.all_of("html") == [{"lang": "en"}]
    (policy,) = [one["content"] for one in page.all_of("meta") if "http-equiv" in one]
    assert policy.startswith("default-src 'none'")
    assert "color-scheme: light dark" in page.text_in("style")
    assert page.loads_nothing()


def test_no_data_is_markup():
    table = pd.DataFrame({NASTY: [NASTY, 1.0]})
    body = html_paragraphs([NASTY]) + html_table(table, NASTY) + html_image(b"", NASTY)
    page = Page(html_document(NASTY, body))
    assert page.loads_nothing()
    for tag in ("title", "h1", "p", "caption", "th"):
        assert page.text_in(tag) == NASTY
    assert NASTY in page.text_in("td")
    assert [image["alt"] for image in page.all_of("img")] == [NASTY]


def test_a_table_shows_rounded_numbers_and_a_dash_for_what_is_missing():
    table = pd.DataFrame({"name": ["a", None], "score": [0.12345, np.nan]}, index=[7, 9])
    page = Page(html_table(table, "Scores", decimals=2))
    cells = [text.strip() for path, text in page.texts if path.endswith("td") and text.strip()]
    assert cells == ["a", "0.12", "-", "-"] and page.text_in("caption") == "Scores"
    assert not page.all_of("caption") == [] and Page(html_table(table)).all_of("caption") == []


def test_an_image_is_inside_the_page():
    svg = '<svg xmlns="http://www.w3.org/2000/svg"><script>1</script>é</svg>'
    for image, kind in ((b"\x89PNG\r\n", "png"), (svg, "svg+xml")):
        ((_, attributes),) = Page(html_image(image, "A curve")).elements
        head, data = attributes["src"].split(",")
        assert head == f"data:image/{kind};base64"
        content = image if isinstance(image, bytes) else image.encode()
        assert base64.b64decode(data) == content and attributes["alt"] == "A curve"


@pytest.mark.parametrize("bad", ["\0", "\x1b", "\u202e", "\u2066", "\ud83d"])
def test_control_characters_are_replaced(bad):
    assert escape_html(f"a{bad}b") == escape_lines(f"a{bad}b") == "a\ufffdb"


def test_lines_keep_their_white_space_and_others_are_one_line():
    text = "  a\r\n\n\tb  "
    assert escape_lines(text) == "  a\n\n\tb  " and escape_html(text) == "a b"
    assert len(escape_html("a" * 50_000)) == 10_000
