"""What a source brings: a pack, or the files of versions as they lie in a model repository."""

import contextlib
import hashlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from cnnserve.errors import ModelLoadFailed
from cnnserve.repository import manifest as manifests
from cnnserve.repository.folders import LARGEST_MANIFEST, MANIFEST_FILE
from cnnserve.sources import oci, tars
from cnnserve.sources.errors import SourceError
from cnnserve.sources.oci import INDEX_FILE, LARGEST_DOCUMENT, LAYOUT_FILE, Contents, Descriptor, Layer
from cnnserve.sources.room import Reads, Room, check_path, write
from cnnserve.sources.stores import Folder, Opens, Store
from cnnserve.sources.web import small

# The folder of a modelcar, an image with a model, that has the files.
MODELCAR = "models"


class Source(Protocol):
    """Something to pull. Both methods raise `SourceError`, and `OSError` if the disk cannot be written."""

    def identify(self, work: Path, room: Room, /) -> str:
        """Returns a name of the content, of hexadecimal digits: other content has another one.

        Fetches what this needs. `work`: a hidden folder, of which only `files` is looked at later.
        """

    def fetch(self, work: Path, room: Room) -> None:
        """Writes all files into `work/files`. Comes after `identify`."""


class Blobs(Protocol):
    """Where the blobs of a pack are."""

    def manifest(self) -> tuple[bytes, str]:
        """Returns the manifest and its digest. Raises `SourceError`."""

    def open(self, blob: Descriptor, /) -> contextlib.AbstractContextManager[Reads]:
        """Opens a blob, whose content may be wrong. Raises `SourceError`."""


class Pack:
    """A pack, whose digests all belong to one manifest."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs
        self._contents: Contents | None = None

    def identify(self, _work: Path, _room: Room, /) -> str:
        """Returns the digest of the manifest."""
        data, digest = self._blobs.manifest()
        self._contents = oci.contents(data)
        return digest.partition(":")[2]

    def fetch(self, work: Path, room: Room) -> None:
        """Writes the files of all layers, each after its digest was compared."""
        assert self._contents is not None
        room.announce(sum(layer.blob.size for layer in self._contents.layers))
        self._check_config(self._contents.config)
        packed = room.again()
        for layer in self._contents.layers:
            self._fetch_layer(layer, work, room, packed)

    def _check_config(self, config: Descriptor) -> None:
        """Nothing reads the config, but a pack without it is not whole."""
        with self._blobs.open(config) as source:
            data = small(source, "the config of the pack", LARGEST_DOCUMENT)
        if oci.descriptor("", data).digest != config.digest:
            raise SourceError(f"the config {config.digest[:19]}… is damaged or was changed; make the pack anew")

    def _fetch_layer(self, layer: Layer, work: Path, room: Room, packed_room: Room) -> None:
        blob = layer.blob
        if layer.path:
            with self._blobs.open(blob) as source:
                write(source, _place(work, layer.path), room, size=blob.size, sha256=blob.sha256)
            return
        # A tar is unpacked after its digest was compared: nothing else is known to be from whoever made the pack.
        packed = work / "layer.tar"
        with self._blobs.open(blob) as source:
            write(source, packed, packed_room, size=blob.size, sha256=blob.sha256)
        with packed.open("rb") as file:
            inside = MODELCAR if layer.image else ""
            tars.unpack(file, work / "files", room, compressed=layer.gzip, inside=inside)
        packed.unlink()


class Layout:
    """The blobs of a pack in an OCI image layout."""

    def __init__(self, store: Opens) -> None:
        self._store = store

    def manifest(self) -> tuple[bytes, str]:
        """Returns the manifest and its digest. Raises `SourceError`."""
        oci.check_layout(self._read(LAYOUT_FILE, LARGEST_DOCUMENT))
        found = oci.sole_manifest(self._read(INDEX_FILE, LARGEST_DOCUMENT))
        data = self._document(found)
        if found.media_type in oci.INDEXES:
            found = oci.chosen(data)
            data = self._document(found)
        return data, found.digest

    def open(self, blob: Descriptor, /) -> contextlib.AbstractContextManager[Reads]:
        """Opens a blob, whose content may be wrong. Raises `SourceError`."""
        return self._store.open(blob.blob)

    def _document(self, blob: Descriptor) -> bytes:
        data = self._read(blob.blob, LARGEST_DOCUMENT)
        if oci.descriptor("", data).digest != blob.digest:
            raise SourceError(f"the manifest {blob.digest[:19]}… is damaged or was changed; get the pack again")
        return data

    def _read(self, path: str, limit: int) -> bytes:
        with self._store.open(path) as source:
            return small(source, path, limit)


class Tar:
    """A layout in a tar."""

    def __init__(self, opened: Callable[[], contextlib.AbstractContextManager[Reads]]) -> None:
        self._opened = opened
        self._pack: Pack | None = None

    def identify(self, work: Path, room: Room) -> str:
        """Unpacks the tar, and returns the digest of the manifest."""
        layout = work / "layout"
        layout.mkdir()
        with self._opened() as source:
            tars.unpack(source, layout, room)
        self._pack = Pack(Layout(Folder(layout)))
        return self._pack.identify(work, room)

    def fetch(self, work: Path, room: Room) -> None:
        """Writes the files of all layers."""
        assert self._pack is not None
        self._pack.fetch(work, room.again())
        shutil.rmtree(work / "layout")


class Plain:
    """Versions with their manifests, as in a model repository: one version, a model or several."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._large: dict[str, int] = {}

    def identify(self, work: Path, room: Room) -> str:
        """Fetches all but what the manifests have digests of, and returns a digest of that."""
        files = _of_models({check_path(path): size for path, size in sorted(self._store.files().items())})
        found = [path for path in files if path.rpartition("/")[2] == MANIFEST_FILE]
        if not found:
            raise SourceError(
                f"the source has no {MANIFEST_FILE} in {len(files)} files: it is no pack, and has no version that "
                "cnnserve published; correct the address"
            )
        identity = hashlib.sha256()
        known: set[str] = set()
        digests: dict[str, str] = {}
        for path in found:
            digests[path], named = self._manifest(path, files[path], work, room)
            known |= named
        for path, size in files.items():
            if path not in known:
                sha256 = digests.get(path) or self._write(path, size, work, room)
                identity.update(f"{sha256} {path}\n".encode())
        self._large = {path: size for path, size in files.items() if path in known}
        return identity.hexdigest()

    def fetch(self, work: Path, room: Room) -> None:
        """Writes the other files. Their digests are those of the manifests, which are compared later."""
        for path, size in self._large.items():
            self._write(path, size, work, room)

    def _manifest(self, path: str, size: int, work: Path, room: Room) -> tuple[str, set[str]]:
        """Writes a manifest. Returns its SHA-256, and the paths of the files that it names."""
        if size > LARGEST_MANIFEST:
            raise SourceError(f"{path} has {size} bytes, at most {LARGEST_MANIFEST} are read")
        sha256 = self._write(path, size, work, room)
        try:
            manifest = manifests.parse((work / "files" / path).read_bytes())
        except ModelLoadFailed as error:
            raise SourceError(f"{path}: {error}") from error
        above = path.removesuffix(MANIFEST_FILE)
        return sha256, {f"{above}{name}" for name in manifest.files}

    def _write(self, path: str, size: int, work: Path, room: Room) -> str:
        with self._store.open(path) as source:
            return write(source, _place(work, path), room, size=size)


def _of_models(files: dict[str, int]) -> dict[str, int]:
    """Returns `files` without what lies in no model's folder, such as a README of the repository."""
    models = {path.split("/")[0] for path in files if path.count("/") == 2 and path.endswith(f"/{MANIFEST_FILE}")}
    return {path: size for path, size in files.items() if not models or path.split("/")[0] in models}


def _place(work: Path, path: str) -> Path:
    return work / "files" / check_path(path)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Reads]:
    """Opens a file of this machine. Raises `SourceError`."""
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        if error.filename != str(path):
            raise
        raise SourceError(f"the file {path} cannot be read: {error.strerror}; correct the path") from error
