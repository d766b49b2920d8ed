"""The self-test of a version before it is READY, on the sessions and instances that will serve it."""

import io
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cnnserve.datatypes import NUMPY_TYPES, Rows
from cnnserve.errors import ModelLoadFailed
from cnnserve.images.preprocessing import Preprocessor
from cnnserve.model.classification import are_probabilities, softmax
from cnnserve.model_config.providers import Provider
from cnnserve.repository.manifest import Manifest, golden_probabilities

# Batch size of the self-test if there are no buckets.
_INVARIANCE_BATCH = 3
# TF32 and fp16 have 11 significant bits, so each factor has a relative error of up to 5e-4. After a few dozen layers, a
# logit of 20 differs by about 2e-2, and a probability by at most a quarter of that.
_REDUCED_TOLERANCE = 1e-2
# Factors by which the golden image is enlarged, to show what fast preprocessing changes in large images.
_FAST_SIZES = (1, 2, 4)

Run = Callable[[Sequence[Rows]], list[Rows]]


@dataclass(frozen=True)
class SelfTest:
    """The result of a self-test: the largest differences from the golden probabilities, and the tolerance.

    `golden_difference` is that of the golden image alone, `batch_difference` that in batches, `batches` that for each
    batch size. `provider`: where it ran. `fast_difference`: the largest change of a probability by fast preprocessing;
    None if that is off.
    """

    golden_difference: float
    batch_difference: float
    tolerance: float
    batches: dict[int, float] = field(default_factory=dict)
    provider: str = ""
    fast_difference: float | None = None

    def __str__(self) -> str:
        passed = (
            "self-test passed: the probabilities of the golden image differ by at most "
            f"{self.golden_difference:.1e} alone and by {self.batch_difference:.1e} in batches of "
            f"{', '.join(map(str, self.batches))} (tolerance {self.tolerance:.0e})"
        )
        if self.fast_difference is None:
            return passed
        return f"{passed}; fast preprocessing changes them by at most {self.fast_difference:.1e}"


@dataclass(frozen=True)
class Probe:
    """The result of running a model without a manifest on noise: class count, and whether rows are probabilities.

    `sizes`: the batch sizes of the runs; empty if an input size is free, because then nothing is run.
    """

    class_count: int
    probabilities: bool
    sizes: tuple[int, ...] = ()

    def __str__(self) -> str:
        if not self.sizes:
            return "unverified: no manifest, and not run, because an input size is free"
        rows = "probabilities" if self.probabilities else "not probabilities, so Classify applies a softmax"
        return f"unverified: no manifest; in batches of {', '.join(map(str, self.sizes))} its output rows are {rows}"


def probe(run: Run, shape: Sequence[int], datatype: str, output: int, *, sizes: Sequence[int]) -> Probe:
    """Runs noise of a row's `shape` in batches of each size. `output`: index of the output with the classes.

    Raises `ModelLoadFailed` if the number of classes differs between batches, `InferenceFailed` if a run fails.
    """
    generator = np.random.default_rng(0)
    results = []
    for size in sizes:
        noise = generator.uniform(0, 2 if datatype == "BOOL" else 255, (size, *shape))
        # Preprocessing makes floats of about 0 to 1.
        rows = noise / 255 if datatype.startswith("FP") else noise
        results.append(run([rows.astype(NUMPY_TYPES[datatype])])[output].reshape(size, -1))
    counts = {result.shape[1] for result in results}
    if len(counts) > 1:
        values = " or ".join(map(str, sorted(counts)))
        raise ModelLoadFailed(
            f"self-test: an output row has {values} values, depending on the batch size; export the model with a free "
            "batch dimension"
        )
    return Probe(counts.pop(), all(map(are_probabilities, results)), tuple(sizes))


def tolerance(manifest: Manifest, provider: Provider) -> float:
    """Returns the manifest's tolerance, or a larger one if the provider computes with fewer bits than the model."""
    allowed = manifest.golden.tolerance
    return max(allowed, _REDUCED_TOLERANCE) if provider.reduced_precision else allowed


def batch_sizes(buckets: Sequence[int], maximum: int) -> list[int]:
    """Returns the batch sizes to test: all buckets; without buckets 1 and 3 (at most `maximum`)."""
    return sorted({*buckets}) if buckets else sorted({1, min(_INVARIANCE_BATCH, maximum)})


def run_golden(
    run: Run,
    manifest: Manifest,
    preprocessor: Preprocessor,
    read: Callable[[str], bytes],
    *,
    sizes: Sequence[int],
    provider: Provider,
) -> SelfTest:
    """Runs each golden image alone, and the first one as first and last row of a batch of each size.

    Each time, the probabilities must be the golden ones and, in a batch, also those of the image alone, within the
    tolerance. Otherwise it raises `ModelLoadFailed`. `run` takes the parts of a batch, `read` returns a file of the
    version. Returns the differences.
    """
    images = [read(name) for name in manifest.golden.images]
    every = golden_probabilities(manifest, read).astype(np.float64)
    exact, allowed = preprocessor.exact(), tolerance(manifest, provider)
    rows_alone = [exact.encoded(image)[np.newaxis] for image in images]
    answers = [_probabilities(run, manifest, row)[0] for row in rows_alone]
    golden = max(
        _compare(answer, expected, allowed, f"{name} alone", "the manifest says")
        for answer, expected, name in zip(answers, every, manifest.golden.images, strict=True)
    )
    row, alone, expected, image = rows_alone[0], answers[0], every[0], images[0]
    batches = {}
    for size in sizes:
        where = f"{manifest.golden.images[0]} in a batch of {size}"
        rows = _probabilities(run, manifest, _batch(row, size)) if size > 1 else alone[np.newaxis]
        for placed in (rows[0], rows[-1]):
            _compare(placed, alone, allowed, where, "alone it is")
        batches[size] = max(_compare(placed, expected, allowed, where, "the manifest says") for placed in rows[[0, -1]])
    fast = _fast_difference(run, manifest, preprocessor, image) if preprocessor.options.fast else None
    return SelfTest(golden, max(batches.values(), default=golden), allowed, batches, provider.name, fast)


def worst(tests: Sequence[SelfTest]) -> SelfTest:
    """Returns the results of several instances as one: the largest differences."""
    sizes = sorted({size for test in tests for size in test.batches})
    return SelfTest(
        max(test.golden_difference for test in tests),
        max(test.batch_difference for test in tests),
        max(test.tolerance for test in tests),
        {size: max(test.batches.get(size, 0.0) for test in tests) for size in sizes},
        ", ".join(sorted({test.provider for test in tests})),
        max((test.fast_difference for test in tests if test.fast_difference is not None), default=None),
    )


def _fast_difference(run: Run, manifest: Manifest, preprocessor: Preprocessor, image: bytes) -> float:
    """Returns the largest change of a probability if fast preprocessing reads the golden image, and JPEGs of it."""
    exact = preprocessor.exact()
    differences = []
    for data in (image, *_as_jpegs(image, preprocessor.options.pixel_limit)):
        rows = np.stack([exact.encoded(data), preprocessor.encoded(data)])
        # Each row runs alone, because the model may take no batches.
        scores = np.concatenate([run([row[np.newaxis]])[0] for row in rows])
        probabilities = softmax(scores) if manifest.activation == "none" else scores
        differences.append(np.abs(probabilities[0].astype(np.float64) - probabilities[1]).max())
    return float(max(differences))


def _as_jpegs(image: bytes, pixel_limit: int) -> Iterator[bytes]:
    """Yields the image as JPEGs of its own and of larger sizes, which fast preprocessing decodes at smaller sizes."""
    with Image.open(io.BytesIO(image)) as opened:
        picture = opened.convert("RGB")
    for times in _FAST_SIZES:
        size = (picture.width * times, picture.height * times)
        if math.prod(size) > pixel_limit:
            return
        buffer = io.BytesIO()
        picture.resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
        yield buffer.getvalue()


def _batch(row: Rows, size: int) -> Rows:
    batch = np.zeros((size, *row.shape[1:]), row.dtype)
    batch[0] = batch[-1] = row[0]
    return batch


def _probabilities(run: Run, manifest: Manifest, rows: Rows) -> NDArray[np.float64]:
    # All rows are checked, also those of zeros.
    result: NDArray[np.float64] = run([rows])[0].astype(np.float64)
    if result.shape != (len(rows), manifest.class_count):
        raise ModelLoadFailed(
            f"self-test: output shape {list(result.shape)}, expected {[len(rows), manifest.class_count]}"
        )
    if manifest.activation == "softmax" and not are_probabilities(result):
        raise ModelLoadFailed(
            f"self-test: the output rows are not probabilities (values {result.min():.3g} to {result.max():.3g}, "
            f"sums {result.sum(axis=1).min():.3g} to {result.sum(axis=1).max():.3g}), but the manifest says softmax; "
            "export the model again"
        )
    return result


def _compare(
    actual: NDArray[np.float64], expected: NDArray[np.float64], allowed: float, where: str, says: str
) -> float:
    differences = np.abs(actual - expected)
    worst_class = int(np.argmax(differences))
    # `not <=` instead of `>`, so that a NaN fails.
    if not differences[worst_class] <= allowed:
        raise ModelLoadFailed(
            f"self-test: the golden image {where} gives class {worst_class} the probability "
            f"{actual[worst_class]:.6f}, but {says} {expected[worst_class]:.6f} (tolerance {allowed:.0e})"
        )
    return float(differences[worst_class])
