"""README's length and links, and the built site: complete, strict, and loading nothing from another host."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import blocks

ROOT = blocks.ROOT
README = ROOT / "README.md"
_LINK = re.compile(r"\]\((?P<path>[^)#]+)(?:#(?P<anchor>[^)]+))?\)")
# What a browser loads when it shows a page; links that a reader may follow are no such thing.
_LOADED = re.compile(
    r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"?(?P<src>[^\" >]+)|<link\b[^>]*\bhref=\"?(?P<href>[^\" >]+)"
)
_WIDTH = 100


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The documentation, built."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    built = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert built.returncode == 0, built.stdout
    return folder


def test_readme_is_short() -> None:
    assert len(README.read_text().splitlines()) <= 180


def test_readme_links_lead_somewhere(site: Path) -> None:
    links = list(_LINK.finditer(README.read_text()))
    assert len(links) > 10
    for link in links:
        path = ROOT / link["path"]
        assert path.is_file(), link[0]
        if link["anchor"]:
            page = site / path.relative_to(ROOT / "docs").with_suffix(".html")
            assert f'id="{link["anchor"]}"' in page.read_text(), link[0]


def test_the_site_loads_nothing_from_another_host(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        for loaded in _LOADED.finditer(page.read_text()):
            assert "//" not in (loaded["src"] or loaded["href"]), f"{page.name}: {loaded[0]}"
    for picture in (ROOT / "docs" / "pictures").glob("*.svg"):
        assert not re.search(r'(?:href="|url\()\s*["\']?https?:', picture.read_text()), picture.name


def test_the_reference_has_every_flag(site: Path) -> None:
    text = (site / "reference" / "commands.html").read_text() + (site / "reference" / "settings.html").read_text()
    for command in (
        "serve",
        "export",
        "import",
        "train-lenet",
        "show",
        "classify",
        "models",
        "labels",
        "load",
        "health",
    ):
        shown = subprocess.run(
            [sys.executable, "-m", "cnnserve", command, "--help"], stdout=subprocess.PIPE, text=True, check=True
        )
        for flag in set(re.findall(r"--[a-z][a-z-]*", shown.stdout)) - {"--help"}:
            assert flag in text, f"cnnserve {command} {flag}"


@pytest.mark.parametrize("page", [README, *sorted(ROOT.glob("docs/**/*.md"))], ids=lambda page: page.stem)
def test_commands_fit_the_page(page: Path) -> None:
    for block in blocks.read(page):
        text = "\n".join(one.text for one in blocks.commands(block)) if block.language == "console" else block.text
        for line in text.splitlines() if not block.is_output else ():
            assert len(line) <= _WIDTH, f"{block.place}: {line}"
