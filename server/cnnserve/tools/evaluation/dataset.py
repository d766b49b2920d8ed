"""The labelled images: a folder with a sub-folder for each class, or a CSV file. Holds names, never images."""

import csv
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cnnserve_client.commands import sources
from cnnserve_client.commands.sources import Entry
from cnnserve_client.errors import InvalidInputError

_COLUMNS = ("path", "label")


@dataclass(frozen=True)
class Sample:
    """One image, and the name of its class."""

    entry: Entry
    class_name: str


@dataclass(frozen=True)
class Dataset:
    """The images, in a fixed order, and remarks on what was found beside them."""

    samples: tuple[Sample, ...]
    remarks: tuple[str, ...] = ()


def many(count: int, noun: str, plural: str = "s") -> str:
    """Returns a number with its noun, such as "1 image" or "1,000 images"."""
    return f"{count:,} {noun}{'' if count == 1 else plural}"


def from_folder(folder: Path) -> Dataset:
    """Returns the images below each sub-folder of `folder`, whose name is that of the class.

    Raises `InvalidInputError` if the folder cannot be read, or has no sub-folders or no images.
    """
    try:
        children = sorted((child for child in folder.iterdir() if not child.name.startswith(".")), key=lambda c: c.name)
        classes = [child for child in children if child.is_dir()]
    except OSError as error:
        raise InvalidInputError(f"{folder}: cannot read the folder: {error.strerror}") from error
    loose = sum(child.suffix.lower() in sources.SUFFIXES for child in children if child not in classes)
    if not classes:
        found = f"{many(loose, 'image')}, but no class folders" if loose else "neither class folders nor images"
        raise InvalidInputError(
            f"{folder} has {found}: put the images of each class into a folder named like the class, or use --csv"
        )
    samples: list[Sample] = []
    empty = []
    for child in classes:
        found_below = [Sample(entry, child.name) for entry in sources.find([str(child)])]
        if len(found_below) == 1 and found_below[0].entry.name == str(child) and _is_readable(child):
            empty.append(f"{child.name}: {found_below[0].entry.error}")
        else:
            samples += found_below
    if not samples:
        raise InvalidInputError(f"{folder} has {many(len(classes), 'class folder')}, but no images in them: add images")
    remarks = [f"class folder {text}" for text in empty]
    if loose:
        remarks.append(f"{many(loose, 'image')} beside the class folders: not used, because no folder names the class")
    return Dataset(tuple(samples), tuple(remarks))


def _is_readable(folder: Path) -> bool:
    try:
        with os.scandir(folder):
            return True
    except OSError:
        return False


def from_csv(file: Path, root: Path | None) -> Dataset:
    """Returns the images that a CSV file lists. Its first line names the columns, among them `path` and `label`.

    `root`: the folder to which relative paths belong; None: that of the file. Raises `InvalidInputError` if the file
    cannot be read, lacks a column or a value, or lists nothing.
    """
    try:
        with file.open(encoding="utf-8-sig", newline="") as text:
            samples = tuple(_rows(file, csv.DictReader(text), root or file.parent))
    except InvalidInputError:
        raise
    except (OSError, ValueError, csv.Error) as error:
        raise InvalidInputError(f"{file}: cannot read the CSV file: {getattr(error, 'strerror', error)}") from error
    if not samples:
        raise InvalidInputError(f"{file} lists no images: write a line with path and label for each image")
    return Dataset(samples)


def _rows(file: Path, reader: "csv.DictReader[str]", root: Path) -> Iterator[Sample]:
    if missing := [name for name in _COLUMNS if name not in (reader.fieldnames or ())]:
        raise InvalidInputError(
            f"{file} has no column {' and no column '.join(missing)}: its first line has to name the columns, such as "
            "path,label"
        )
    for row in reader:
        path, label = (row[name] or "" for name in _COLUMNS)
        if not (path and label):
            raise InvalidInputError(f"{file}, line {reader.line_num}: path or label is missing; complete the line")
        yield Sample(_entry(root / path), label)


def _entry(path: Path) -> Entry:
    # Reading a pipe to which nobody writes would never end.
    with suppress(OSError, ValueError):  # reading reports them
        if path.exists() and not path.is_file():
            return Entry(str(path), InvalidInputError("not a regular file"))
    return Entry(str(path))
