"""The metrics, against scikit-learn to the last digit and against their definitions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import calibration
from sklearn import metrics as sklearn

from cnnserve.tools.evaluation import metrics

CLASSES = 5


@st.composite
def answers(draw: st.DrawFn) -> tuple[metrics.Ints, metrics.Floats]:
    """The classes of some images, and the probabilities that a model gives them: rows of float32, as on the wire."""
    count = draw(st.integers(1, 60))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    logits = random.normal(0, draw(st.sampled_from([0.1, 1, 10])), (count, CLASSES)).astype(np.float32)
    rows = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    truth = np.array(draw(st.lists(st.integers(0, CLASSES - 1), min_size=count, max_size=count)), np.int64)
    return truth, rows.astype(np.float64)


def ranked(truth: metrics.Ints, rows: metrics.Floats) -> tuple[metrics.Ints, metrics.Floats, metrics.Ints]:
    order = np.argsort(-rows, axis=1, kind="stable")
    return order[:, 0], rows.max(axis=1), (order == truth[:, np.newaxis]).argmax(axis=1) + 1


@given(answers())
def test_accuracy_and_class_scores_are_those_of_scikit_learn(answers: tuple[metrics.Ints, metrics.Floats]) -> None:
    truth, rows = answers
    predicted, _, ranks = ranked(truth, rows)
    assert metrics.top_k_accuracy(ranks, 1) == sklearn.accuracy_score(truth, predicted)
    labels = range(CLASSES)
    assert metrics.top_k_accuracy(ranks, 3) == sklearn.top_k_accuracy_score(truth, rows, k=3, labels=labels)
    precision, recall, _, support = sklearn.precision_recall_fscore_support(
        truth, predicted, labels=labels, zero_division=np.nan
    )
    found = {one.index: one for one in metrics.class_scores(truth, predicted)}
    assert found.keys() == {*truth.tolist(), *predicted.tolist()}
    for index, one in found.items():
        assert one.images == support[index]
        assert one.precision is None if np.isnan(precision[index]) else one.precision == precision[index]
        assert one.recall is None if np.isnan(recall[index]) else one.recall == recall[index]


@given(answers())
def test_the_confusion_matrix_is_that_of_scikit_learn(answers: tuple[metrics.Ints, metrics.Floats]) -> None:
    truth, rows = answers
    predicted, _, _ = ranked(truth, rows)
    matrix = np.zeros((CLASSES, CLASSES), np.int64)
    for one in metrics.confusions(truth, predicted):
        matrix[one.truth, one.predicted] = one.images
    assert (matrix == sklearn.confusion_matrix(truth, predicted, labels=range(CLASSES))).all()


@given(answers(), st.integers(1, 20))
def test_the_reliability_diagram_is_that_of_scikit_learn(
    answers: tuple[metrics.Ints, metrics.Floats], bins: int
) -> None:
    truth, rows = answers
    predicted, top, _ = ranked(truth, rows)
    found = metrics.reliability(top, truth == predicted, bins)
    accuracy, confidence = calibration.calibration_curve(
        (truth == predicted).astype(int), top, n_bins=bins, strategy="uniform", pos_label=1
    )
    filled = [one for one in found if one.images]
    assert [one.accuracy for one in filled] == accuracy.tolist()
    assert [one.confidence for one in filled] == confidence.tolist()
    assert sum(one.images for one in found) == len(truth)
    assert sum(one.correct for one in found) == (truth == predicted).sum()
    weights = np.array([one.images for one in filled]) / len(truth)
    expected = float((weights * np.abs(accuracy - confidence)).sum())
    assert metrics.expected_calibration_error(found) == pytest.approx(expected, abs=1e-15)


def test_the_calibration_error_of_a_sure_and_wrong_model_is_its_confidence() -> None:
    bins = metrics.reliability(np.array([0.9, 0.9, 0.9, 0.9]), np.array([True, False, False, False]))
    assert metrics.expected_calibration_error(bins) == pytest.approx(0.65)


@given(answers())
def test_mistakes_come_most_confident_first_and_equal_ones_in_order(
    answers: tuple[metrics.Ints, metrics.Floats],
) -> None:
    truth, rows = answers
    predicted, top, _ = ranked(truth, rows)
    top = top.round(1)
    places = metrics.most_confident_mistakes(truth, predicted, top, 7)
    wrong = [place for place in range(len(truth)) if truth[place] != predicted[place]]
    assert places == sorted(wrong, key=lambda place: (-top[place], place))[:7]


def test_an_image_whose_class_is_not_among_the_first_ones_is_no_hit() -> None:
    assert metrics.top_k_accuracy(np.array([1, 5, 0, 2]), 5) == 0.75


def test_the_largest_difference_names_the_class() -> None:
    assert metrics.largest_difference(np.array([0.5, 0.25, 0.25]), np.array([0.5, 0.0, 0.5])) == (1, 0.25)
