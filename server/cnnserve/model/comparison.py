"""Compares probabilities with those that a version must repeat: by their difference, and by their logarithm.

The difference sees nothing where probabilities are small: with the rows of two rare classes exchanged, each of an
image's probabilities may change by less than 1e-4. The logarithm sees it. The value of a sigmoid is compared by its
log-odds.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cnnserve.errors import ModelLoadFailed
from cnnserve.model_config.providers import Provider
from cnnserve.repository.manifest import LOG_TOLERANCES, Manifest

# TF32 and fp16 have 11 significant bits, so each factor has a relative error of up to 5e-4. After a few dozen layers, a
# logit of 20 differs by about 2e-2, and a probability by at most a quarter of that.
_REDUCED_TOLERANCE = 1e-2
# Smaller probabilities count as this. fp16 has fewer bits below its smallest normal number, and none below 6e-8.
_FLOOR, REDUCED_FLOOR = 1e-30, 2.0**-14
# The same for the distance of a sigmoid from 1, which float32 holds in steps of 6e-8.
_SIGMOID_FLOOR = 1e-3


@dataclass(frozen=True)
class Tolerance:
    """The largest differences allowed of a probability and of its logarithm; None: logarithms are not compared.

    Probabilities below `floor` count as `floor`. `sigmoid`: log-odds are compared.
    """

    probability: float
    log: float | None = None
    floor: float = _FLOOR
    sigmoid: bool = False


def tolerance(manifest: Manifest, provider: Provider) -> Tolerance:
    """Returns the tolerances of a manifest, larger ones if the provider computes with fewer bits than the model.

    Logits and versions of schema 1 are compared by their difference only.
    """
    golden = manifest.golden
    probability, log, floor = golden.tolerance, golden.log_tolerance, _FLOOR
    if provider.reduced_precision:
        probability = max(probability, _REDUCED_TOLERANCE)
        log = None if log is None else max(log, LOG_TOLERANCES["fp16"])
    if provider.reduced_precision or manifest.onnx.precision != "fp32":
        floor = REDUCED_FLOOR
    if manifest.activation == "none":
        log = None
    return Tolerance(probability, log, floor, manifest.activation == "sigmoid")


def compare(
    actual: NDArray[np.float64], expected: NDArray[np.float64], allowed: Tolerance, where: str, says: str
) -> float:
    """Returns the largest difference of a probability. Raises `ModelLoadFailed` above a tolerance."""
    differences = np.abs(actual - expected)
    found = [("tolerance", differences, allowed.probability)]
    if allowed.log is not None:
        logs = np.abs(_logarithms(actual, allowed) - _logarithms(expected, allowed))
        found.append((f"tolerance of the {'log-odds' if allowed.sigmoid else 'logarithm'}", logs, allowed.log))
    for name, values, limit in found:
        worst = int(np.argmax(values))
        # `not <=` instead of `>`, so that a NaN fails.
        if not values[worst] <= limit:
            raise ModelLoadFailed(
                f"self-test: the golden image {where} gives class {worst} the probability {actual[worst]:.6g}, but "
                f"{says} {expected[worst]:.6g} ({name} {limit:g})"
            )
    return float(differences.max())


def _logarithms(probabilities: NDArray[np.float64], allowed: Tolerance) -> NDArray[np.float64]:
    logs: NDArray[np.float64] = np.log(np.maximum(probabilities, allowed.floor))
    return logs - np.log(np.maximum(1 - probabilities, _SIGMOID_FLOOR)) if allowed.sigmoid else logs
