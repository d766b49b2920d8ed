"""The states of a model version and the moves between them.

A version's life is the table `_MOVES`; any other move is a programming error and changes nothing. A reload is not a
move: the new load is an entry of its own, which takes the old one's place when it is READY.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from cnnserve.model.version import Model


class State(enum.Enum):
    """Where a version is in its life; the values are Triton's words, and BUILDING."""

    LOADING = "LOADING"
    # Loading, and the runtime compiles the model for its device, which may take minutes.
    BUILDING = "BUILDING"
    READY = "READY"
    UNLOADING = "UNLOADING"
    UNAVAILABLE = "UNAVAILABLE"


_MOVES: dict[State, frozenset[State]] = {
    State.LOADING: frozenset({State.BUILDING, State.READY, State.UNAVAILABLE}),
    State.BUILDING: frozenset({State.READY, State.UNAVAILABLE}),
    State.READY: frozenset({State.UNLOADING}),
    State.UNLOADING: frozenset({State.UNAVAILABLE}),
    State.UNAVAILABLE: frozenset(),
}
_OPENING = (State.LOADING, State.BUILDING)


class VersionEntry:
    """One load of one version, in one state, for a reason. `model` is set while READY and UNLOADING.

    `fingerprint` is what its files looked like when it was loaded, `tried` when it was last tried: they differ where a
    reload failed and this load still serves. `load_s` is how long the load took, None while it goes on.
    """

    def __init__(self, version: int, fingerprint: object = None) -> None:
        self.version = version
        self.fingerprint = fingerprint
        self.tried = fingerprint
        self.state = State.LOADING
        self.reason = ""
        self.model: Model | None = None
        self.load_s: float | None = None

    def __repr__(self) -> str:
        return f"<VersionEntry {self.version} {self.state.value}{f' ({self.reason})' if self.reason else ''}>"

    def move(self, state: State, reason: str = "", model: Model | None = None) -> None:
        """Takes one of the legal moves. Raises `ValueError` for any other."""
        if state not in _MOVES[self.state]:
            raise ValueError(f"version {self.version} cannot go from {self.state.value} to {state.value}")
        self.state, self.reason, self.model = state, reason, model

    def stage(self, text: str) -> None:
        """What its loading does now, as the loader says it: "building ..." moves to BUILDING."""
        if self.state is State.LOADING and text.startswith("building"):
            self.move(State.BUILDING, text)
        elif self.state in _OPENING:
            self.reason = text


@dataclass(frozen=True)
class VersionLabels:
    """Words that stand for versions; `signature` is what their file looked like when it was read."""

    versions: Mapping[str, int] = field(default_factory=dict)
    signature: object = None

    def of(self, version: int) -> list[str]:
        """The words for one version, in order."""
        return sorted(word for word, number in self.versions.items() if number == version)


class ModelEntry:
    """One model's versions by number, ascending; `reason` says why there are none.

    `wanted`: it is to be served; False before it was first loaded and after it was unloaded.
    """

    def __init__(self, name: str, reason: str = "it is not loaded") -> None:
        self.name = name
        self.reason = reason
        self.wanted = False
        self.versions: dict[int, VersionEntry] = {}
        self.labels = VersionLabels()

    @property
    def ready(self) -> list[VersionEntry]:
        """The versions that answer now, ascending."""
        return [entry for entry in self.versions.values() if entry.state is State.READY]

    def put(self, entry: VersionEntry) -> None:
        """Sets a version's entry and keeps the versions in order."""
        self.versions[entry.version] = entry
        self.versions = dict(sorted(self.versions.items()))
