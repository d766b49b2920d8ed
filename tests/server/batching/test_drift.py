"""What is counted of a version's answers, compared with plain sums over all rows."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnnserve.batching import drift
from cnnserve.batching.drift import ENTROPY_BOUNDS, TOP1_BOUNDS, Drift, moments
from cnnserve.model.classification import softmax

IMAGES = np.zeros((1, 2), np.uint8)


class Clock:
    """A clock in ns that a test sets."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now


def probabilities(count: int, classes: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.full(classes, 0.3), count).astype(np.float32)


def bucket(bounds: tuple[float, ...], value: float) -> int:
    return sum(value > bound for bound in bounds)


@given(st.lists(st.integers(1, 40), max_size=12), st.integers(2, 12), st.booleans())
def test_all_rows_are_counted_however_they_are_batched(sizes: list[int], classes: int, logits: bool) -> None:
    counted = Drift(softmax if logits else None)
    rows = probabilities(sum(sizes), classes)
    start = 0
    for size in sizes:
        batch = rows[start : start + size]
        counted.add(IMAGES, np.log(np.maximum(batch, 1e-30)) if logits else batch)
        start += size
    found = counted.read()
    top1, entropies = [0] * (len(TOP1_BOUNDS) + 1), [0] * (len(ENTROPY_BOUNDS) + 1)
    for row in rows.astype(float).tolist():
        top1[bucket(TOP1_BOUNDS, max(row))] += 1
        entropy = -sum(p * math.log(p) for p in row if p > 0) / math.log(classes)
        entropies[bucket(ENTROPY_BOUNDS, entropy)] += 1
    # A value that lies on a bound may be counted beside it, because it is computed in 32 bits.
    assert sum(abs(a - b) for a, b in zip(found.top1.counts, top1, strict=True)) <= 2
    assert found.entropy is not None
    assert sum(abs(a - b) for a, b in zip(found.entropy.counts, entropies, strict=True)) <= 2
    assert sum(found.top1.counts) == sum(found.entropy.counts) == len(rows)
    assert found.top1.total == pytest.approx(float(rows.max(axis=1, initial=0).sum()), rel=1e-4)
    expected = np.bincount(rows.argmax(axis=1), minlength=classes)
    assert dict(found.classes.tolist()) == {number: count for number, count in enumerate(expected) if count}


def test_reading_twice_counts_nothing_twice() -> None:
    counted = Drift()
    counted.add(IMAGES, probabilities(3, 4))
    assert sum(counted.read().top1.counts) == sum(counted.read().top1.counts) == 3


def test_bad_rows_are_left_out() -> None:
    counted = Drift()
    rows = np.array([[0.9, 0.1], [np.nan, 0.5], [0.2, 0.8]], np.float32)
    counted.add(IMAGES, rows, {1: "not finite"})
    counted.add(IMAGES, rows[1:2], {0: "not finite"})
    assert counted.read().classes.tolist() == [[0, 1], [1, 1]]


def test_rows_of_several_widths_and_of_half_precision() -> None:
    counted = Drift()
    for classes in (3, 5, 3):
        counted.add(IMAGES, probabilities(2, classes).astype(np.float16))
    assert sum(counted.read().top1.counts) == 6


def test_rows_that_are_no_distribution_have_no_entropy() -> None:
    counted = Drift(are_distributions=False)
    counted.add(IMAGES, np.array([[0.9, 0.8]], np.float32))
    found = counted.read()
    assert found.entropy is None
    assert found.top1.total == pytest.approx(0.9)


def test_of_many_classes_the_most_frequent_are_reported() -> None:
    counted = Drift()
    for number in range(1200):
        row = np.zeros((1 + (number % 7 == 0), 1500), np.float32)
        row[:, number] = 1
        counted.add(IMAGES, row)
    found = counted.read().classes.tolist()
    assert len(found) == 100
    assert found == [[number, 2] for number in range(0, 700, 7)]


def test_a_thousand_classes_are_all_reported() -> None:
    counted = Drift()
    counted.add(IMAGES, np.eye(1000, dtype=np.float32))
    assert len(counted.read().classes) == 1000


def test_inputs_are_sampled_at_most_once_in_ten_milliseconds() -> None:
    clock = Clock()
    counted = Drift(clock=clock)
    rows = probabilities(1, 3)
    assert counted.read().inputs is None
    counted.add(np.full((1, 8), 10, np.uint8), rows)
    clock.now = 9_000_000
    counted.add(np.full((1, 8), 99, np.uint8), rows)
    assert counted.read().inputs == drift.Moments(10, 0)
    clock.now = 10_000_000
    counted.add(np.full((1, 8), 20, np.uint8), rows)
    assert counted.read().inputs == drift.Moments(15, 5)


def test_a_sample_of_a_large_image_has_values_of_every_channel() -> None:
    image = np.zeros((4, 300, 300, 3), np.uint8)
    image[..., 0] = 240
    counted = Drift()
    counted.add(image, probabilities(4, 3))
    found, exact = counted.read().inputs, moments(image)
    assert found is not None
    assert found.mean == pytest.approx(exact.mean, rel=0.05)
    assert found.deviation == pytest.approx(exact.deviation, rel=0.05)


def test_old_inputs_are_forgotten() -> None:
    clock = Clock()
    counted = Drift(clock=clock)
    for value in (0, 100):
        for _ in range(5000):
            clock.now += 10_000_000
            counted.add(np.full((1, 4), value, np.float32), probabilities(1, 3))
    found = counted.read().inputs
    assert found is not None
    assert 99 < found.mean <= 100
