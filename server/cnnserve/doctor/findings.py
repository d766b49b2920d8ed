"""What a check has found, and the settings that the checks look at."""

import enum
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cnnserve.repository.folders import Models, NamedModels


class Status(enum.Enum):
    """How much a finding matters. NOTE: something is absent or was not checked, which these settings do not need."""

    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True)
class Finding:
    """One result of a check. `fix`: what to do, if anything. `data`: the numbers behind the text, for `--json`."""

    name: str
    status: Status
    text: str
    fix: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """Returns the finding as JSON."""
        return {"name": self.name, "status": self.status.value, "text": self.text, "fix": self.fix, **self.data}


@dataclass(frozen=True)
class Context:
    """The settings as `cnnserve serve` would have them, by name. `load`: whether models are loaded and self-tested."""

    settings: Mapping[str, Any]
    load: bool = True

    @property
    def models(self) -> Models | None:
        """Where the models are; None if no setting says it."""
        single = dict(text.partition("=")[::2] for text in self.settings.get("model", ()))
        path = self.settings.get("repository")
        if single:
            return NamedModels({name: Path(place) for name, place in single.items()})
        return path if isinstance(path, Path) else None


Check = Callable[[Context], Iterable[Finding]]


def many(number: int, noun: str) -> str:
    """Returns a number with its noun, such as "1 version" or "2 versions"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def parted(text: str, otherwise: str = "") -> tuple[str, str]:
    """Returns an error text in two parts: what happened, and what to do.

    The server's errors say what to do behind the last semicolon. `otherwise`: what to do if the text has none.
    """
    problem, sign, fix = text.rpartition("; ")
    return (problem, fix) if sign else (text, otherwise)
