"""The private copies of an ONNX file and of the files with its tensors, from which sessions are made."""

import contextlib
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import BinaryIO

from cnnserve.errors import ModelLoadFailed
from cnnserve.repository import manifest as manifests
from cnnserve.repository import onnx_external, other_files
from cnnserve.repository.folders import MODEL_LEVEL
from cnnserve.repository.manifest import MANIFEST_FILE, Manifest
from cnnserve.repository.onnx_external import Reference
from cnnserve.repository.private_copy import PrivateCopy
from cnnserve.repository.signature import SIGNATURE_FILE
from cnnserve.repository.version_files import VersionFiles

# Files that a warning lists.
_LISTED = 5


@dataclass
class OnnxFiles:
    """The copy of an ONNX file, and those of its external data by the path that the ONNX file gives. Close them."""

    model: PrivateCopy
    external: dict[str, PrivateCopy] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name of the ONNX file."""
        return PurePosixPath(self.model.name).name

    @property
    def size(self) -> int:
        """The size of all files in bytes."""
        return self.model.size + sum(copy.size for copy in {*self.external.values()})

    @property
    def digest(self) -> str:
        """A digest of all files, in hexadecimal digits."""
        digests = [self.model.sha256, *(f"{path} {copy.sha256}" for path, copy in sorted(self.external.items()))]
        return hashlib.sha256("\n".join(digests).encode()).hexdigest()

    def close(self) -> None:
        """Frees the memory."""
        _close((self.model, *self.external.values()))


def load(files: VersionFiles, name: str, manifest: Manifest | None) -> OnnxFiles:
    """Copies the ONNX file `name` of a version, and its external data. Raises `ModelLoadFailed`.

    If there is a manifest, it must name each of these files, and the digests of all its files are compared before
    anything is read from one of them.
    """
    copies: dict[str, PrivateCopy] = {}
    try:
        copies = manifests.verify(manifest, files) if manifest is not None else {}
        model = copies[name] = copies.get(name) or _copy(files, name)
        external = {}
        if not model.size:
            raise ModelLoadFailed(f"{name} is empty")
        with model.open() as file:
            references = _references(file, name)
        for reference in references:
            place = _place(name, reference, manifest)
            external[reference.location] = copies[place] = copies.get(place) or _copy(files, place)
    except BaseException as error:
        _close(copies.values())
        if isinstance(error, ModelLoadFailed):
            _check_kind(files, name)
        raise
    result = OnnxFiles(model, external)
    _close({*copies.values()} - {model, *external.values()})
    return result


def check_references(files: VersionFiles, manifest: Manifest) -> None:
    """Raises `ModelLoadFailed` if the ONNX file refers to a file that `load` would not take."""
    name = manifest.onnx.file
    with files.open(name) as file:
        for reference in _references(file, name):
            _place(name, reference, manifest)


def unnamed(files: VersionFiles, manifest: Manifest) -> str:
    """Returns a warning of files in the version's folder that the manifest does not name; "" if there are none."""
    named = {MANIFEST_FILE, SIGNATURE_FILE, *manifest.files, *(MODEL_LEVEL if files.folder.mounted else ())}
    if not (names := [name for name in files.names() if name not in named and not name.startswith(".")]):
        return ""
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"the manifest does not name {', '.join(names[:_LISTED])}{more}, so nothing reads them; remove them"


def _check_kind(files: VersionFiles, name: str) -> None:
    """Raises `ModelLoadFailed` if a file that cannot be loaded is a well-known one of another kind."""
    kind = ""
    with contextlib.suppress(OSError, ModelLoadFailed), files.open(name) as file:
        kind = other_files.named(file.read(other_files.HEAD_BYTES))
    if kind:
        raise ModelLoadFailed(f"{PurePosixPath(name).name} is {kind}") from None


def _references(file: BinaryIO, name: str) -> list[Reference]:
    try:
        return onnx_external.references(file)
    except ValueError as error:
        name = PurePosixPath(name).name
        raise ModelLoadFailed(
            f"{name} cannot be loaded: it is no ONNX file, or not complete ({error}); copy it again"
        ) from None


def _close(copies: Iterable[PrivateCopy]) -> None:
    for copy in copies:
        copy.close()


def _copy(files: VersionFiles, name: str) -> PrivateCopy:
    try:
        return files.copy(name)
    except FileNotFoundError:
        raise ModelLoadFailed(f"file {name} is missing from the version folder") from None


def _place(name: str, reference: Reference, manifest: Manifest | None) -> str:
    """Returns the name of a file of external data in the version's folder."""
    location = reference.location
    path = PurePosixPath(location)
    what = f"{name} refers to the file {location[:200]!r}"
    if not path.parts or path.is_absolute() or ".." in path.parts or "\\" in location or "\0" in location:
        raise ModelLoadFailed(f"{what}, which is not a file beside it; save the model with its data beside it")
    place = str(PurePosixPath(name).parent / path)
    if manifest is not None and place not in manifest.files:
        raise ModelLoadFailed(
            f"{what}, which the manifest does not name; import the model with cnnserve import, which embeds its data"
        )
    if reference.nested:
        raise ModelLoadFailed(
            f"{what} for a tensor of a nested graph, of a function, or a sparse one, which is not supported; import "
            "the model with cnnserve import, which embeds its data"
        )
    return place
