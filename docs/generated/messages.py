"""Every message and every RPC of the .proto files, with the comments that stand there."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from .tables import code, table

_FOLDER = Path(__file__).resolve().parents[2] / "proto" / "cnnserve" / "wire"
_FILES = ("classifier.proto", "open_inference.proto", "model_config.proto")
_PACKAGE = re.compile(r"package (?P<name>[\w.]+);")
_OPENING = re.compile(r"(?P<kind>service|message|enum|oneof) (?P<name>\w+) \{(?P<closed>\})?")
_RPC = re.compile(r"rpc (?P<name>\w+)\((?P<request>[\w .]+)\) returns \((?P<response>[\w .]+)\);")
_FIELD = re.compile(r"(?P<type>(?:repeated |optional )?(?:map<\w+, [\w.]+>|[\w.]+)) (?P<name>\w+) = (?P<number>\d+);")
_VALUE = re.compile(r"(?P<name>\w+) = (?P<number>\d+);")
_IGNORED = re.compile(r"syntax .*|import .*|reserved .*|option .*|")

_HEAD = """# Messages

The messages of both gRPC services and of config.pbtxt, made from the files in `proto/`. Generate code for your language
from these files; [Protocols](../protocols.md) shows how. A server also answers gRPC reflection.

"""


@dataclass
class _Part:
    """A service, a message or an enum; `rows` are its RPCs, fields or values, each with its comment last."""

    kind: str
    name: str
    comment: str
    rows: list[tuple[str, ...]] = field(default_factory=list)


def page() -> str:
    """The page. Raises `ValueError` for a line that it does not understand."""
    return _HEAD + "".join(_section(_FOLDER / name) for name in _FILES)


def _section(path: Path) -> str:
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    package = next(match["name"] for line in lines if (match := _PACKAGE.fullmatch(line)))
    about = " ".join(line.removeprefix("// ") for line in lines[: lines.index("")])
    return f"## {path.name}\n\n{about} The package is `{package}`.\n\n" + "".join(
        _described(package, part) for part in _parts(path.name, lines)
    )


def _described(package: str, part: _Part) -> str:
    header = {
        "service": ("RPC", "Request → response", "Meaning"),
        "message": ("Field", "Type", "Number", "Meaning"),
        "enum": ("Value", "Number", "Meaning"),
    }[part.kind]
    # Many messages of Triton's have names that say it all.
    if not any(row[-1] for row in part.rows):
        header, rows = header[:-1], [row[:-1] for row in part.rows]
    else:
        rows = part.rows
    name = f"{package}.{part.name}" if part.kind == "service" else part.name
    anchor = package.replace(".", "") + part.name.replace(".", "").lower()
    text = f"### {name} {{#{anchor}}}\n\n"
    text += f"{part.comment}\n\n" if part.comment else ""
    return text + (table(header, rows) + "\n" if rows else "It has no fields.\n\n")


def _parts(file: str, lines: Iterable[str]) -> Iterator[_Part]:
    """Every part in the order of the file, those inside others after them."""
    found: list[_Part] = []
    # What is open: a part, or the name of a oneof, whose fields are its message's.
    within: list[_Part | str] = []
    comment: list[str] = []
    for line in lines:
        if line.startswith("//"):
            comment.append(line.removeprefix("//").strip())
            continue
        if opening := _OPENING.fullmatch(line):
            if opening["kind"] == "oneof":
                within.append(opening["name"])
            else:
                outer = next((part for part in reversed(within) if isinstance(part, _Part)), None)
                name = f"{outer.name}.{opening['name']}" if outer else opening["name"]
                found.append(_Part(opening["kind"], name, " ".join(comment)))
                within.append(found[-1])
            if opening["closed"]:
                within.pop()
        elif line == "}":
            within.pop()
        elif within:
            _add(file, line, within, " ".join(comment))
        elif not (_PACKAGE.fullmatch(line) or _IGNORED.fullmatch(line)):
            raise ValueError(f"{file}: {line!r} is not understood")
        comment = []
    return iter(found)


def _add(file: str, line: str, within: list[_Part | str], comment: str) -> None:
    part = next(part for part in reversed(within) if isinstance(part, _Part))
    if rpc := _RPC.fullmatch(line):
        messages = f"{code(rpc['request'])} → <br>{code(rpc['response'])}"
        part.rows.append((code(rpc["name"]), messages, comment))
    elif value := _VALUE.fullmatch(line):
        part.rows.append((code(value["name"]), value["number"], comment))
    elif item := _FIELD.fullmatch(line):
        choice = f"One of `{within[-1]}`. " if isinstance(within[-1], str) else ""
        part.rows.append((code(item["name"]), code(item["type"]), item["number"], f"{choice}{comment}".strip()))
    elif not _IGNORED.fullmatch(line):
        raise ValueError(f"{file}: {line!r} is not understood")
