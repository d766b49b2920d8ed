"""The table of the allowed changes of state."""

import itertools

import pytest

from cnnserve.registry.lifecycle import ModelEntry, State, VersionEntry

LEGAL = {
    (State.LOADING, State.BUILDING),
    (State.LOADING, State.READY),
    (State.LOADING, State.UNAVAILABLE),
    (State.BUILDING, State.READY),
    (State.BUILDING, State.UNAVAILABLE),
    (State.READY, State.UNLOADING),
    (State.READY, State.UNAVAILABLE),
    (State.UNLOADING, State.UNAVAILABLE),
}
PATHS = {
    State.LOADING: [],
    State.BUILDING: [State.BUILDING],
    State.READY: [State.READY],
    State.UNLOADING: [State.READY, State.UNLOADING],
    State.UNAVAILABLE: [State.UNAVAILABLE],
}


@pytest.mark.parametrize(("start", "end"), [*itertools.product(State, State)], ids=lambda state: state.value)
def test_every_move_is_legal_or_raises_and_changes_nothing(start: State, end: State) -> None:
    entry = VersionEntry(1)
    for state in PATHS[start]:
        entry.move(state)
    entry.reason = "before"
    if (start, end) in LEGAL:
        entry.move(end, "after")
        assert (entry.state, entry.reason) == (end, "after")
    else:
        with pytest.raises(ValueError, match=f"from {start.value} to {end.value}"):
            entry.move(end, "after")
        assert (entry.state, entry.reason) == (start, "before")


def test_stages_of_a_load() -> None:
    entry = VersionEntry(1)
    entry.stage("reading")
    assert (entry.state, entry.reason) == (State.LOADING, "reading")
    entry.stage("building TensorRT engines")
    entry.stage("building TensorRT engines")
    assert (entry.state, entry.reason) == (State.BUILDING, "building TensorRT engines")
    entry.stage("warming")
    assert (entry.state, entry.reason) == (State.BUILDING, "warming")
    entry.move(State.READY)
    entry.stage("building, told late")
    assert (entry.state, entry.reason) == (State.READY, "")


def test_versions_are_in_order() -> None:
    model = ModelEntry("m")
    for number in (10, 2, 1):
        model.put(VersionEntry(number))
    assert list(model.versions) == [1, 2, 10]
    assert not model.ready
