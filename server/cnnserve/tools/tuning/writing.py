"""Puts a layout into the text of a config.pbtxt and leaves every other byte as it is, comments too."""

import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cnnserve.model_config.layout import THREADS, Layout
from cnnserve.repository import staging

# Begins each line that this command wrote, so that the next one removes them.
MARK = "# cnnserve tune:"
_TOKEN = re.compile(r"""\s+|#[^\n]*|"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'|[{}<>\[\]:;,]|[^\s{}<>\[\]:;,#"']+""")
_OPENING, _CLOSING = "{<[", "}>]"


@dataclass(frozen=True)
class Field:
    """A field of a message: its name, where it stands in the text, and where the text inside its braces stands."""

    name: str
    start: int
    end: int
    inner: tuple[int, int] | None


def with_layout(text: str, layout: Layout, comment: list[str]) -> str:
    """Returns a config's text with this layout in place of its own. The lines of `comment` say what was measured."""
    text = "".join(line for line in text.splitlines(keepends=True) if not line.lstrip().startswith(MARK))
    found = list(fields(text))
    cuts = [field for field in found if field.name == "instance_group" or _is_threads(text, field)]
    inside = f"preferred_batch_size: [ {layout.batch} ]"
    if layout.delay_us:
        inside += f" max_queue_delay_microseconds: {layout.delay_us}"
    batching = [field for field in found if field.name == "dynamic_batching" and field.inner]
    for outer in batching:
        cuts += [
            field
            for field in fields(text, *(outer.inner or (0, 0)))
            if field.name in ("preferred_batch_size", "max_queue_delay_microseconds")
        ]
    # From the end, so that the places before stay true.
    edits = [(*_whole_line(text, cut), "") for cut in cuts]
    if batching and batching[-1].inner:
        at = batching[-1].inner[0]
        edits.append((at, at, f" {inside} "))
    for start, end, new in sorted(edits, reverse=True):
        text = text[:start] + new + text[end:]
    lines = [f"{MARK} {line}" for line in comment]
    lines += [
        f"instance_group {{ kind: KIND_CPU count: {layout.instances} }}",
        f'parameters {{ key: "{THREADS}" value {{ string_value: "{layout.threads}" }} }}',
    ]
    if not batching:
        lines.append(f"dynamic_batching {{ {inside} }}")
    newline = "\r\n" if "\r\n" in text else "\n"
    if text and not text.endswith("\n"):
        text += newline
    return text + newline.join(lines) + newline


def replace_file(path: Path, data: bytes) -> None:
    """Replaces a file as a whole, with the permissions of the old one. Raises `OSError`."""
    # The target of a link, not the link.
    path = path.resolve()
    staging.replace_file(path, data, stat.S_IMODE(path.stat().st_mode) if path.exists() else 0o644)


def fields(text: str, start: int = 0, end: int | None = None) -> Iterator[Field]:
    """Yields the fields of the message whose text stands between two places. The text must be a valid config."""
    tokens = list(_tokens(text, start, len(text) if end is None else end))
    position = 0
    while position < len(tokens):
        name_at, name = tokens[position]
        if name in (";", ","):
            position += 1
            continue
        position += 1
        if position < len(tokens) and tokens[position][1] == ":":
            position += 1
        inner = None
        if position < len(tokens) and tokens[position][1] in _OPENING:
            first = tokens[position][0] + 1
            position = _closing(tokens, position)
            inner = (first, tokens[position][0])
            position += 1
        else:
            position += 1
            # Texts beside each other are one text.
            while position < len(tokens) and tokens[position][1][0] in "\"'":
                position += 1
        last_at, last = tokens[position - 1]
        if position < len(tokens) and tokens[position][1] in (";", ","):
            last_at, last = tokens[position]
            position += 1
        yield Field(name, name_at, last_at + len(last), inner)


def _tokens(text: str, start: int, end: int) -> Iterator[tuple[int, str]]:
    for match in _TOKEN.finditer(text, start, end):
        if not match[0].isspace() and not match[0].startswith("#"):
            yield match.start(), match[0]


def _closing(tokens: list[tuple[int, str]], position: int) -> int:
    depth = 0
    for index in range(position, len(tokens)):
        depth += (tokens[index][1] in _OPENING) - (tokens[index][1] in _CLOSING)
        if depth == 0:
            return index
    raise ValueError("the text has a brace that is never closed")


def _is_threads(text: str, field: Field) -> bool:
    if field.name != "parameters" or field.inner is None:
        return False
    return any(
        inner.name == "key" and re.search(rf"""["']{THREADS}["']""", text[inner.start : inner.end])
        for inner in fields(text, *field.inner)
    )


def _whole_line(text: str, field: Field) -> tuple[int, int]:
    """Returns where a field stands, with its line if nothing else stands there."""
    start = text.rfind("\n", 0, field.start) + 1
    end = text.find("\n", field.end)
    end = len(text) if end < 0 else end + 1
    if text[start : field.start].strip() or text[field.end : end].strip():
        return field.start, field.end
    return start, end
