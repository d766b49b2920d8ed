"""Sets of images to calibrate and to measure on, read one after the other: a folder of any size fits into memory."""

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

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")
_BATCH = 8
_LISTED = 10
_BUILT_IN = 100


@dataclass(frozen=True)
class Item:
    """One image: its path within the set, and how its file's bytes are had."""

    name: str
    read: Callable[[], bytes]

    @property
    def folder(self) -> str:
        """The first folder of the path, by ImageFolder's custom the class; "" where there is none."""
        parts = PurePosixPath(self.name).parts
        return parts[0] if len(parts) > 1 else ""


@dataclass(frozen=True)
class Batch:
    """Rows of a model's input (N, *shape), and the folder of each image."""

    rows: NDArray[np.generic]
    folders: tuple[str, ...]


@dataclass(frozen=True)
class ImageSet:
    """Images under a name that people know them by."""

    name: str
    items: tuple[Item, ...]

    def __len__(self) -> int:
        return len(self.items)

    def batches(self, preprocessor: Preprocessor) -> Iterator[Batch]:
        """All images as the server would preprocess them, a few at a time.

        Raises `ExportError` naming every image that cannot be read. What follows the first of them is still decoded, so
        that one attempt finds them all, but not given.
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
        """SHA-256 of every file, in order. Raises `ExportError` where one cannot be read."""
        return [self._digest(item) for item in self.items]

    def distinct(self, enough: int) -> int:
        """How many of its files differ, counted no further than `enough`. Raises as `digests`."""
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
            raise ExportError(f"an image of {self.name} cannot be read: {error}") from error

    def _complaint(self, broken: list[str]) -> str:
        more = f"\n  and {len(broken) - _LISTED} more" if len(broken) > _LISTED else ""
        listed = "".join(f"\n  {line}" for line in broken[:_LISTED])
        return (
            f"{len(broken)} of {len(self)} images in {self.name} cannot be read; repair or remove them:{listed}{more}"
        )


def folder(path: Path) -> ImageSet:
    """Every image below `path`, by suffix and in the order of their paths; hidden files are left out.

    Raises `ExportError` where there is no folder, no image in it, or a pipe or device that is called as one.
    """
    if not path.is_dir():
        raise ExportError(f"{path} is no folder; give one that holds images, in sub-folders or not")
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
        raise ExportError(f"{path} holds no image ({', '.join(SUFFIXES)})")
    return ImageSet(path.resolve().name, tuple(Item(name, found[name].read_bytes) for name in sorted(found)))


def built_in() -> ImageSet:
    """Pictures that are drawn: for a precision that needs no calibration, where no folder was given."""

    def drawn(seed: int) -> Item:
        height, width = 200 + 37 * seed % 200, 200 + 53 * seed % 200
        return Item(f"picture {seed}", lambda: golden.encode_png(golden.picture(seed, height, width)))

    return ImageSet("built-in pictures", tuple(drawn(seed) for seed in range(_BUILT_IN)))


def digest(digests: Sequence[str]) -> str:
    """One SHA-256 for a set of files, whatever their names and order."""
    return hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()
