"""The accuracy of an imported file on labelled images, and whether other preprocessing would give a better one.

A wrong colour order, scale or resize still gives probabilities that look plausible. Labelled images show it: the same
images are tried with each other way that is common, and a way that is better by more than chance is named.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from cnnserve.images.preprocessing import Preprocessor
from cnnserve.process.cpu import cpu_budget
from cnnserve.repository.manifest import Preprocessing, Resize, TensorInfo
from cnnserve.runtime.session import Session, SessionOptions
from cnnserve_export.errors import ExportError
from cnnserve_export.images import ImageSet
from cnnserve_export.preparation import Color

# The most images for the accuracy, and for each of the other ways, which together take about so long.
_MOST = 5000
_MOST_TRIALS = 200
_FEWEST_TRIALS = 50
_TRIAL_SECONDS = 120.0
# How many standard deviations of chance another way must be better by; about ten ways are tried.
_SIGNIFICANT = 3.0

_T = TypeVar("_T")
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Evaluation:
    """Share of `images` that the file puts into their class, and what may be wrong, for people."""

    images: int
    accuracy: float
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class _Way:
    """Another preprocessing, and the flags that state it."""

    flags: str
    spec: Preprocessing


def evaluate(
    model: Path,
    images: ImageSet,
    spec: Preprocessing,
    tensor: TensorInfo,
    *,
    classes: Mapping[str, frozenset[int]],
    fixed_batch: int | None,
    tell: Progress,
) -> Evaluation:
    """Returns the accuracy over the labelled images, and warnings about other ways that are better.

    `classes` has the numbers of the classes that the name of a sub-folder means. `tell` gets the number of images done
    and of all, anew for each way. Raises `ExportError` if no image is labelled, or if one cannot be read.
    """
    labelled = [item for item in images.items if item.folder in classes]
    if not labelled:
        raise ExportError(
            f"no image in {images.name} is in a sub-folder named by a label or the number of a class; name sub-folders "
            "like that, and give the labels with --labels"
        )
    trials = _Trials(Session(model, SessionOptions(threads=cpu_budget())), tensor, classes, fixed_batch)
    chosen = _spread(labelled, _MOST)
    ways = list(_ways(spec, tensor))
    began = time.perf_counter()
    right = trials.run(spec, ImageSet(images.name, tuple(chosen)), tell)
    for_each = int(_TRIAL_SECONDS * len(chosen) / (time.perf_counter() - began) / max(1, len(ways)))
    few = _spread(range(len(chosen)), min(_MOST_TRIALS, max(_FEWEST_TRIALS, for_each)))
    trial = ImageSet(images.name, tuple(chosen[index] for index in few))
    tried = [(way, trials.run(way.spec, trial, tell)) for way in ways]
    return Evaluation(len(chosen), float(right.mean()), tuple(_warnings(right[few], tried)))


@dataclass(frozen=True)
class _Trials:
    """Runs images through the file with any preprocessing."""

    session: Session
    tensor: TensorInfo
    classes: Mapping[str, frozenset[int]]
    fixed_batch: int | None

    def run(self, spec: Preprocessing, images: ImageSet, tell: Progress) -> NDArray[np.bool_]:
        """Returns for each image whether the file puts it into its class."""
        found: list[bool] = []
        for batch in images.batches(Preprocessor(spec, self.tensor)):
            best = self._probabilities(batch.rows).argmax(axis=1)
            found += [int(value) in self.classes[folder] for value, folder in zip(best, batch.folders, strict=True)]
            tell(len(found), len(images))
        return np.array(found)

    def _probabilities(self, rows: NDArray[np.generic]) -> NDArray[np.float32]:
        """Returns the probabilities of the rows; a fixed batch is filled with the last row."""
        if self.fixed_batch is None:
            return self.session.run(rows)[0]
        parts = []
        for start in range(0, len(rows), self.fixed_batch):
            part = rows[start : start + self.fixed_batch]
            filled = np.concatenate([part, np.repeat(part[-1:], self.fixed_batch - len(part), axis=0)])
            parts.append(self.session.run(filled)[0][: len(part)])
        return np.concatenate(parts)


def _warnings(stated: NDArray[np.bool_], tried: Sequence[tuple[_Way, NDArray[np.bool_]]]) -> Iterator[str]:
    for way, found in sorted(tried, key=lambda pair: -int(pair[1].sum())):
        gained, lost = int((found & ~stated).sum()), int((stated & ~found).sum())
        # If both ways were alike, each image that differs would be gained or lost by the toss of a coin.
        if gained - lost > _SIGNIFICANT * math.sqrt(gained + lost):
            yield (
                f"WARNING: {found.mean():.1%} of {len(found)} images are right with {way.flags}, but only "
                f"{stated.mean():.1%} with what was given; check how training prepared images"
            )


def _ways(spec: Preprocessing, tensor: TensorInfo) -> Iterator[_Way]:
    """Yields the other ways that are common, each different from `spec` in one thing."""
    if spec.color != "L":
        color: Color = "BGR" if spec.color == "RGB" else "RGB"
        swapped = dataclasses.replace(spec, color=color, mean=spec.mean[::-1], std=spec.std[::-1])
        yield _Way(f"--color {color} with mean and std in this order", swapped)
        if len(set(spec.mean)) > 1 or len(set(spec.std)) > 1:
            yield _Way(f"--color {color}", dataclasses.replace(spec, color=color))
    if tensor.datatype != "UINT8":
        yield from _scales(spec)
    yield from _resizes(spec)


def _scales(spec: Preprocessing) -> Iterator[_Way]:
    channels = len(spec.mean)
    imagenet = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    common: list[tuple[str, float, tuple[float, ...], tuple[float, ...]]] = [
        ("1/255", 1 / 255, (0.0,) * channels, (1.0,) * channels),
        ("1/255", 1 / 255, (0.5,) * channels, (0.5,) * channels),
        ("1", 1.0, (0.0,) * channels, (1.0,) * channels),
    ]
    if channels == 3:
        common.append(("1/255", 1 / 255, *imagenet))
        common.append(("1", 1.0, (104.0, 117.0, 123.0) if spec.color == "BGR" else (123.0, 117.0, 104.0), (1.0,) * 3))
    for name, scale, mean, std in common:
        other = dataclasses.replace(spec, scale=scale, mean=mean, std=std)
        if not _same_values(other, spec):
            yield _Way(f"--scale {name} --mean {_text(mean)} --std {_text(std)}", other)


def _same_values(one: Preprocessing, other: Preprocessing) -> bool:
    """Whether both make the same of every pixel."""
    first, second = (
        np.array([(value * spec.scale - np.array(spec.mean)) / np.array(spec.std) for value in (0, 255)])
        for spec in (one, other)
    )
    return bool(np.allclose(first, second, atol=1e-3))


def _resizes(spec: Preprocessing) -> Iterator[_Way]:
    if spec.size is None:
        return
    height, width = spec.size
    name = spec.resize.interpolation if spec.resize is not None and spec.resize.library == "pillow" else "bilinear"
    share = min(height, width)
    common = {
        f"--resize {height},{width}": Resize("exact", (height, width), name),
        f"--resize {share}": Resize("shorter", (share,), name),
        f"--resize {math.floor(share / 0.875)}": Resize("shorter", (math.floor(share / 0.875),), name),
        "--resize-mode letterbox": Resize("letterbox", (height, width), name),
    }
    if height == width:
        for flags, resize in common.items():
            crop = (height, width) if resize.mode == "shorter" else None
            if (resize, crop) != (spec.resize, spec.crop):
                yield _Way(flags, dataclasses.replace(spec, resize=resize, crop=crop))


def _spread(items: Sequence[_T], most: int) -> list[_T]:
    """Returns at most so many of the items, evenly spread over them: in folders by class, all classes have a part."""
    if len(items) <= most:
        return list(items)
    return [items[index * len(items) // most] for index in range(most)]


def _text(values: Sequence[float]) -> str:
    return ",".join(f"{value:g}" for value in values)
