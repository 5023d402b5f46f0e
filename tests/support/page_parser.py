"""A reader of HTML pages: their elements, their text, and whether they load anything."""

from html.parser import HTMLParser

VOID = {"meta", "img", "br", "link", "input"}


class Page(HTMLParser):
    """A page's elements in their order.

    Attributes:
        elements: name and attributes of each.
        texts: `(path, text)` of all text, the path being the names of the elements around it.
    """

    def __init__(self, content: str):
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.texts: list[tuple[str, str]] = []
        self._path: list[str] = []
        self.feed(content)
        self.close()
        assert not self._path, f"not closed: {self._path}"

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs), f"an attribute twice in {tag}"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._path.append(tag)

    def handle_endtag(self, tag):
        assert self._path.pop() == tag

    def handle_data(self, data):
        self.texts.append(("/".join(self._path), data))

    def text_in(self, tag):
        """All text inside elements of a name."""
        return "".join(text for path, text in self.texts if tag in path.split("/"))

    def all_of(self, tag):
        """The attributes of all elements of a name."""
        return [attributes for name, attributes in self.elements if name == tag]

    def loads_nothing(self):
        """Whether nothing outside the page is named, and no script is in it."""
        for tag, attributes in self.elements:
            if tag in ("script", "link", "iframe", "object", "embed", "base", "form", "a"):
                return False
            if any(name.startswith("on") or name in ("href", "srcset") for name in attributes):
                return False
            if not attributes.get("src", "data:").startswith("data:"):
                return False
        return "url(" not in self.text_in("style") and "@import" not in self.text_in("style")
