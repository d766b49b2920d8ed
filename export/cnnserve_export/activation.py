"""Whether a network's answers are probabilities already: a second softmax would flatten them."""

import numpy as np
from numpy.typing import NDArray

from cnnserve.model.classification import are_probabilities
from cnnserve_export.contract import Activation
from cnnserve_export.errors import ExportError


def ends_in_softmax(answers: NDArray[np.floating], asked: Activation = "auto") -> bool:
    """Whether these rows (N, classes) are probabilities; False: logits, to which a softmax belongs.

    Raises `ExportError` for rows that are neither, and for "softmax" where the rows had theirs.
    """
    if not np.isfinite(answers).all():
        raise ExportError("the network's answers have NaN or infinite values; check its weights, --mean and --std")
    probabilities = are_probabilities(answers)
    if asked == "softmax":
        if probabilities:
            raise ExportError(
                "the answers are probabilities already; a second softmax would flatten them: leave --activation out"
            )
        return False
    if not probabilities and answers.min() >= 0 and answers.max() <= 1:
        raise ExportError(
            f"all answers are within {answers.min():.3g} and {answers.max():.3g} and do not sum to 1, as those of a "
            "sigmoid for each class: not one class of several. --activation softmax takes them for logits"
        )
    return probabilities
