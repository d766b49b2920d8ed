"""How files of less precision answer beside the fp32 file they were made from, over a set of images."""

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
    """Counts of images, and the largest difference of any probability.

    `same`: the same most probable class as fp32; `labelled`: of a known class; `right`, `fp32_right`: of these, how
    many the file and fp32 put into it.
    """

    images: int = 0
    same: int = 0
    labelled: int = 0
    right: int = 0
    fp32_right: int = 0
    largest_difference: float = 0.0

    @property
    def top1(self) -> float:
        """The share of images whose most probable class is fp32's."""
        return self.same / self.images

    @property
    def accuracy(self) -> float | None:
        """The share of labelled images that the file puts into their class; None where no class is known."""
        return self.right / self.labelled if self.labelled else None

    @property
    def fp32_accuracy(self) -> float | None:
        """The same for fp32."""
        return self.fp32_right / self.labelled if self.labelled else None

    def add(
        self, actual: NDArray[np.float32], expected: NDArray[np.float32], classes: Sequence[frozenset[int]]
    ) -> None:
        """Counts a batch: probabilities (N, classes) of both, and each image's right classes; none where not known."""
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
    tell: Callable[[int, int], None],
) -> list[Measured]:
    """Runs every image through all files; `tell` hears how many of how many are done.

    An image's class is its folder's: a label, of whichever class has it, or else the number of a class.
    Raises `ExportError` for images that cannot be read and for answers that are no probabilities.
    """
    options = SessionOptions(threads=cpu_budget())
    reference, sessions = Session(fp32, options), [Session(path, options) for path in candidates]
    names = {str(number): frozenset([number]) for number in range(class_count)}
    names |= _classes(labels or ())
    results = [Measured() for _ in candidates]
    for batch in images.batches(preprocessor):
        expected = reference.run(batch.rows)[0]
        known = [names.get(folder, frozenset()) for folder in batch.folders]
        for session, result in zip(sessions, results, strict=True):
            actual = session.run(batch.rows)[0]
            if not are_probabilities(actual):
                raise ExportError(
                    "with less precision the answers are no probabilities any more: values leave what the type can "
                    "hold; publish this network with --precision fp32"
                )
            result.add(actual, expected, known)
        tell(results[0].images, len(images))
    return results


def _classes(labels: Sequence[str]) -> dict[str, frozenset[int]]:
    # Published lists repeat names: ImageNet's has two cranes and two maillots.
    found: dict[str, set[int]] = {}
    for number, label in enumerate(labels):
        found.setdefault(label, set()).add(number)
    return {label: frozenset(numbers) for label, numbers in found.items()}
