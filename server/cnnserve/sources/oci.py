"""The documents of OCI layouts and registries: descriptors, manifests, indexes. Reads and writes them; needs no I/O."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cnnserve import json_text
from cnnserve.sources.errors import SourceError

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
_DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
_DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
MANIFESTS = (MANIFEST, _DOCKER_MANIFEST)
INDEXES = (INDEX, _DOCKER_INDEX)
IMAGE_CONFIG = "application/vnd.oci.image.config.v1+json"
IMAGE_LAYER = "application/vnd.oci.image.layer.v1.tar"
# CNCF ModelPack. It also has media types for documentation, code and data sets; all of them end alike.
PACK = "application/vnd.cncf.model.manifest.v1+json"
PACK_CONFIG = "application/vnd.cncf.model.config.v1+json"
WEIGHT = "application/vnd.cncf.model.weight.v1.raw"
WEIGHT_CONFIG = "application/vnd.cncf.model.weight.config.v1.raw"
FILEPATH = "org.cncf.model.filepath"
REF_NAME = "org.opencontainers.image.ref.name"
LAYOUT_FILE = "oci-layout"
INDEX_FILE = "index.json"
LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'
# Registries accept manifests of at most 4 MiB.
LARGEST_DOCUMENT = 4 << 20
_IMAGE_LAYERS = {
    IMAGE_LAYER: False,
    f"{IMAGE_LAYER}+gzip": True,
    "application/vnd.docker.image.rootfs.diff.tar": False,
    "application/vnd.docker.image.rootfs.diff.tar.gzip": True,
}
_PACK_LAYER = re.compile(r"application/vnd\.cncf\.model\.[a-z.]+\.v1\.(raw|tar|tar\+gzip)")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_DAMAGED = "get the pack again, or make it anew with cnnserve pack"


@dataclass(frozen=True)
class Descriptor:
    """Names a blob by its digest (`sha256:` and hexadecimal digits), and says what is in it. `size`: bytes."""

    media_type: str
    digest: str
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict)

    @property
    def sha256(self) -> str:
        """The digest without the name of the algorithm."""
        return self.digest.partition(":")[2]

    @property
    def blob(self) -> str:
        """The path of the blob in a layout."""
        return f"blobs/sha256/{self.sha256}"

    def document(self) -> dict[str, Any]:
        """Returns the descriptor as JSON has it."""
        raw: dict[str, Any] = {"mediaType": self.media_type, "digest": self.digest, "size": self.size}
        return raw | ({"annotations": dict(self.annotations)} if self.annotations else {})


@dataclass(frozen=True)
class Layer:
    """A layer of a pack. `path`: of the file that it is; "": it is a tar.

    `gzip`: whether the tar is compressed. `image`: whether it is a layer of an image, whose files lie in `models`.
    """

    blob: Descriptor
    path: str = ""
    gzip: bool = False
    image: bool = False


@dataclass(frozen=True)
class Contents:
    """What a manifest names."""

    config: Descriptor
    layers: tuple[Layer, ...]


def descriptor(media_type: str, data: bytes, annotations: Mapping[str, str] | None = None) -> Descriptor:
    """Returns the descriptor of a blob."""
    return Descriptor(media_type, f"sha256:{hashlib.sha256(data).hexdigest()}", len(data), annotations or {})


def to_json(document: Mapping[str, Any]) -> bytes:
    """Returns a document as bytes: the same document gives the same bytes."""
    return json.dumps(document, separators=(",", ":"), sort_keys=True).encode()


def check_layout(data: bytes) -> None:
    """Raises `SourceError` unless the file `oci-layout` is that of a layout that can be read."""
    version = _object(data, LAYOUT_FILE).get("imageLayoutVersion")
    if version != "1.0.0":
        raise SourceError(f"{LAYOUT_FILE} has imageLayoutVersion {str(version)[:80]!r}, expected '1.0.0'; {_DAMAGED}")


def sole_manifest(data: bytes) -> Descriptor:
    """Returns the one manifest that the `index.json` of a layout names. Raises `SourceError`."""
    found = _descriptors(_object(data, INDEX_FILE), "manifests", INDEX_FILE)
    if len(found) != 1:
        names = ", ".join(one.annotations.get(REF_NAME, one.digest[:19]) for one in found[:10])
        raise SourceError(
            f"{INDEX_FILE} names {len(found)} manifests{': ' if names else ''}{names}; expected one: copy the pack "
            "that you want into a layout of its own"
        )
    return found[0]


def chosen(data: bytes) -> Descriptor:
    """Returns the manifest of an index of images to take: the files of a model do not depend on the platform."""
    found = [one for one in _descriptors(_object(data, "the index"), "manifests", "the index") if _is_image(one)]
    if not found:
        raise SourceError(f"the index names no manifest; {_DAMAGED}")
    return found[0]


def contents(data: bytes) -> Contents:
    """Returns what a manifest names. Raises `SourceError` if it is not that of a pack or an image."""
    raw = _object(data, "the manifest")
    if raw.get("schemaVersion") != 2:
        found = str(raw.get("schemaVersion"))[:80]
        raise SourceError(f"the manifest has schemaVersion {found}, expected 2; {_DAMAGED}")
    layers = tuple(map(_layer, _descriptors(raw, "layers", "the manifest")))
    if not layers:
        raise SourceError(f"the manifest names no layers; {_DAMAGED}")
    return Contents(_descriptor(raw.get("config"), "the manifest"), layers)


def _layer(blob: Descriptor) -> Layer:
    if blob.media_type in _IMAGE_LAYERS:
        return Layer(blob, gzip=_IMAGE_LAYERS[blob.media_type], image=True)
    match = _PACK_LAYER.fullmatch(blob.media_type)
    if match is None:
        raise SourceError(
            f"the manifest has a layer of media type {blob.media_type[:120]!r}, expected one of CNCF ModelPack (raw, "
            "tar or tar+gzip) or of an OCI image (tar or tar+gzip); make the pack with cnnserve pack"
        )
    if match[1] != "raw":
        return Layer(blob, gzip=match[1].endswith("gzip"))
    if not (path := blob.annotations.get(FILEPATH)):
        raise SourceError(f"the layer {blob.digest[:19]}… has no annotation {FILEPATH}; {_DAMAGED}")
    return Layer(blob, path=path)


def _is_image(one: Descriptor) -> bool:
    # Builders add manifests of attestations, which belong to no platform.
    return one.media_type in MANIFESTS and "vnd.docker.reference.type" not in one.annotations


def _descriptors(raw: Mapping[str, Any], name: str, where: str) -> list[Descriptor]:
    values = raw.get(name)
    if not isinstance(values, list):
        raise SourceError(f"{where} has no list {name!r}; {_DAMAGED}")
    return [_descriptor(value, where) for value in values]


def _descriptor(raw: object, where: str) -> Descriptor:
    if not isinstance(raw, dict):
        raise SourceError(f"{where} has {str(raw)[:80]!r} in place of a descriptor; {_DAMAGED}")
    media_type, digest, size = raw.get("mediaType"), raw.get("digest"), raw.get("size")
    notes = raw.get("annotations") or {}
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise SourceError(f"{where} has the digest {str(digest)[:120]!r}, expected sha256:… with 64 digits; {_DAMAGED}")
    # A bool is an int.
    if type(size) is not int or size < 0 or not isinstance(media_type, str):
        raise SourceError(f"{where} has no size or no mediaType for {digest[:19]}…; {_DAMAGED}")
    if not isinstance(notes, dict) or not all(isinstance(value, str) for value in notes.values()):
        raise SourceError(f"{where} has annotations of {digest[:19]}… that are no texts; {_DAMAGED}")
    return Descriptor(media_type, digest, size, notes)


def _object(data: bytes, name: str) -> dict[str, Any]:
    try:
        raw = json_text.loads_strictly(data)
    except ValueError as error:
        raise SourceError(f"{name} is not JSON: {error}; {_DAMAGED}") from error
    if not isinstance(raw, dict):
        raise SourceError(f"{name} holds a {type(raw).__name__}, expected a JSON object; {_DAMAGED}")
    return raw
