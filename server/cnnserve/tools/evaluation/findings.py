"""What an evaluation has found: the numbers that the summary, the JSON and the page show."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from . import metrics
from .collection import Agreement, Collected, Outcomes
from .dataset import Sample
from .metrics import Bin, ClassScores, Confusion
from .runner import Latency, Subject

WORST = 24
_HISTOGRAM_BINS = 20


@dataclass(frozen=True)
class Mistake:
    """An image that the model takes for another class, by indices; `path` is that of the image."""

    path: str
    truth: int
    predicted: int
    probability: float


@dataclass(frozen=True)
class ModelFindings:
    """The metrics of one model. `histogram`: the top probabilities of its images in 20 bins, as `metrics.Bin`s."""

    subject: Subject
    latency: Latency | None
    images: int
    correct: int
    top1: float
    top5: float
    classes: tuple[ClassScores, ...]
    confusions: tuple[Confusion, ...]
    reliability: tuple[Bin, ...]
    histogram: tuple[Bin, ...]
    ece: float
    worst: tuple[Mistake, ...]


@dataclass(frozen=True)
class Findings:
    """All that was found. `source`: where the images come from. `asked`: number of images of known classes."""

    source: str
    samples: Sequence[Sample]
    models: tuple[ModelFindings, ...]
    collected: Collected
    asked: int
    remarks: tuple[str, ...] = ()

    @property
    def agreement(self) -> Agreement | None:
        """How far two models agree."""
        return self.collected.agreement

    @property
    def complete(self) -> bool:
        """Whether every image was judged."""
        return not (self.collected.stopped or self.collected.failed or self.collected.unknown)

    def path(self, place: int) -> str:
        """Returns the path of an image."""
        return self.samples[place].entry.name


def of_model(subject: Subject, latency: Latency | None, outcomes: Outcomes, samples: Sequence[Sample]) -> ModelFindings:
    """Returns the metrics of one model. Needs at least one image that it could classify."""
    truth, predicted, ranks = (
        np.frombuffer(column, dtype=np.int64) for column in (outcomes.truth, outcomes.predicted, outcomes.ranks)
    )
    probabilities = np.frombuffer(outcomes.probabilities)
    right = truth == predicted
    reliability = metrics.reliability(probabilities, right)
    worst = metrics.most_confident_mistakes(truth, predicted, probabilities, WORST)
    return ModelFindings(
        subject,
        latency,
        images=len(outcomes),
        correct=int(right.sum()),
        top1=metrics.top_k_accuracy(ranks, 1),
        top5=metrics.top_k_accuracy(ranks, 5),
        classes=tuple(metrics.class_scores(truth, predicted)),
        confusions=tuple(metrics.confusions(truth, predicted)),
        reliability=tuple(reliability),
        histogram=tuple(metrics.reliability(probabilities, right, _HISTOGRAM_BINS)),
        ece=metrics.expected_calibration_error(reliability),
        worst=tuple(
            Mistake(
                samples[outcomes.places[at]].entry.name,
                outcomes.truth[at],
                outcomes.predicted[at],
                outcomes.probabilities[at],
            )
            for at in worst
        ),
    )
