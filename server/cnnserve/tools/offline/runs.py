"""The output folder of a run, in parts, so that a second start goes on where the first ended. Imports no ray.

The input is cut into parts of a fixed number of images, in its order. Each part becomes one file, which a worker writes
aside and then renames. So a file is whole or absent, and a part whose worker was killed is done again as a whole.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from cnnserve.errors import InvalidInput

# Readers of parquet ignore names that begin with an underscore.
RUN_FILE = "_cnnserve.json"
_PART = re.compile(r"part-(\d{6})\.parquet")
_MOST_PARTS = 10**6


@dataclass(frozen=True)
class Part:
    """A part of the input: files of images, or a row group of a parquet file."""

    number: int
    images: tuple[str, ...] = ()
    table: str = ""
    row_group: int = 0

    @property
    def file(self) -> str:
        """The name of the file of the part's results."""
        return f"part-{self.number:06}.parquet"


def image_parts(paths: Iterable[str], size: int) -> Iterator[Part]:
    """Yields the parts of a list of image files, each of `size` images."""
    source, number = iter(paths), 0
    while images := tuple(islice(source, size)):
        yield Part(number, images=images)
        number += 1


def table_parts(row_groups: Sequence[tuple[str, int]]) -> list[Part]:
    """Returns a part for each row group of parquet files, given with the number of row groups in each."""
    places = [(table, group) for table, count in row_groups for group in range(count)]
    return [Part(number, table=table, row_group=group) for number, (table, group) in enumerate(places)]


@contextlib.contextmanager
def claimed(output: Path) -> Iterator[None]:
    """Makes the folder if there is none, and keeps other runs out of it while inside.

    Raises `InvalidInput` if there is another run, or if the folder cannot be used.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(output, os.O_RDONLY)
    except OSError as error:
        raise InvalidInput(f"cannot use {output} for the results: {error.strerror}") from error
    try:
        # Some file systems cannot lock; then nothing shows that another run is at work.
        with contextlib.suppress(OSError):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise InvalidInput(
                    f"another run writes its results into {output}; wait for its end, or name another folder"
                ) from error
        yield
    finally:
        os.close(descriptor)


def remove_halves(output: Path) -> None:
    """Removes what workers have left that were killed. Raises `OSError`."""
    for left in output.glob(".part-*"):
        left.unlink(missing_ok=True)


def open_run(output: Path, parts: Sequence[Part], what: Mapping[str, Any]) -> list[Part]:
    """Returns the parts that are not done. Makes the folder if there is none. The caller has `claimed` it.

    `what` identifies the run beside its input: model, version, options. Raises `InvalidInput` if the folder belongs to
    another run, is something else, or cannot be written.
    """
    if len(parts) > _MOST_PARTS:
        raise InvalidInput(f"the input has {len(parts)} parts, the limit is {_MOST_PARTS}; use larger parts")
    digest = hashlib.sha256()
    for part in parts:
        digest.update(json.dumps(asdict(part)).encode())
    wanted = {**what, "parts": len(parts), "input_sha256": digest.hexdigest()}
    try:
        output.mkdir(parents=True, exist_ok=True)
        _check_owner(output, wanted)
        done = {int(match[1]) for file in output.iterdir() if (match := _PART.fullmatch(file.name))}
        remove_halves(output)
    except OSError as error:
        raise InvalidInput(f"cannot use {output} for the results: {error.strerror}") from error
    return [part for part in parts if part.number not in done]


def _check_owner(output: Path, wanted: Mapping[str, Any]) -> None:
    """Notes what the folder is for. Raises `InvalidInput` if it is for something else."""
    file, aside = output / RUN_FILE, output / f".{RUN_FILE}"
    if not file.exists():
        if any(path != aside for path in output.iterdir()):
            raise InvalidInput(f"{output} is not empty and no run has begun in it; name a folder that does not exist")
        aside.write_text(json.dumps(wanted, indent=1) + "\n")
        aside.replace(file)
        return
    try:
        found = json.loads(file.read_text())
    except ValueError as error:
        raise InvalidInput(f"{file} is damaged ({error}); name another folder for the results") from error
    for key in wanted:
        if not isinstance(found, dict) or found.get(key) != wanted[key]:
            was = found.get(key) if isinstance(found, dict) else found
            raise InvalidInput(
                f"{output} has results of another run: {key} was {was!r} and is {wanted[key]!r}; name another folder"
            )


def image_groups(
    paths: Iterable[str], most: int = 128, most_bytes: int = 64 << 20, largest: int = 256 << 20
) -> Iterator[tuple[list[str], list[bytes | str]]]:
    """Yields paths with the bytes of their files: at most `most` in a group, and no more than `most_bytes` but for one.

    In place of the bytes there may be the reason why a file cannot be read, or has more than `largest` bytes.
    """
    names: list[str] = []
    images: list[bytes | str] = []
    held = 0
    for path in paths:
        image = _read(path, largest)
        if names and (len(names) == most or held + len(image) > most_bytes):
            yield names, images
            names, images, held = [], [], 0
        names.append(path)
        images.append(image)
        held += len(image)
    if names:
        yield names, images


def _read(path: str, largest: int) -> bytes | str:
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - a path may hold bytes that are no UTF-8
            data = file.read(largest + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        return f"cannot read the file on the node of the worker: {reason}"
    return data if len(data) <= largest else f"the file has more than {largest} bytes"
