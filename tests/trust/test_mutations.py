"""Manifests changed at random: each is refused in one way, or read and held to the limits of the server."""

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cnnserve.errors import ModelLoadFailed
from cnnserve.repository import manifest as manifests
from cnnserve.repository.manifest import Manifest
from spoiling import SCHEMA_1
from support import REPOSITORY

TEXTS = {
    schema: (root / "lenet5" / "1" / "manifest.json").read_bytes() for schema, root in ((1, SCHEMA_1), (2, REPOSITORY))
}
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
NUMBERS = st.floats(1e-5, 10) | st.floats() | st.integers(-2, 10**6) | st.sampled_from([1e-4, 1e-2, 1e-3, 1e300])


def paths(value: Any, *above: str | int) -> Iterator[tuple[str | int, ...]]:
    """Every place in a JSON document."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*above, key)
        yield from paths(item, *above, key)


PLACES = {schema: list(paths(json.loads(text))) for schema, text in TEXTS.items()}


def numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from numbers(item)
    elif isinstance(value, float):
        yield value


def held_to_the_limits(data: bytes | str) -> None:
    """Reads a manifest that may be anything."""
    manifest, said = None, ""
    try:
        manifest = manifests.parse(data)
    except ModelLoadFailed as error:
        said = str(error)
    # A client can be told.
    assert len(said.encode()) < 2000
    if manifest is None:
        return
    golden, precision = manifest.golden, manifest.onnx.precision
    assert 0 < golden.tolerance <= manifests.TOLERANCES[precision]
    if manifest.schema == 1:
        assert golden.log_tolerance is None
    else:
        assert golden.log_tolerance is not None
        assert 0 < golden.log_tolerance <= manifests.LOG_TOLERANCES[precision]
        assert manifests.parse(manifests.to_json(manifest)) == manifest
    assert all(math.isfinite(number) for number in numbers(dataclasses.asdict(manifest)))
    json.dumps(manifests.document(manifest)).encode()
    assert_names_are_inside(manifest)


def assert_names_are_inside(manifest: Manifest) -> None:
    golden = manifest.golden
    named = {manifest.onnx.file, manifest.labels, *golden.images, golden.probabilities} - {None}
    assert named <= manifest.files.keys()
    for name in manifest.files:
        assert (Path("/models/m/1") / name).resolve().parent == Path("/models/m/1")


@settings(max_examples=300)
@given(st.sampled_from([1, 2]), st.data())
def test_changed_fields(schema: int, data: st.DataObject) -> None:
    raw = json.loads(TEXTS[schema])
    for _ in range(data.draw(st.integers(1, 3))):
        *parents, last = data.draw(st.sampled_from(PLACES[schema]))
        target = raw
        try:
            for key in parents:
                target = target[key]
            before = target[last]
        except (KeyError, IndexError, TypeError):
            # An earlier change took this place away.
            continue
        number = isinstance(before, int | float) and not isinstance(before, bool)
        target[last] = data.draw(NUMBERS if number and data.draw(st.booleans()) else ANY_JSON)
        if data.draw(st.integers(0, 9)) == 0:
            del target[last]
    held_to_the_limits(json.dumps(raw))


@settings(max_examples=300)
@given(
    st.sampled_from([1, 2]),
    st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 3), st.binary(max_size=4)), min_size=1, max_size=4),
)
def test_changed_bytes(schema: int, changes: list[tuple[int, int, bytes]]) -> None:
    data = TEXTS[schema]
    for position, removed, added in changes:
        place = position % len(data)
        data = data[:place] + added + data[place + removed :]
    held_to_the_limits(data)


@settings(max_examples=200)
@given(st.binary(max_size=200) | st.text(max_size=200) | ANY_JSON.map(json.dumps))
def test_anything(data: bytes | str) -> None:
    held_to_the_limits(data)


@pytest.mark.parametrize("schema", [1, 2])
@pytest.mark.parametrize("tolerance", ["1", "1e999", "Infinity", "0.00010001", "-0.0", "1e-400"])
def test_no_tolerance_passes_the_limit(schema: int, tolerance: str) -> None:
    text = TEXTS[schema].decode()
    for place in range(text.count('"tolerance": 0.0001')):
        parts = text.split('"tolerance": 0.0001')
        changed = '"tolerance": 0.0001'.join(parts[: place + 1]) + f'"tolerance": {tolerance}'
        held_to_the_limits(changed + '"tolerance": 0.0001'.join(parts[place + 1 :]))
