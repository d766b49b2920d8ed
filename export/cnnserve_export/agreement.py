"""Measures how far fp16 and int8 files agree with the fp32 file from which they were made, over a set of images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cnnserve.images.preprocessing import Preprocessor
from cnnserve.model.classification import are_probabilities
from cnnserve.process.cpu import cpu_budget
from cnnserve.runtime.session import Session, SessionOptions
from cnnserve_export.errors import ExportError
from cnnserve_export.images import ImageSet


@dataclass
class Measured:
    """Counts of images, and the largest difference of a probability from fp32.

    `same` images have the same top class as in fp32. `labelled` images are of a known class; of these, the file finds
    the class of `right` images, and fp32 of `fp32_right` images.
    """

    images: int = 0
    same: int = 0
    labelled: int = 0
    right: int = 0
    fp32_right: int = 0
    largest_difference: float = 0.0

    @property
    def top1(self) -> float:
        """Agreement: share of the images with the same top class as in fp32 (0 to 1)."""
        return self.same / self.images

    @property
    def accuracy(self) -> float | None:
        """Share of the labelled images whose class the file finds (0 to 1); None if no class is known."""
        return self.right / self.labelled if self.labelled else None

    @property
    def fp32_accuracy(self) -> float | None:
        """Share of the labelled images whose class fp32 finds (0 to 1); None if no class is known."""
        return self.fp32_right / self.labelled if self.labelled else None

    def add(
        self, actual: NDArray[np.float32], expected: NDArray[np.float32], classes: Sequence[frozenset[int]]
    ) -> None:
        """Adds a batch: probabilities (N, classes) of the file and of fp32, and the right classes of each image."""
        found, wanted = actual.argmax(axis=1), expected.argmax(axis=1)
        self.images += len(actual)
        self.same += int(np.count_nonzero(found == wanted))
        self.labelled += sum(map(bool, classes))
        self.right += sum(int(value) in right for value, right in zip(found, classes, strict=True))
        self.fp32_right += sum(int(value) in right for value, right in zip(wanted, classes, strict=True))
        self.largest_difference = max(self.largest_difference, float(np.abs(actual - expected).max()))


def measure(
    fp32: Path,
    candidates: Sequence[Path],
    images: ImageSet,
    preprocessor: Preprocessor,
    *,
    labels: Sequence[str] | None,
    class_count: int,
    sums_to_one: bool = True,
    tell: Callable[[int, int], None],
) -> list[Measured]:
    """Returns the agreement of each candidate with fp32; runs every image through all files.

    The name of an image's folder is its class: a label, which several classes may have, or else the number of a class.
    `tell` gets the number of images done and of all images.
    Raises `ExportError` if an image cannot be read, and if a candidate does not return probabilities.
    """
    options = SessionOptions(threads=cpu_budget())
    reference, sessions = Session(fp32, options), [Session(path, options) for path in candidates]
    names = classes_by_folder(labels, class_count)
    results = [Measured() for _ in candidates]
    for batch in images.batches(preprocessor):
        expected = reference.run(batch.rows)[0]
        known = [names.get(folder, frozenset()) for folder in batch.folders]
        for session, result in zip(sessions, results, strict=True):
            actual = session.run(batch.rows)[0]
            if not (are_probabilities(actual) if sums_to_one else np.isfinite(actual).all()):
                raise ExportError(
                    "with lower precision the network does not return probabilities, because values exceed the range "
                    "of the type; pass --precision fp32"
                )
            result.add(actual, expected, known)
        tell(results[0].images, len(images))
    return results


def classes_by_folder(labels: Sequence[str] | None, class_count: int) -> dict[str, frozenset[int]]:
    """Returns the classes that the name of a folder means: those with this label, else the one with this number."""
    names = {str(number): frozenset([number]) for number in range(class_count)}
    # Several classes may have one label: ImageNet has two cranes and two maillots.
    found: dict[str, set[int]] = {}
    for number, label in enumerate(labels or ()):
        found.setdefault(label, set()).add(number)
    return names | {label: frozenset(numbers) for label, numbers in found.items()}
