"""Makes the tables of docs/sizing.md from a result of `sizing.py`, and keeps them there between two comments."""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[1] / "docs" / "sizing.md"
_PART = re.compile(r"(<!-- sizing\.py writes this -->\n).*?(<!-- until here -->\n)", re.DOTALL)
_WORDS = {"cpu_us": "CPU time", "rate": "images/s", "latency_ms": "mean latency", "p99_ms": "p99"}
# What is predicted for requests at random times.
_AT_RANDOM_TIMES = ("latency_ms", "p99_ms")


def write(file: Path, page: Path = PAGE) -> None:
    """Replaces the tables of the page by those of a result."""
    page.write_text(replaced(page.read_text(), json.loads(file.read_text())))


def replaced(text: str, result: dict[str, Any]) -> str:
    """Returns the text of a page with the tables of a result."""
    machine, seconds = result["machine"], result["settings"]["seconds"]
    head = (
        f"Measured with cnnserve `{result['commit']}` on {machine['cores']} cores ({machine['cpu']}), {seconds:g} s "
        f"for each load. An idle server without models takes {result['idle_mib']:.0f} MiB.\n"
    )
    tables = "\n".join((head, *(text_of(model, found) for model, found in result["models"].items())))
    made, count = _PART.subn(lambda match: f"{match[1]}\n{tables}\n{match[2]}", text)
    if count != 1:
        raise ValueError("the page has no place for the tables")
    return made


def text_of(model: str, found: dict[str, Any]) -> str:
    """Returns the numbers of a model and its tables, as Markdown."""
    numbers, memory = found["numbers"], found["memory"]
    cpu, loop = numbers["cpu"], numbers["loop"]
    turns = [one for one in found["loads"] if not one["share"]]
    random = [one for one in found["loads"] if one["share"]]
    parts = (
        f"### {model}\n",
        f"{_times(cpu)}; of it on the event loop: {_times(loop)}. A request alone takes {numbers['alone_ms']:.2f} ms "
        f"and {numbers['alone_row_ms']:.2f} ms a row. The busiest resource works {numbers['busy']:.0%} of the time. "
        f"Memory: {memory['fixed_mib']:.0f} MiB and {memory['row_mib']:.2f} MiB a row; the file has "
        f"{memory['file_mib']:.1f} MiB.\n",
        _table(
            ("Server", "Rows", "In flight", "Fitted", "CPU µs", "predicted", "Images/s", "predicted"),
            [
                (
                    _server(one),
                    *(one["rows"], one["in_flight"], _yes(one)),
                    *_pair(one, "cpu_us"),
                    *_pair(one, "rate", one["rows"]),
                )
                for one in turns
            ],
        ),
        "Requests at random times (Poisson), none of them fitted:\n",
        _table(
            ("Share of the largest rate", "Mean ms", "predicted", "p99 ms", "predicted"),
            [(f"{one['share']:.0%}", *_pair(one, "latency_ms"), *_pair(one, "p99_ms")) for one in random],
        ),
        "Memory after the largest batches:\n",
        _table(
            ("Server", "Fitted", "MiB", "predicted"),
            [
                (
                    _server(one),
                    _yes(one),
                    f"{one['measured_mib']:.0f}",
                    f"{one['predicted_mib']:.0f} ({one['predicted_mib'] / one['measured_mib'] - 1:+.0%})",
                )
                for one in found["servers"]
            ],
        ),
        f"Largest errors where it was not fitted: {_largest(found)}.\n",
    )
    return "\n".join(parts)


def _times(cost: Sequence[float]) -> str:
    request, row, run, pause = cost
    return f"{request:.0f} µs a request, {row:.0f} µs a row, {run:.0f} µs a run, {pause:.0f} µs a pause"


def _server(one: dict[str, Any]) -> str:
    return (
        f"{one['cores']} core{'s' * (one['cores'] > 1)}, {one['instances']} instance{'s' * (one['instances'] > 1)}, "
        f"batch {one['max_batch']}"
    )


def _yes(one: dict[str, Any]) -> str:
    return "yes" if one["fitted"] else "no"


def _pair(one: dict[str, Any], name: str, factor: float = 1.0) -> tuple[str, str]:
    measured, predicted = one["measured"][name] * factor, one["predicted"][name] * factor
    digits = 0 if min(measured, predicted) >= 100 else 2 if min(measured, predicted) < 10 else 1
    return f"{measured:,.{digits}f}", f"{predicted:,.{digits}f} ({one['error'][name]:+.0%})"


def _largest(found: dict[str, Any]) -> str:
    kinds = {name: word for name, word in _WORDS.items() if name not in _AT_RANDOM_TIMES}
    free = [one for one in found["loads"] if not one["fitted"]]
    turns = [one for one in free if not one["share"]]
    random = [one for one in free if one["share"]]
    errors = [(word, [one["error"][name] for one in turns]) for name, word in kinds.items()]
    errors += [(_WORDS[name], [one["error"][name] for one in random]) for name in _AT_RANDOM_TIMES]
    rest = [one for one in found["servers"] if not one["fitted"]]
    errors.append(("memory", [one["predicted_mib"] / one["measured_mib"] - 1 for one in rest]))
    return ", ".join(f"{word} {max(values, key=abs):+.0%}" for word, values in errors if values)


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"
