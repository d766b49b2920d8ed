"""The fenced blocks of a Markdown page: what a reader runs, which files they save, and which output the page shows.

| block | what its reader does |
|---|---|
| `sh` | runs the commands; a `cnnserve serve` at the end runs on while they read on |
| `console` | runs each command behind `$ ` and sees the lines below it; after a failure comes `$ echo $?` |
| `python` | runs the program |
| any with `title="PATH"` | saves the text as this file |
| `text` with `title="Output"` | sees what the block before printed |

In an output, `...` stands for what was left out. A block that the tests do not run says so above, for its reader:

    *Not run by our tests: needs a GPU.*

The one mark that a reader does not see is `<!-- numbers vary -->` above a block: its numbers are compared as numbers,
not by value, because they are times, ports or sizes of one run.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OUTPUT = "Output"
_COMMANDS = ("sh", "console", "python")
# Saved under their title: a later block uses them.
_FILES = ("python", "pbtxt", "json", "toml", "yaml", "text")
_FENCE = re.compile(r"(?P<indent> *)(?P<ticks>`{3,}|~{3,})(?P<info>.*)")
_INFO = re.compile(r'(?P<language>[a-z]+)?(?P<title> title="[^"]+")?')
_NOTE = re.compile(r"\*Not run by our tests: (?P<reason>[^*]+)\.\*")
_VARIES = "<!-- numbers vary -->"


class PageError(Exception):
    """A page breaks a rule; the text begins with its path and line."""


@dataclass(frozen=True)
class Block:
    """One fenced block. `title` is `OUTPUT`, the path of a file, or empty; `not_run` is the reason its reader sees."""

    place: str
    language: str
    title: str
    lines: tuple[str, ...]
    not_run: str = ""
    varies: bool = False

    @property
    def text(self) -> str:
        """The lines with their ends."""
        return "".join(f"{line}\n" for line in self.lines)

    @property
    def is_output(self) -> bool:
        """Whether it shows what the block before it printed."""
        return self.title == OUTPUT

    @property
    def is_file(self) -> bool:
        """Whether its reader saves it under its title."""
        return bool(self.title) and not self.is_output


@dataclass(frozen=True)
class Command:
    """A command of a console block, and the lines shown below it."""

    text: str
    output: list[str] = field(default_factory=list)


def read(page: Path) -> list[Block]:
    """Every block of a page, in its order. Raises `PageError`."""
    blocks = list(_blocks(page))
    for before, block in zip([None, *blocks], blocks, strict=False):
        if block.is_output and (before is None or before.language not in _COMMANDS or before.is_file):
            raise PageError(f"{block.place}: an output has to follow the block that prints it")
    return blocks


def commands(block: Block) -> list[Command]:
    """The commands of a console block. Raises `PageError`."""
    found: list[Command] = []
    for line in block.lines:
        if line.startswith("$ "):
            found.append(Command(line.removeprefix("$ ")))
        elif not found:
            raise PageError(f"{block.place}: a console block begins with a command: $ COMMAND")
        elif found[-1].text.endswith("\\") and not found[-1].output:
            found[-1] = Command(f"{found[-1].text}\n{line}")
        else:
            found[-1].output.append(line)
    return found


def _blocks(page: Path) -> Iterator[Block]:
    lines = page.read_text(encoding="utf-8").splitlines()
    number = 0
    while number < len(lines):
        opening = _FENCE.fullmatch(lines[number])
        if opening is None:
            number += 1
            continue
        end = _end(page, lines, number, opening["ticks"])
        indent = len(opening["indent"])
        yield _block(page, lines, number, [line[indent:] for line in lines[number + 1 : end]])
        number = end + 1


def _end(page: Path, lines: list[str], start: int, ticks: str) -> int:
    for number in range(start + 1, len(lines)):
        if lines[number].strip() == ticks:
            return number
    raise PageError(f"{page}:{start + 1}: the block has no end")


def _block(page: Path, lines: list[str], start: int, content: list[str]) -> Block:
    place = f"{page}:{start + 1}"
    info = lines[start].strip().lstrip("`~").strip()
    parts = _INFO.fullmatch(info)
    if parts is None or not parts["language"]:
        raise PageError(f'{place}: {info!r} is not a language, alone or with title="..."; the block says none')
    language, title = parts["language"], (parts["title"] or "").removeprefix(' title="').removesuffix('"')
    _check_kind(place, language, title)
    above = _above(lines, start)
    if above.startswith("<!--") and above != _VARIES:
        raise PageError(f"{place}: the comment {above} above the block is no mark, and readers do not see it")
    note = _NOTE.fullmatch(_above(lines, start - 2) if above == _VARIES else above)
    if note and title == OUTPUT:
        raise PageError(f"{place}: what was not run has no output")
    return Block(place, language, title, tuple(content), note["reason"] if note else "", above == _VARIES)


def _check_kind(place: str, language: str, title: str) -> None:
    if title == OUTPUT:
        if language != "text":
            raise PageError(f"{place}: an output is text, not {language}")
    elif title:
        if language not in _FILES:
            raise PageError(f"{place}: {language} is not saved as a file")
    elif language not in _COMMANDS:
        raise PageError(
            f"{place}: {language} is not run: give it the title of the file that its reader saves, "
            f'or title="{OUTPUT}" if the block before prints it'
        )


def _above(lines: list[str], number: int) -> str:
    """The nearest line above that is not empty."""
    return next((line.strip() for line in reversed(lines[: max(0, number)]) if line.strip()), "")
