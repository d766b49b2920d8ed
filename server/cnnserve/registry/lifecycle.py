"""The states of a model version and the moves between them.

The table `_MOVES` has all legal moves. Any other move is a programming error and changes nothing. A reload is not a
move: the new load has a separate entry, which replaces the old entry when it is READY.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    # `cnnserve doctor` reads which versions are to be served also if the packages of a model are not installed.
    from cnnserve.model.version import Model


class State(enum.Enum):
    """The state of a version. The values are Triton's words, and BUILDING."""

    LOADING = "LOADING"
    # ONNX Runtime compiles the model for its device during a load, which may take minutes.
    BUILDING = "BUILDING"
    READY = "READY"
    UNLOADING = "UNLOADING"
    UNAVAILABLE = "UNAVAILABLE"


_MOVES: dict[State, frozenset[State]] = {
    State.LOADING: frozenset({State.BUILDING, State.READY, State.UNAVAILABLE}),
    State.BUILDING: frozenset({State.READY, State.UNAVAILABLE}),
    # A version that hangs or fails when its self-test is repeated is not drained.
    State.READY: frozenset({State.UNLOADING, State.UNAVAILABLE}),
    State.UNLOADING: frozenset({State.UNAVAILABLE}),
    State.UNAVAILABLE: frozenset(),
}
_OPENING = (State.LOADING, State.BUILDING)


class VersionEntry:
    """One load of one version: its state and the reason for it. `model` is set while READY and UNLOADING.

    `fingerprint` describes the version's files as this load read them, `tried` as the last attempt to load them did.
    They differ if a reload failed and this load still serves. `load_s` is the duration of the load in s, None until the
    load has ended. `may_pass`: the last attempt failed for a reason that may pass without a change of the files, such
    as no memory.
    """

    def __init__(self, version: int, fingerprint: object = None) -> None:
        self.version = version
        self.fingerprint = fingerprint
        self.tried = fingerprint
        self.state = State.LOADING
        self.reason = ""
        self.model: Model | None = None
        self.load_s: float | None = None
        self.may_pass = False

    def __repr__(self) -> str:
        return f"<VersionEntry {self.version} {self.state.value}{f' ({self.reason})' if self.reason else ''}>"

    def move(self, state: State, reason: str = "", model: "Model | None" = None) -> None:
        """Makes one of the legal moves. Raises `ValueError` for any other."""
        if state not in _MOVES[self.state]:
            raise ValueError(f"version {self.version} cannot go from {self.state.value} to {state.value}")
        self.state, self.reason, self.model = state, reason, model

    def stage(self, text: str) -> None:
        """Records what the load does now. A `text` that begins with "building" moves the version to BUILDING."""
        if self.state is State.LOADING and text.startswith("building"):
            self.move(State.BUILDING, text)
        elif self.state in _OPENING:
            self.reason = text


@dataclass(frozen=True)
class VersionLabels:
    """The version of each version label. `signature` describes the labels' file when it was read."""

    versions: Mapping[str, int] = field(default_factory=dict)
    signature: object = None

    def of(self, version: int) -> list[str]:
        """Returns the labels of one version, sorted."""
        return sorted(label for label, number in self.versions.items() if number == version)


class ModelEntry:
    """The versions of one model by number, ascending. `reason` says why there are none.

    `wanted`: whether the model is to be served; False before its first load and after it was unloaded. `unreadable`:
    its folder could not be read at the last attempt to load it.
    """

    def __init__(self, name: str, reason: str = "it is not loaded") -> None:
        self.name = name
        self.reason = reason
        self.wanted = False
        self.unreadable = False
        self.versions: dict[int, VersionEntry] = {}
        self.labels = VersionLabels()

    @property
    def may_pass(self) -> bool:
        """Whether the last attempt to load failed for a reason that may pass without a change of the files."""
        return self.unreadable or any(version.may_pass for version in self.versions.values())

    @property
    def ready(self) -> list[VersionEntry]:
        """The READY versions, ascending."""
        return [entry for entry in self.versions.values() if entry.state is State.READY]

    @property
    def newest(self) -> VersionEntry | None:
        """The newest READY version, or the newest one if none is READY."""
        newest = None
        # Every request comes here, so no list is made.
        for entry in reversed(self.versions.values()):
            if entry.state is State.READY:
                return entry
            newest = newest or entry
        return newest

    def put(self, entry: VersionEntry) -> None:
        """Adds or replaces a version's entry and keeps the versions in order."""
        self.versions[entry.version] = entry
        self.versions = dict(sorted(self.versions.items()))
