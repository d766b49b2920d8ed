"""Sets of images for calibration and evaluation; images are read one by one, so a folder may have any size."""

import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from cnnserve.errors import InvalidInput
from cnnserve.images.preprocessing import Preprocessor
from cnnserve_export import files, golden
from cnnserve_export.errors import ExportError

SUFFIXES = (
    *(".jpg", ".jpeg", ".jfif", ".jpe", ".pjpeg", ".pjp"),
    *(".png", ".apng", ".webp", ".bmp", ".dib", ".gif"),
)
_BATCH = 8
_LISTED = 10
_BUILT_IN = 100


@dataclass(frozen=True)
class Item:
    """One image: its path within the set, and a function that returns the bytes of its file."""

    name: str
    read: Callable[[], bytes]

    @property
    def folder(self) -> str:
        """First folder of the path, which is the class as in torchvision's ImageFolder; "" if there is none."""
        parts = PurePosixPath(self.name).parts
        return parts[0] if len(parts) > 1 else ""


@dataclass(frozen=True)
class Batch:
    """Rows of a model's input (N, *shape), and the folder of each image."""

    rows: NDArray[np.generic]
    folders: tuple[str, ...]


@dataclass(frozen=True)
class ImageSet:
    """A list of images with a name for messages and for the manifest."""

    name: str
    items: tuple[Item, ...]

    def __len__(self) -> int:
        return len(self.items)

    def batches(self, preprocessor: Preprocessor) -> Iterator[Batch]:
        """Yields all images in batches of at most 8, preprocessed as the server does.

        Raises `ExportError` if images cannot be read; the error names the first ten. After the first of them, the other
        images are still decoded, so that one attempt finds all, but no more batches are yielded.
        """
        rows: list[NDArray[np.generic]] = []
        folders: list[str] = []
        broken = []
        for item in self.items:
            try:
                rows.append(preprocessor.encoded(item.read()))
            except (InvalidInput, OSError) as error:
                broken.append(f"{item.name}: {error.strerror if isinstance(error, OSError) else error}")
                continue
            folders.append(item.folder)
            if len(rows) == _BATCH:
                if not broken:
                    yield Batch(np.stack(rows), tuple(folders))
                rows, folders = [], []
        if broken:
            raise ExportError(self._complaint(broken))
        if rows:
            yield Batch(np.stack(rows), tuple(folders))

    def digests(self) -> list[str]:
        """Returns the SHA-256 of every file, in order. Raises `ExportError` if a file cannot be read."""
        return [self._digest(item) for item in self.items]

    def distinct(self, enough: int) -> int:
        """Returns the number of different files, or `enough` if there are more. Raises `ExportError` like `digests`."""
        seen: set[str] = set()
        for item in self.items:
            if len(seen) == enough:
                break
            seen.add(self._digest(item))
        return len(seen)

    def _digest(self, item: Item) -> str:
        try:
            return hashlib.sha256(item.read()).hexdigest()
        except OSError as error:
            raise ExportError(f"an image of {self.name} cannot be read: {error}; repair or remove it") from error

    def _complaint(self, broken: list[str]) -> str:
        more = f"\n  and {len(broken) - _LISTED} more" if len(broken) > _LISTED else ""
        listed = "".join(f"\n  {line}" for line in broken[:_LISTED])
        return (
            f"{len(broken)} of {len(self)} images in {self.name} cannot be read; repair or remove them:{listed}{more}"
        )


def folder(path: Path) -> ImageSet:
    """Returns all images below `path`: files with one of `SUFFIXES`, sorted by path, without hidden files.

    Raises `ExportError` if `path` is not a folder or has no image, and if a pipe or a device has such a suffix.
    """
    found = files_below(path)
    return ImageSet(path.resolve().name, tuple(Item(name, found[name].read_bytes) for name in found))


def files_below(path: Path) -> dict[str, Path]:
    """Returns every image file below the folder `path` by its path from there, in the order of these paths.

    Hidden files are left out. Raises `ExportError` as `folder`.
    """
    if not path.is_dir():
        raise ExportError(f"{path} is not a folder; give a folder with images, which may be in sub-folders")
    found = {
        file.relative_to(path).as_posix(): file
        for file in path.rglob("*")
        if file.suffix.lower() in SUFFIXES
        and not file.is_dir()
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
    }
    for file in found.values():
        files.check_plain(file, str(file))
    if not found:
        raise ExportError(f"{path} holds no image; give a folder with files that end in {', '.join(SUFFIXES)}")
    return dict(sorted(found.items()))


@functools.cache
def built_in() -> ImageSet:
    """Returns 100 generated images, for a precision that needs no calibration, if the user gives no folder."""

    def drawn(seed: int) -> Item:
        height, width = 200 + 37 * seed % 200, 200 + 53 * seed % 200
        # Kept, because each is read twice, and drawing it takes longer than all else that is done with it.
        return Item(f"picture {seed}", functools.cache(lambda: golden.encode_png(golden.picture(seed, height, width))))

    return ImageSet("built-in pictures", tuple(drawn(seed) for seed in range(_BUILT_IN)))


def digest(digests: Sequence[str]) -> str:
    """Returns one SHA-256 for a set of files, which does not depend on their names and order."""
    return hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()
