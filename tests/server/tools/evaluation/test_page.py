"""The report: one file whose browser sends no request, in which all names are text."""

import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from browsing import browsing, check_accessible, needs_browser
from cnnserve.tools.evaluation import cli
from cnnserve.tools.evaluation.page.markup import Markup, element
from support import picture, rewrite_manifest, write_version

# No slash, so that each is also the name of a folder.
HOSTILE = ("<img src=x onerror=alert(1)>", "\"><b onclick='alert(2)'>&amp;", "<script>alert(3)<!--")


class Reader(HTMLParser):
    """Collects elements, attributes and text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The report about a model whose labels are HTML, compared with itself; some images are wrong, one is broken."""
    root = tmp_path_factory.mktemp("hostile")
    version = write_version(root / "models" / "tiny" / "1")
    (version / "labels.txt").write_text("\n".join(HOSTILE) + "\n")
    rewrite_manifest(version)
    for label in HOSTILE:
        folder = root / "images" / label
        folder.mkdir(parents=True)
        for kind in ("dark", "left", "bright"):
            (folder / f"{kind} {HOSTILE[0]}.png").write_bytes(picture(kind))
    (folder / "broken.png").write_bytes(b"<svg onload=alert(4)>")
    report = root / "out.html"
    words = ["tiny", str(root / "images"), "--local", str(root / "models"), "--against", "tiny:1"]
    assert cli.evaluate([*words, "--report", str(report)]) == 1
    return report.read_text(encoding="utf-8")


def test_names_are_text_and_never_html(page: str) -> None:
    reader = Reader(page)
    assert not {tag for tag, _ in reader.elements} & {"script", "iframe", "object", "link", "form", "base"}
    assert not [key for _, attributes in reader.elements for key in attributes if key.startswith("on")]
    assert all(re.match("data:image/(png|jpeg);base64,", image["src"] or "") for image in reader.all("img"))
    text = "".join(reader.texts)
    for label in HOSTILE:
        assert label in text


def test_the_browser_may_load_nothing(page: str) -> None:
    reader = Reader(page)
    (policy,) = [meta["content"] or "" for meta in reader.all("meta") if "http-equiv" in meta]
    directives = dict(part.split(" ", 1) for part in policy.split("; "))
    style = re.search("<style>(.*?)</style>", page, re.DOTALL)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert directives == {
        "default-src": "'none'",
        "img-src": "data:",
        "style-src": f"'sha256-{digest}'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    assert not [attributes for _, attributes in reader.elements if {"href", "style", "srcset"} & attributes.keys()]
    assert "url(" not in style[1]
    assert "@import" not in style[1]


def test_the_page_has_its_parts(page: str) -> None:
    reader = Reader(page)
    text = "".join(reader.texts)
    for part in ("Agreement", "Reliability", "Confusion matrix", "Most confidently wrong", "Precision and recall"):
        assert part in text
    # Six of nine images are wrong, for both models.
    assert len(reader.all("img")) == 12
    assert len(reader.all("svg")) == 4


def test_the_page_can_be_used_without_seeing_it(page: str) -> None:
    reader = Reader(page)
    assert reader.all("html") == [{"lang": "en"}]
    assert len(reader.all("main")) == 1
    assert len(reader.all("h1")) == 1
    assert all(image["alt"] == "" for image in reader.all("img"))  # the caption below says what is in it
    assert all(chart["role"] == "img" and chart["aria-label"] for chart in reader.all("svg"))
    assert len(reader.all("caption")) == len(reader.all("table"))
    assert all(cell.get("scope") in ("row", "col") for cell in reader.all("th"))
    scrolled = [part for part in reader.all("div") if part.get("class") == "scroll"]
    assert all(part["tabindex"] == "0" and part["role"] == "group" and part["aria-label"] for part in scrolled)


@needs_browser
def test_a_browser_shows_it_without_complaints(page: str, tmp_path: Path) -> None:
    (tmp_path / "out.html").write_text(page, encoding="utf-8")
    complaints: list[str] = []
    with browsing() as browser:
        for scheme in ("light", "dark"):
            # A phone's width, so that tables scroll.
            seen = browser.new_page(viewport={"width": 360, "height": 800}, color_scheme=scheme)
            seen.on("console", lambda message: complaints.append(message.text))
            seen.goto((tmp_path / "out.html").as_uri())
            check_accessible(seen)
            assert seen.evaluate("document.documentElement.scrollWidth") <= 360
    assert complaints == []


def test_both_colour_schemes_have_all_colours() -> None:
    style = (Path(cli.__file__).parent / "page" / "style.css").read_text()
    light, dark = (re.findall(r"--([a-z]+): #", block) for block in re.findall(r":root \{(.*?)\}", style, re.DOTALL))
    assert light == dark
    assert set(re.findall(r"var\(--([a-z]+)\)", style)) <= {*light, "heat"}


def test_only_markup_is_not_escaped() -> None:
    assert element("p", "<b>", element("i", "&"), class_='"') == '<p class="&quot;">&lt;b&gt;<i>&amp;</i>\n</p>\n'
    assert element("p", Markup("<b>")) == "<p><b></p>\n"
    assert element("p", "a\x1bb\u202e\udcff") == "<p>a\\x1bb\\u202e\\udcff</p>\n"
