"""Takes the answers to the labelled images, one at a time, and keeps only the numbers that the metrics need."""

import time
from array import array
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field

import numpy as np

from cnnserve_client.commands.output import Interrupts
from cnnserve_client.commands.sources import Entry
from cnnserve_client.errors import CnnserveError, InvalidInputError
from cnnserve_client.results import Class, ImageResult

from . import metrics
from .classes import ClassNames
from .dataset import Sample
from .runner import Runner, Subject

# The classes of each image that are asked for, so that the top-5 accuracy is known.
TOP_K = 5


@dataclass
class Outcomes:
    """What one model answers to the images that it could classify, as columns; `places` are those in the samples.

    `ranks`: the place of the image's class among the most probable ones, 0 if it is not among the first five.
    """

    places: "array[int]" = field(default_factory=lambda: array("q"))
    truth: "array[int]" = field(default_factory=lambda: array("q"))
    predicted: "array[int]" = field(default_factory=lambda: array("q"))
    probabilities: "array[float]" = field(default_factory=lambda: array("d"))
    ranks: "array[int]" = field(default_factory=lambda: array("q"))

    def __len__(self) -> int:
        return len(self.places)

    def add(self, place: int, truth: int, classes: Sequence[Class]) -> None:
        """Adds the classes of one image, most probable first."""
        first = [one.index for one in classes[:TOP_K]]
        self.places.append(place)
        self.truth.append(truth)
        self.predicted.append(first[0])
        self.probabilities.append(classes[0].probability)
        self.ranks.append(first.index(truth) + 1 if truth in first else 0)


@dataclass(frozen=True)
class Flip:
    """An image of which two models have different top classes, by the first model's indices and probabilities."""

    place: int
    truth: int
    first: int
    first_probability: float
    second: int
    second_probability: float

    @property
    def kind(self) -> str:
        """`corrected`: only the second model is right. `broken`: only the first one is. `wrong`: none is."""
        return {self.second: "corrected", self.first: "broken"}.get(self.truth, "wrong")


@dataclass
class Agreement:
    """How far two models agree on the images that both could classify. `largest`: place, class and difference."""

    images: int = 0
    same: int = 0
    largest: tuple[int, int, float] | None = None
    flips: list[Flip] = field(default_factory=list)

    def add(self, place: int, truth: int, first: metrics.Floats, second: metrics.Floats) -> None:
        """Adds one image with the probabilities of all classes, in the same order for both models."""
        self.images += 1
        tops = int(first.argmax()), int(second.argmax())
        if tops[0] == tops[1]:
            self.same += 1
        else:
            self.flips.append(Flip(place, truth, tops[0], float(first[tops[0]]), tops[1], float(second[tops[1]])))
        index, difference = metrics.largest_difference(first, second)
        if self.largest is None or difference > self.largest[2]:
            self.largest = place, index, difference


@dataclass
class Collected:
    """The answers of one or two models. `stopped`: why the evaluation ended early; "": it did not.

    `failed`: place and error of each image that a model could not classify. `unknown`: the classes that the model does
    not have, with the number of their images, which were not sent.
    """

    outcomes: list[Outcomes]
    unknown: Counter[str]
    expected: str
    failed: list[tuple[int, str]] = field(default_factory=list)
    agreement: Agreement | None = None
    stopped: str = ""
    interrupted: bool = False
    seconds: float = 0.0

    @property
    def done(self) -> int:
        """Number of images that were answered, also with an error."""
        return len(self.outcomes[0]) + len(self.failed)


class Collection:
    """One evaluation: the samples whose classes the model knows, and what has been answered so far.

    `runners`: one model, or two to compare. Raises `InvalidInputError` if the models have different classes, or if the
    model has no class that the samples name.
    """

    def __init__(self, samples: Sequence[Sample], runners: Sequence[Runner], *, by_index: bool = False) -> None:
        self._runners = runners
        subjects = [runner.subject for runner in runners]
        names = [ClassNames(one.labels, one.class_count, by_index=by_index) for one in subjects]
        found = {name: names[0].find(name) for name in {sample.class_name for sample in samples}}
        self._samples = samples
        self._truth = {name: index for name, index in found.items() if index is not None}
        self._known = [place for place, sample in enumerate(samples) if sample.class_name in self._truth]
        unknown = Counter(sample.class_name for sample in samples if sample.class_name not in self._truth)
        if not self._known:
            raise InvalidInputError(_nothing(subjects[0], names[0], unknown))
        self._order = order(*subjects) if len(subjects) == 2 else None
        agreement = None if self._order is None else Agreement()
        self.collected = Collected([Outcomes() for _ in runners], unknown, names[0].expected, agreement=agreement)

    @property
    def entries(self) -> list[Entry]:
        """The images that are sent."""
        return [self._samples[place].entry for place in self._known]

    def run(self, interrupts: Interrupts, on_image: Callable[[int, int], None]) -> Collected:
        """Sends the images and returns what was answered, also if a server goes away or Ctrl-C is pressed.

        `on_image` is called after each image, with the numbers of images and of failed images.
        """
        started = time.monotonic()
        collected = self.collected
        try:
            with closing(self._answers()) as answers:
                for place, results in answers:
                    with interrupts.held():
                        self._add(place, results)
                    on_image(collected.done, len(collected.failed))
        except CnnserveError as error:
            collected.stopped = str(error)
        except KeyboardInterrupt:
            collected.stopped, collected.interrupted = "interrupted", True
        collected.seconds = time.monotonic() - started
        return collected

    def _answers(self) -> Generator[tuple[int, tuple[ImageResult, ...]]]:
        entries = self.entries
        with ExitStack() as stack:
            streams = [
                stack.enter_context(closing(runner.results(entries, self._top_k(runner.subject))))
                for runner in self._runners
            ]
            yield from zip(self._known, zip(*streams, strict=True), strict=True)

    def _top_k(self, subject: Subject) -> int:
        """Two models are compared by the probabilities of all classes."""
        return TOP_K if self._order is None else max(TOP_K, subject.class_count)

    def _add(self, place: int, results: Sequence[ImageResult]) -> None:
        collected = self.collected
        if error := next((result.error for result in results if result.error is not None), None):
            collected.failed.append((place, str(error)))
            return
        truth = self._truth[self._samples[place].class_name]
        collected.outcomes[0].add(place, truth, results[0].classes)
        if collected.agreement is not None and self._order is not None:
            collected.outcomes[1].add(place, int(self._order[truth]), results[1].classes)
            first, second = (_row(result, len(self._order)) for result in results)
            collected.agreement.add(place, truth, first, second[self._order])


def order(first: Subject, second: Subject) -> metrics.Ints:
    """Returns the index in the second model of each class of the first one. Both must have the same labels.

    Raises `InvalidInputError` if they do not, or if one has a label twice in another order.
    """
    if first.class_count == second.class_count and first.labels == second.labels:
        return np.arange(first.class_count)
    if sorted(first.labels) != sorted(second.labels) or not first.labels:
        only = [sorted(set(a.labels) - set(b.labels)) for a, b in ((first, second), (second, first))]
        differences = "; ".join(
            f"only {subject.name} has {', '.join(map(repr, labels[:5]))}{' and others' if len(labels) > 5 else ''}"
            for subject, labels in zip((first, second), only, strict=True)
            if labels
        )
        counts = f"{first.class_count} and {second.class_count} classes"
        raise InvalidInputError(
            f"{first.name} and {second.name} have different classes ({differences or counts}): compare models with the "
            "same labels"
        )
    if len(set(first.labels)) < len(first.labels):
        raise InvalidInputError(
            f"{first.name} and {second.name} have the same labels in different orders, and a label twice, so their "
            "classes cannot be told apart: publish one of them with the labels of the other"
        )
    places = {label: index for index, label in enumerate(second.labels)}
    return np.array([places[label] for label in first.labels])


def _row(result: ImageResult, count: int) -> metrics.Floats:
    row = np.zeros(count)
    row[[one.index for one in result.classes]] = [one.probability for one in result.classes]
    return row


def _nothing(subject: Subject, names: ClassNames, unknown: Counter[str]) -> str:
    few = ", ".join(repr(name) for name in sorted(unknown)[:5]) + (" and others" if len(unknown) > 5 else "")
    hint = (
        "use numbers as names, or publish the model with labels"
        if not any(subject.labels)
        else (f"run `cnnserve labels {subject.model}` to see them")
    )
    return f"{subject.name} knows none of the {len(unknown)} classes ({few}): each has to be {names.expected}; {hint}"
