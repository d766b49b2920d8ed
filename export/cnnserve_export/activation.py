"""Tells logits from probabilities, because a second softmax would flatten probabilities."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cnnserve.model.classification import are_probabilities, softmax
from cnnserve_export.contract import Activation, ImportActivation
from cnnserve_export.endings import Ending
from cnnserve_export.errors import ExportError


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
            "not sum to 1, as if each class had its own sigmoid; if they are logits, pass --activation softmax"
        )
    return probabilities


@dataclass(frozen=True)
class Output:
    """What an imported file returns and what the published file adds to that.

    `activation` is that of the published probabilities: "softmax" if they sum to 1. `adds` is the operator that makes
    them of logits. With `two_classes` the file has one probability p for an image, and 1 - p is put in front.
    """

    activation: Literal["softmax", "sigmoid"]
    adds: Literal["softmax", "sigmoid"] | None = None
    two_classes: bool = False

    @property
    def by_network(self) -> bool:
        """Whether the file itself returns the probabilities."""
        return self.adds is None and not self.two_classes

    def described(self) -> str:
        """Returns what the file returns and what is added, for people."""
        if self.two_classes:
            made = "one probability" if self.adds is None else "one logit; a sigmoid is added"
            return f"{made}; class 0 gets the rest to 1"
        if self.adds is not None:
            return f"logits; a {self.adds} is added"
        return "probabilities" if self.activation == "softmax" else "probabilities that are independent (sigmoid)"

    def probabilities(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns the probabilities (N, classes) for what the file returned."""
        if self.adds == "softmax":
            return softmax(values)
        made = _sigmoid(values) if self.adds == "sigmoid" else values
        return np.concatenate([1 - made, made], axis=1) if self.two_classes else made


def of_file(values: NDArray[np.float32], ending: Ending, asked: ImportActivation = "auto") -> Output:
    """Decides what the rows `values` (N, classes) of a file are, whose graph ends in `ending`.

    Raises `ExportError` if neither the graph nor the values show it, or if they contradict what was asked for.
    """
    single = values.shape[1] == 1
    if asked == "sigmoid" or (asked == "auto" and ending == "sigmoid"):
        _check_finite(values)
        return _of_sigmoid(values, ending, asked)
    if single:
        raise ExportError(
            "the file returns one value for an image, and its graph does not end in a sigmoid; if it is a logit, pass "
            "--activation sigmoid"
        )
    if ends_in_softmax(values, "auto" if asked == "auto" else "softmax"):
        return Output("softmax")
    return Output("softmax", "softmax")


def _of_sigmoid(values: NDArray[np.float32], ending: Ending, asked: ImportActivation) -> Output:
    single = values.shape[1] == 1
    activation: Literal["softmax", "sigmoid"] = "softmax" if single else "sigmoid"
    if ending in ("sigmoid", "softmax"):
        if asked == "sigmoid":
            raise ExportError(f"the file ends in a {ending}, which a sigmoid would flatten; leave --activation out")
        return Output(activation, None, single)
    return Output(activation, "sigmoid", single)


def _check_finite(values: NDArray[np.floating]) -> None:
    if not np.isfinite(values).all():
        raise ExportError("the network returned NaN or infinite values; check its weights, --mean and --std")


def _sigmoid(values: NDArray[np.float32]) -> NDArray[np.float32]:
    # Exponents of numbers that are not positive do not overflow.
    small = np.exp(-np.abs(values))
    made: NDArray[np.float32] = np.where(values >= 0, 1 / (1 + small), small / (1 + small)).astype(np.float32)
    return made
