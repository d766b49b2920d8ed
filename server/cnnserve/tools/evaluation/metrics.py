"""The metrics of a classifier, as pure functions of arrays. They give the same numbers as scikit-learn's."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

# The usual number of bins of the expected calibration error (Guo et al., 2017).
BINS = 15


@dataclass(frozen=True)
class ClassScores:
    """Counts of one class: images of the class, images that the model takes for it, and images that are both."""

    index: int
    images: int
    predicted: int
    correct: int

    @property
    def precision(self) -> float | None:
        """The share of the images taken for this class that are of it. None: no image was taken for it."""
        return self.correct / self.predicted if self.predicted else None

    @property
    def recall(self) -> float | None:
        """The share of the images of this class that were recognised. None: there is no image of this class."""
        return self.correct / self.images if self.images else None


@dataclass(frozen=True)
class Bin:
    """The images whose top probability is above `low` and at most `high`; the first bin also holds `low`.

    `confidence` is their mean top probability, `accuracy` the share of them that is right. 0.0 if there are none.
    """

    low: float
    high: float
    images: int
    correct: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Confusion:
    """How many images of the class `truth` the model takes for the class `predicted`."""

    truth: int
    predicted: int
    images: int


def top_k_accuracy(ranks: Ints, k: int) -> float:
    """Returns the share of images whose class is among the `k` most probable ones.

    `ranks`: the place of each image's class, 1 for the most probable one, 0 if it is not known. Needs one image.
    """
    return int(((ranks >= 1) & (ranks <= k)).sum()) / len(ranks)


def class_scores(truth: Ints, predicted: Ints) -> list[ClassScores]:
    """Returns the counts of every class that occurs in `truth` or in `predicted`, by index."""
    size = int(max(truth.max(initial=-1), predicted.max(initial=-1))) + 1
    images, taken = np.bincount(truth, minlength=size), np.bincount(predicted, minlength=size)
    correct = np.bincount(truth[truth == predicted], minlength=size)
    return [
        ClassScores(index, int(images[index]), int(taken[index]), int(correct[index]))
        for index in np.flatnonzero(images + taken).tolist()
    ]


def confusions(truth: Ints, predicted: Ints) -> list[Confusion]:
    """Returns the cells of the confusion matrix that are not 0, also those of its diagonal, by row and column."""
    pairs, counts = np.unique(np.stack([truth, predicted], axis=1), axis=0, return_counts=True)
    return [Confusion(row, column, count) for (row, column), count in zip(pairs.tolist(), counts.tolist(), strict=True)]


def reliability(probabilities: Floats, correct: NDArray[np.bool_], bins: int = BINS) -> list[Bin]:
    """Returns the reliability diagram: `bins` equally wide bins of the top probability, also those without images."""
    edges = np.linspace(0.0, 1.0, bins + 1)
    places = np.searchsorted(edges[1:-1], probabilities)
    images = np.bincount(places, minlength=bins)
    right = np.bincount(places, weights=correct, minlength=bins)
    sums = np.bincount(places, weights=probabilities, minlength=bins)
    counted = np.maximum(images, 1)
    columns = (edges[:-1], edges[1:], images, right.astype(np.int64), sums / counted, right / counted)
    return [Bin(*values) for values in zip(*(column.tolist() for column in columns), strict=True)]


def expected_calibration_error(bins: list[Bin]) -> float:
    """Returns the mean distance between confidence and accuracy, 0 to 1, each bin weighted by its images."""
    images = sum(bin_.images for bin_ in bins)
    return sum(bin_.images * abs(bin_.accuracy - bin_.confidence) for bin_ in bins) / images


def most_confident_mistakes(truth: Ints, predicted: Ints, probabilities: Floats, count: int) -> list[int]:
    """Returns the places of the wrong answers with the highest probabilities, highest first, at most `count`."""
    wrong = np.flatnonzero(truth != predicted)
    # A stable sort keeps equally probable ones in the order of the images.
    order = np.argsort(-probabilities[wrong], kind="stable")[:count]
    return [int(place) for place in wrong[order]]


def largest_difference(first: Floats, second: Floats) -> tuple[int, float]:
    """Returns the class whose two probabilities differ most, and by how much."""
    differences = np.abs(first - second)
    index = int(differences.argmax())
    return index, float(differences[index])
