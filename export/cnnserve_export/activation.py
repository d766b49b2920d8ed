"""Tells logits from probabilities, because a second softmax would flatten probabilities."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cnnserve.model.classification import are_probabilities, softmax
from cnnserve.repository.onnx_ending import Ending
from cnnserve_export.contract import Activation
from cnnserve_export.errors import ExportError
from cnnserve_export.outputs import LOGITS, Output


def ends_in_softmax(answers: NDArray[np.floating], asked: Activation = "auto") -> bool:
    """Returns whether the rows `answers` (N, classes) are probabilities; if not, they are logits and need a softmax.

    Raises `ExportError` if a value is NaN or infinite. If `asked` is "softmax", raises it if the rows are
    probabilities; if `asked` is "auto", if the values are within 0 and 1 but the rows do not sum to 1.
    """
    _check_finite(answers)
    probabilities = are_probabilities(answers)
    if asked == "softmax":
        if probabilities:
            raise ExportError(
                "the network returns probabilities, which a second softmax would flatten; leave --activation out"
            )
        return False
    if not probabilities and answers.min() >= 0 and answers.max() <= 1:
        raise ExportError(
            f"all values that the network returned are within {answers.min():.3g} and {answers.max():.3g}, but they do "
            "not sum to 1, as if each class had its own sigmoid, but the network does not end in one; end it in a "
            "sigmoid, or pass --activation softmax or sigmoid if the values are logits"
        )
    return probabilities


def decide(values: NDArray[np.float32], ending: Ending, asked: Activation = "auto") -> Output:
    """Decides what the rows `values` (N, classes) of a network or a file are, whose last step is `ending`.

    Raises `ExportError` if neither the last step nor the values show it, or if they contradict what was asked for.
    """
    single = values.shape[1] == 1
    if asked == "sigmoid" or (asked == "auto" and ending == "sigmoid"):
        _check_finite(values)
        return _of_sigmoid(values, ending, asked)
    if single:
        raise ExportError(
            "the network returns one value for an image and does not end in a sigmoid; if the value is a logit, pass "
            "--activation sigmoid"
        )
    if ends_in_softmax(values, "auto" if asked == "auto" else "softmax"):
        return Output("softmax")
    return LOGITS


def _of_sigmoid(values: NDArray[np.float32], ending: Ending, asked: Activation) -> Output:
    single = values.shape[1] == 1
    activation: Literal["softmax", "sigmoid"] = "softmax" if single else "sigmoid"
    if ending in ("sigmoid", "softmax"):
        if asked == "sigmoid":
            raise ExportError(f"the network ends in a {ending}, which a sigmoid would flatten; leave --activation out")
        return Output(activation, None, single)
    return Output(activation, "sigmoid", single)


def _check_finite(values: NDArray[np.floating]) -> None:
    if not np.isfinite(values).all():
        raise ExportError("the network returned NaN or infinite values; check its weights, --mean and --std")


def probabilities(values: NDArray[np.float32], output: Output) -> NDArray[np.float32]:
    """Returns the probabilities (N, classes) for what a network returned."""
    if output.adds == "softmax":
        return softmax(values)
    made = _sigmoid(values) if output.adds == "sigmoid" else values
    return np.concatenate([1 - made, made], axis=1) if output.two_classes else made


def _sigmoid(values: NDArray[np.float32]) -> NDArray[np.float32]:
    # Exponents of numbers that are not positive do not overflow.
    small = np.exp(-np.abs(values))
    made: NDArray[np.float32] = np.where(values >= 0, 1 / (1 + small), small / (1 + small)).astype(np.float32)
    return made
