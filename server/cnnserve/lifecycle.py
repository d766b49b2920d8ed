"""The states of a model version and the moves between them.

A version's life is the table `_MOVES`; any other move is a programming error and changes nothing. A reload is not a
move: the new load is an entry of its own, which takes the old one's place when it is READY.
"""

import enum

from cnnserve.model import Model


class State(enum.Enum):
    """Where a version is in its life; the values are Triton's words."""

    LOADING = "LOADING"
    READY = "READY"
    UNLOADING = "UNLOADING"
    UNAVAILABLE = "UNAVAILABLE"


_MOVES: dict[State, frozenset[State]] = {
    State.LOADING: frozenset({State.READY, State.UNAVAILABLE}),
    State.READY: frozenset({State.UNLOADING}),
    State.UNLOADING: frozenset({State.UNAVAILABLE}),
    State.UNAVAILABLE: frozenset(),
}


class VersionEntry:
    """One load of one version, in one state, for a reason. `model` is set while READY and UNLOADING.

    `fingerprint` is what its files looked like when it was loaded.
    """

    def __init__(self, version: int, fingerprint: object = None) -> None:
        self.version = version
        self.fingerprint = fingerprint
        self.state = State.LOADING
        self.reason = ""
        self.model: Model | None = None

    def __repr__(self) -> str:
        return f"<VersionEntry {self.version} {self.state.value}{f' ({self.reason})' if self.reason else ''}>"

    def move(self, state: State, reason: str = "", model: Model | None = None) -> None:
        """Takes one of the legal moves. Raises `ValueError` for any other."""
        if state not in _MOVES[self.state]:
            raise ValueError(f"version {self.version} cannot go from {self.state.value} to {state.value}")
        self.state, self.reason, self.model = state, reason, model


class ModelEntry:
    """One model's versions by number, ascending; `reason` says why there are none."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.versions: dict[int, VersionEntry] = {}
        self.reason = ""

    @property
    def ready(self) -> list[VersionEntry]:
        """The versions that answer now, ascending."""
        return [entry for entry in self.versions.values() if entry.state is State.READY]

    @property
    def settled(self) -> bool:
        """Whether nothing of it is still loading."""
        return all(entry.state is not State.LOADING for entry in self.versions.values())

    def put(self, entry: VersionEntry) -> None:
        """Sets a version's entry and keeps the versions in order."""
        self.versions[entry.version] = entry
        self.versions = dict(sorted(self.versions.items()))
