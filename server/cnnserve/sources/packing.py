"""Makes a pack of a version: an OCI image layout, in a folder or in a tar. The same version gives the same bytes."""

import dataclasses
import errno
import hashlib
import io
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cnnserve.repository import folders, signature
from cnnserve.repository import manifest as manifests
from cnnserve.repository.folders import MANIFEST_FILE, MODEL_LEVEL, ModelFolder, version_number
from cnnserve.repository.manifest import Manifest
from cnnserve.repository.signature import SIGNATURE_FILE
from cnnserve.repository.tree import Tree
from cnnserve.repository.verification import check_version
from cnnserve.sources import oci, tars
from cnnserve.sources.contents import MODELCAR
from cnnserve.sources.errors import SourceError
from cnnserve.sources.oci import INDEX_FILE, LAYOUT, LAYOUT_FILE, REF_NAME, Descriptor
from cnnserve.sources.room import CHUNK, check_path
from cnnserve.sources.stores import DEEPEST

_TITLE, _VERSION = "org.opencontainers.image.title", "org.opencontainers.image.version"
# The files of a model are the same on all of them; a container engine takes the manifest of its own.
_PLATFORMS = ("amd64", "arm64")


@dataclass(frozen=True)
class Packed:
    """A pack that was made. `digest`: what a registry calls it. `files`: their number; `size`: their bytes."""

    model: str
    version: int
    digest: str
    files: int
    size: int


@dataclass(frozen=True)
class _File:
    """A file of the pack, by its path in a model repository, and the blob that has its content."""

    path: str
    blob: Descriptor


def pack(path: Path, output: Path, *, modelcar: bool = False) -> Packed:
    """Writes a pack of the version whose folder is `path`: a tar if the name of `output` ends in .tar, else a folder.

    `modelcar`: as an image with the files in the folder `models`, for image volumes of Kubernetes and KServe.
    Raises `SourceError` and `ModelLoadFailed`, then there is no output.
    """
    folder, version = _version(path)
    check_version(folder, version)
    with _made(output) as layout, Tree(folder.path) as tree:
        manifest = _manifest(folder, version)
        place = folder.place(version)
        names = [*_beside(tree, manifest)] if place else []
        files = [_add(tree, name, f"{manifest.model}/{name}", layout) for name in names]
        for name in _walk(tree, place):
            inside = name.removeprefix(f"{place}/")
            file = _add(tree, name, f"{manifest.model}/{version}/{inside}", layout)
            if (stated := manifest.files.get(inside)) and stated.sha256 != file.blob.sha256:
                raise SourceError(f"{path}: file {inside} has changed meanwhile; pack the version again")
            files.append(file)
        files.sort(key=lambda file: file.path)
        top = _modelcar(files, layout) if modelcar else _model_pack(files, manifest, layout)
        _write_index(layout, top, str(version))
    size = sum(file.blob.size for file in files)
    return Packed(manifest.model, version, top["digest"], len(files), size)


def _version(path: Path) -> tuple[ModelFolder, int]:
    folder = folders.named(path)
    number = version_number(folder.name)
    if number and (folder / MANIFEST_FILE).exists():
        return ModelFolder(folder.parent.name, folder.parent, {number: folder}), number
    model = folders.model_folder(folder)
    if model.mounted:
        return model, next(iter(model.versions))
    if model.versions:
        there = ", ".join(str(path / str(version)) for version in model.versions)
        raise SourceError(f"{path} is the folder of a model, expected that of a version: {there}")
    what = "is no folder of a version with a manifest" if folder.is_dir() else "is no folder"
    raise SourceError(f"{path} {what}; give MODEL/VERSION of a version that cnnserve published")


def _manifest(folder: ModelFolder, version: int) -> Manifest:
    found = manifests.read(folder.versions[version])
    if found is None:
        raise SourceError(f"{folder.versions[version]} has no {MANIFEST_FILE} any more; pack the version again")
    return found


def _beside(tree: Tree, manifest: Manifest) -> Iterator[str]:
    """Yields the files of the model beside its versions: those that are signed, or those that the server knows."""
    if tree.has(SIGNATURE_FILE):
        signed = signature.statement(signature.envelope(tree.read(SIGNATURE_FILE)).payload)
        yield from (SIGNATURE_FILE, *signed.files)
        return
    # Anything else may be there by chance: the folder of a project, for example.
    for name in tree.names(""):
        if name in MODEL_LEVEL or name == manifest.labels:
            yield from _walk(tree, name) if _is_folder(tree, name) else (name,)


def _walk(tree: Tree, folder: str, depth: int = DEEPEST) -> Iterator[str]:
    for name in tree.names(folder):
        path = f"{folder}/{name}" if folder else name
        if name.startswith("."):
            continue
        if depth > 1 and _is_folder(tree, path):
            yield from _walk(tree, path, depth - 1)
        else:
            yield path


def _is_folder(tree: Tree, path: str) -> bool:
    return stat.S_ISDIR(tree.stat(path).st_mode)


def _add(tree: Tree, name: str, path: str, layout: Path) -> _File:
    with tree.open(name) as file:
        return _File(check_path(path), _blob(layout, file, ""))


def _blob(layout: Path, source: io.BufferedIOBase, media_type: str) -> Descriptor:
    """Writes a blob, and returns its descriptor."""
    digest = hashlib.sha256()
    partial = layout / "blobs" / "sha256" / "partial"
    with partial.open("wb") as file:
        while chunk := source.read(CHUNK):
            digest.update(chunk)
            file.write(chunk)
        size = file.tell()
    blob = Descriptor(media_type, f"sha256:{digest.hexdigest()}", size)
    partial.replace(layout / blob.blob)
    return blob


def _document(layout: Path, document: Mapping[str, Any], media_type: str) -> Descriptor:
    return _blob(layout, io.BytesIO(oci.to_json(document)), media_type)


def _model_pack(files: list[_File], manifest: Manifest, layout: Path) -> dict[str, Any]:
    """Writes config and manifest of CNCF ModelPack, whose layers are the files themselves."""
    config = {
        "descriptor": {"name": manifest.model, "version": str(manifest.version)},
        "config": {
            "architecture": "cnn",
            "format": "onnx",
            "paramSize": _parameters(manifest.parameters),
            "precision": manifest.onnx.precision,
        },
        "modelfs": {"type": "layers", "diffIds": [file.blob.digest for file in files]},
    }
    small = {manifest.labels, manifest.golden.probabilities, *manifest.golden.images}
    weights = {f"{manifest.model}/{manifest.version}/{name}" for name in manifest.files if name not in small}
    layers = [
        dataclasses.replace(
            file.blob,
            media_type=oci.WEIGHT if file.path in weights else oci.WEIGHT_CONFIG,
            annotations={oci.FILEPATH: file.path},
        ).document()
        for file in files
    ]
    document = {
        "schemaVersion": 2,
        "mediaType": oci.MANIFEST,
        "artifactType": oci.PACK,
        "config": _document(layout, config, oci.PACK_CONFIG).document(),
        "layers": layers,
        "annotations": {_TITLE: manifest.model, _VERSION: str(manifest.version)},
    }
    return _document(layout, document, oci.MANIFEST).document() | {"artifactType": oci.PACK}


def _modelcar(files: list[_File], layout: Path) -> dict[str, Any]:
    """Writes an image with one layer, for each platform, and the index of these images."""
    tar = layout / "layer.tar"
    with tar.open("wb") as file:
        tars.write_tar(file, [(f"{MODELCAR}/{one.path}", layout / one.blob.blob) for one in files])
    # No layer refers to the single files.
    shutil.rmtree(layout / "blobs")
    (layout / "blobs" / "sha256").mkdir(parents=True)
    with tar.open("rb") as source:
        layer = _blob(layout, source, oci.IMAGE_LAYER)
    tar.unlink()
    images = []
    for architecture in _PLATFORMS:
        platform = {"architecture": architecture, "os": "linux"}
        config = platform | {"config": {}, "rootfs": {"type": "layers", "diff_ids": [layer.digest]}}
        document = {
            "schemaVersion": 2,
            "mediaType": oci.MANIFEST,
            "config": _document(layout, config, oci.IMAGE_CONFIG).document(),
            "layers": [layer.document()],
        }
        images.append(_document(layout, document, oci.MANIFEST).document() | {"platform": platform})
    index = {"schemaVersion": 2, "mediaType": oci.INDEX, "manifests": images}
    return _document(layout, index, oci.INDEX).document()


def _parameters(number: int) -> str:
    """Returns a number of parameters as ModelPack writes it: 61706 is 61.7k."""
    scale = min((len(str(number)) - 1) // 3, 4)
    return f"{number / 1000**scale:.1f}".removesuffix(".0") + " kmbt"[scale].strip()


def _write_index(layout: Path, top: dict[str, Any], name: str) -> None:
    index = {"schemaVersion": 2, "mediaType": oci.INDEX, "manifests": [top | {"annotations": {REF_NAME: name}}]}
    (layout / INDEX_FILE).write_bytes(oci.to_json(index))
    (layout / LAYOUT_FILE).write_bytes(LAYOUT)


@contextmanager
def _made(output: Path) -> Iterator[Path]:
    """Yields a folder for the layout; at the end it is the folder or the tar `output`, by one rename.

    Raises `SourceError` if there is something at `output`, or if it cannot be written.
    """
    output = output.absolute()
    if os.path.lexists(output):
        raise SourceError(f"{output} exists; remove it, or choose another --output")
    try:
        with tempfile.TemporaryDirectory(prefix=".pack-", dir=output.parent) as work:
            layout = Path(work, "layout")
            (layout / "blobs" / "sha256").mkdir(parents=True)
            yield layout
            made = layout
            if output.suffix == ".tar":
                made = Path(work, "pack.tar")
                with made.open("wb") as file:
                    tars.write_tar(file, [(str(path.relative_to(layout)), path) for path in _in_order(layout)])
            made.rename(output)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
            raise SourceError(f"{output} was made by somebody else meanwhile; choose another --output") from error
        raise SourceError(
            f"{output} cannot be written: {error.strerror}; make its folder, free space, or choose another --output"
        ) from error


def _in_order(layout: Path) -> list[Path]:
    """Returns the files of a layout, the two that name the others first."""
    return [layout / LAYOUT_FILE, layout / INDEX_FILE, *sorted((layout / "blobs" / "sha256").iterdir())]
