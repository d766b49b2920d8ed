"""What a version must show before it is READY, on the session that will really serve it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cnnserve.classification import are_probabilities
from cnnserve.errors import ModelLoadFailed
from cnnserve.instance import Runner, run_rows
from cnnserve.manifest import Manifest
from cnnserve.model_config import Settings
from cnnserve.preprocessing import Preprocessor

_INVARIANCE_BATCH = 3


@dataclass(frozen=True)
class SelfTest:
    """The largest difference from the golden probabilities, alone and within a batch, and what was allowed."""

    golden_difference: float
    batch_difference: float
    tolerance: float

    def __str__(self) -> str:
        return (
            f"golden image within {self.golden_difference:.1e}, in a batch within {self.batch_difference:.1e} "
            f"(allowed {self.tolerance:.0e})"
        )


def check_labels(labels: Sequence[str], class_count: int) -> None:
    """Raises `ModelLoadFailed` unless there is one label per class."""
    if len(labels) != class_count:
        raise ModelLoadFailed(f"there are {len(labels)} labels for {class_count} classes")


def run_golden(
    runner: Runner,
    manifest: Manifest,
    preprocessor: Preprocessor,
    folder: Path,
    settings: Settings,
) -> SelfTest:
    """Repeats the golden image alone and as first and last of a batch. Raises `ModelLoadFailed` on a difference."""
    row = preprocessor.encoded((folder / manifest.golden.image).read_bytes())[np.newaxis]
    expected = np.asarray(manifest.golden.probabilities, np.float64)
    alone = _probabilities(runner, manifest, row, settings.fixed_batch)[0]
    golden = _compare(alone, expected, manifest.golden.tolerance, "alone")
    count = min(_INVARIANCE_BATCH, settings.max_batch_size)
    others = np.zeros((count - 2, *row.shape[1:]), row.dtype) if count > 2 else row[:0]
    batch = np.concatenate([row, others, row]) if count > 1 else row
    rows = _probabilities(runner, manifest, batch, settings.fixed_batch)
    spread = max(_compare(rows[i], expected, manifest.golden.tolerance, f"in a batch of {count}") for i in (0, -1))
    return SelfTest(golden, spread, manifest.golden.tolerance)


def _probabilities(
    runner: Runner, manifest: Manifest, rows: NDArray[np.generic], fixed_batch: int | None
) -> NDArray[np.float64]:
    result: NDArray[np.float64] = run_rows(runner, [rows], fixed_batch)[0].astype(np.float64)
    if result.shape != (len(rows), manifest.class_count):
        raise ModelLoadFailed(
            f"self-test: output shape {list(result.shape)}, expected {[len(rows), manifest.class_count]}"
        )
    if manifest.activation == "softmax" and not are_probabilities(result):
        raise ModelLoadFailed(
            f"self-test: the rows are no probabilities (values {result.min():.3g} to {result.max():.3g}, "
            f"sums {result.sum(axis=1).min():.3g} to {result.sum(axis=1).max():.3g}), the manifest promises softmax"
        )
    return result


def _compare(actual: NDArray[np.float64], expected: NDArray[np.float64], tolerance: float, where: str) -> float:
    differences = np.abs(actual - expected)
    worst = int(np.argmax(differences))
    # Written so that a NaN fails.
    if not differences[worst] <= tolerance:
        raise ModelLoadFailed(
            f"self-test: the golden image {where} gives class {worst} probability {actual[worst]:.6f}, "
            f"the manifest says {expected[worst]:.6f} (allowed difference {tolerance:.0e})"
        )
    return float(differences[worst])
