"""The table of the allowed changes of state."""

import itertools

import pytest

from cnnserve.registry.lifecycle import ModelEntry, State, VersionEntry, VersionLabels

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


def test_a_new_load_has_no_reason_and_its_files() -> None:
    entry = VersionEntry(3, "files")
    assert (entry.version, entry.fingerprint, entry.tried) == (3, "files", "files")
    assert (entry.state, entry.reason, entry.model, entry.load_s) == (State.LOADING, "", None, None)
    assert repr(entry) == "<VersionEntry 3 LOADING>"
    entry.move(State.UNAVAILABLE, "broken")
    assert repr(entry) == "<VersionEntry 3 UNAVAILABLE (broken)>"


def test_what_is_built_is_told_at_once() -> None:
    entry = VersionEntry(1)
    entry.stage("building engines")
    assert entry.reason == "building engines"


def test_a_new_model_is_not_wanted_and_says_why_it_has_no_versions() -> None:
    model = ModelEntry("m")
    assert (model.name, model.wanted, model.versions, model.labels) == ("m", False, {}, VersionLabels())
    assert "not loaded" in model.reason
    assert ModelEntry("m", "other").reason == "other"


def test_the_labels_of_a_version() -> None:
    labels = VersionLabels({"stable": 2, "canary": 3, "best": 2})
    assert (labels.of(2), labels.of(3), labels.of(4)) == (["best", "stable"], ["canary"], [])


def test_a_new_version_has_no_failure_that_may_pass() -> None:
    assert VersionEntry(1).may_pass is False
