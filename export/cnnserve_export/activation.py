"""Tells logits from probabilities, because a second softmax would flatten probabilities."""

import numpy as np
from numpy.typing import NDArray

from cnnserve.model.classification import are_probabilities
from cnnserve_export.contract import Activation
from cnnserve_export.errors import ExportError


def ends_in_softmax(answers: NDArray[np.floating], asked: Activation = "auto") -> bool:
    """Returns whether the rows `answers` (N, classes) are probabilities; if not, they are logits and need a softmax.

    Raises `ExportError` if a value is NaN or infinite. If `asked` is "softmax", raises it if the rows are
    probabilities; if `asked` is "auto", if the values are within 0 and 1 but the rows do not sum to 1.
    """
    if not np.isfinite(answers).all():
        raise ExportError("the network returned NaN or infinite values; check its weights, --mean and --std")
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
