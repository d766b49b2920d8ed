"""The documents of layouts and registries, whatever is in them."""

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnnserve.sources import oci
from cnnserve.sources.errors import SourceError
from cnnserve.sources.registry import Reference

DIGEST = f"sha256:{'0' * 64}"
GOOD = {"mediaType": oci.WEIGHT, "digest": DIGEST, "size": 1, "annotations": {oci.FILEPATH: "m/1/f"}}
_words = st.sampled_from([*GOOD, "layers", "manifests", "config", "schemaVersion", oci.FILEPATH])
_values = st.sampled_from(
    [None, True, 0, 1, 2, -1, 1.5, 10**30, "", "x", DIGEST, oci.WEIGHT, oci.MANIFEST, oci.INDEX, GOOD]
)
_json = st.recursive(_values, lambda inner: st.lists(inner) | st.dictionaries(_words, inner), max_leaves=12)


@given(raw=_json)
def test_any_document_is_read_or_refused_with_a_reason(raw: object) -> None:
    data = json.dumps(raw).encode()
    for read in (oci.contents, oci.sole_manifest, oci.chosen, oci.check_layout):
        with contextlib.suppress(SourceError):
            read(data)


@given(data=st.binary())
def test_any_bytes_are_refused_with_a_reason(data: bytes) -> None:
    with pytest.raises(SourceError):
        oci.contents(data)


@pytest.mark.parametrize(
    ("media_type", "expected"),
    [
        ("application/vnd.cncf.model.weight.v1.raw", ("m/1/f", False, False)),
        ("application/vnd.cncf.model.doc.v1.raw", ("m/1/f", False, False)),
        ("application/vnd.cncf.model.weight.config.v1.tar", ("", False, False)),
        ("application/vnd.cncf.model.dataset.v1.tar+gzip", ("", True, False)),
        ("application/vnd.oci.image.layer.v1.tar", ("", False, True)),
        ("application/vnd.docker.image.rootfs.diff.tar.gzip", ("", True, True)),
    ],
)
def test_layers_that_are_taken(media_type: str, expected: tuple[str, bool, bool]) -> None:
    raw: dict[str, Any] = {"schemaVersion": 2, "config": GOOD, "layers": [GOOD | {"mediaType": media_type}]}
    (layer,) = oci.contents(json.dumps(raw).encode()).layers
    assert (layer.path, layer.gzip, layer.image) == expected


@pytest.mark.parametrize(
    "media_type",
    ["application/vnd.cncf.model.weight.v1.tar+zstd", "application/vnd.cncf.model.weight.v2.raw", "text/plain", ""],
)
def test_layers_that_are_refused(media_type: str) -> None:
    raw: dict[str, Any] = {"schemaVersion": 2, "config": GOOD, "layers": [GOOD | {"mediaType": media_type}]}
    with pytest.raises(SourceError, match="has a layer of media type"):
        oci.contents(json.dumps(raw).encode())


def test_an_attestation_is_no_image() -> None:
    image = GOOD | {"mediaType": oci.MANIFEST, "size": 7}
    note = image | {"size": 8, "annotations": {"vnd.docker.reference.type": "attestation-manifest"}}
    assert oci.chosen(json.dumps({"manifests": [note, image]}).encode()).size == 7


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("oci://Registry.example.org/a/b:1", ("registry.example.org", "a/b", "1")),
        ("oci://registry.example.org:443/a:x", ("registry.example.org", "a", "x")),
        (f"oci://localhost:5000/a:1@{DIGEST}", ("localhost:5000", "a", DIGEST)),
    ],
)
def test_references(address: str, expected: tuple[str, str, str]) -> None:
    found = Reference.parse(address)
    assert (found.host, found.name, found.version) == expected


def test_the_name_of_docker_hub_is_not_that_of_its_registry() -> None:
    with pytest.raises(SourceError, match=r"docker\.io is no registry; write oci://registry-1\.docker\.io/a/b"):
        Reference.parse("oci://docker.io/a/b:1")


@pytest.mark.parametrize(
    "rest", ["host", "host/a", "host/A:1", "host/a:", "/a:1", "host/a:1/", "host/a:1\n", "h@x/a:1"]
)
def test_what_is_no_reference(rest: str) -> None:
    with pytest.raises(SourceError, match="is no pack in a registry"):
        Reference.parse(f"oci://{rest}")
