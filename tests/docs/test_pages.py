"""Every command, Python block and output of README and the documentation, done in the order in which a reader would."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import blocks
import reader
from forking import forking

ROOT = blocks.ROOT


def _pages() -> list[Path]:
    """README, then the documentation's pages as its navigation has them."""
    navigation = yaml.load((ROOT / "mkdocs.yml").read_text(), yaml.BaseLoader)["nav"]
    names = [name for entry in navigation for name in _names(entry)]
    return [ROOT / "README.md", *(path for name in names if (path := ROOT / "docs" / name).is_file())]


def _names(entry: str | dict[str, str | list[object]]) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    parts = [part for value in entry.values() for part in ([value] if isinstance(value, str) else value)]
    return [name for part in parts for name in _names(part)]


@pytest.fixture(scope="session")
def memory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages' exports gave."""
    return tmp_path_factory.mktemp("exports")


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a `cnnserve` whose exports start at once."""
    with forking(tmp_path_factory.mktemp("forking")) as commands:
        yield commands


# Each command of a page has a limit of its own.
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", _pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_does_what_it_says(page: Path, tmp_path: Path, memory: Path, commands: Path) -> None:
    command = [sys.executable, reader.__file__, *map(str, (page, tmp_path, memory, commands))]
    finished = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert finished.returncode == 0, finished.stdout
