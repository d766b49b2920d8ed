"""What a version must show before it is READY, on the session and the instance that will really serve it."""

import io
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cnnserve.datatypes import NUMPY_TYPES, Rows
from cnnserve.errors import ModelLoadFailed
from cnnserve.images.preprocessing import Preprocessor
from cnnserve.model.classification import are_probabilities, softmax
from cnnserve.model_config.providers import Provider
from cnnserve.repository.manifest import Manifest

# Sizes to try where no buckets are given.
_INVARIANCE_BATCH = 3
# TF32 and fp16 keep 11 significant bits: each factor is off by up to 5e-4 of itself, a logit of 20 after some dozen
# layers by about 2e-2, and a probability by at most a quarter of that.
_REDUCED_TOLERANCE = 1e-2
# Enlarged so many times, the golden image shows what fast preprocessing does to large pictures.
_FAST_SIZES = (1, 2, 4)

Run = Callable[[Sequence[Rows]], list[Rows]]


@dataclass(frozen=True)
class SelfTest:
    """The largest difference from the golden probabilities, alone and within a batch, and what was allowed.

    `batches` has the largest difference for each size of a run, `provider` where it was run. `fast_difference` is what
    fast preprocessing changes of any probability, where it is on.
    """

    golden_difference: float
    batch_difference: float
    tolerance: float
    batches: dict[int, float] = field(default_factory=dict)
    provider: str = ""
    fast_difference: float | None = None

    def __str__(self) -> str:
        fast = "" if self.fast_difference is None else f"; fast preprocessing changes it by {self.fast_difference:.1e}"
        proof = (
            f"golden image within {self.golden_difference:.1e}, in batches of "
            f"{', '.join(map(str, self.batches))} within {self.batch_difference:.1e} (allowed {self.tolerance:.0e})"
        )
        return proof + fast


@dataclass(frozen=True)
class Probe:
    """What a model without a manifest showed in runs over noise: its classes, and whether its rows sum to 1.

    `sizes` are the batches that were run; none where the image size is free.
    """

    class_count: int
    probabilities: bool
    sizes: tuple[int, ...] = ()

    def __str__(self) -> str:
        if not self.sizes:
            return "unverified: no manifest, and its free sizes leave nothing to run"
        rows = "probabilities" if self.probabilities else "no probabilities, so Classify applies softmax"
        return f"unverified: no manifest; in batches of {', '.join(map(str, self.sizes))} its rows are {rows}"


def probe(run: Run, shape: Sequence[int], datatype: str, output: int, *, sizes: Sequence[int]) -> Probe:
    """Runs noise of one row's `shape` in batches of every size; `output` is the one that has the classes.

    Raises `ModelLoadFailed` where the batches disagree about the classes, `InferenceFailed` where a run fails.
    """
    generator = np.random.default_rng(0)
    results = []
    for size in sizes:
        noise = generator.uniform(0, 2 if datatype == "BOOL" else 255, (size, *shape))
        # Floats are what images become: about 0 to 1.
        rows = noise / 255 if datatype.startswith("FP") else noise
        results.append(run([rows.astype(NUMPY_TYPES[datatype])])[output].reshape(size, -1))
    counts = {result.shape[1] for result in results}
    if len(counts) > 1:
        raise ModelLoadFailed(f"self-test: rows have {' or '.join(map(str, sorted(counts)))} values, by batch size")
    return Probe(counts.pop(), all(map(are_probabilities, results)), tuple(sizes))


def check_labels(labels: Sequence[str], class_count: int) -> None:
    """Raises `ModelLoadFailed` unless there is one label per class."""
    if len(labels) != class_count:
        raise ModelLoadFailed(f"there are {len(labels)} labels for {class_count} classes")


def tolerance(manifest: Manifest, provider: Provider) -> float:
    """The manifest's tolerance, or a wider one where the provider computes with fewer bits than the model has."""
    allowed = manifest.golden.tolerance
    return max(allowed, _REDUCED_TOLERANCE) if provider.reduced_precision else allowed


def batch_sizes(buckets: Sequence[int], maximum: int) -> list[int]:
    """The sizes that are tried: every bucket, or 1 and 3 (at most `maximum`) where nothing is padded."""
    return sorted({*buckets}) if buckets else sorted({1, min(_INVARIANCE_BATCH, maximum)})


def run_golden(
    run: Run,
    manifest: Manifest,
    preprocessor: Preprocessor,
    folder: Path,
    *,
    sizes: Sequence[int],
    provider: Provider,
) -> SelfTest:
    """Repeats the golden image alone, and as first and last of a batch of every size. `run` takes parts of a batch.

    Each must give the golden probabilities, and what the image gives alone. Raises `ModelLoadFailed` on a difference.
    """
    image = (folder / manifest.golden.image).read_bytes()
    row = preprocessor.exact().encoded(image)[np.newaxis]
    expected = np.asarray(manifest.golden.probabilities, np.float64)
    allowed = tolerance(manifest, provider)
    alone = _probabilities(run, manifest, row)[0]
    golden = _compare(alone, expected, allowed, "alone", "the manifest says")
    batches = {}
    for size in sizes:
        where = f"in a batch of {size}"
        rows = _probabilities(run, manifest, _batch(row, size)) if size > 1 else alone[np.newaxis]
        for placed in (rows[0], rows[-1]):
            _compare(placed, alone, allowed, where, "alone it is")
        batches[size] = max(_compare(placed, expected, allowed, where, "the manifest says") for placed in rows[[0, -1]])
    fast = _fast_difference(run, manifest, preprocessor, image) if preprocessor.options.fast else None
    return SelfTest(golden, max(batches.values(), default=golden), allowed, batches, provider.name, fast)


def worst(tests: Sequence[SelfTest]) -> SelfTest:
    """Several instances' tests as one: the largest differences."""
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
    """The largest change of any probability where the golden image, and JPEGs of it, are preprocessed fast."""
    exact = preprocessor.exact()
    differences = []
    for data in (image, *_as_jpegs(image, preprocessor.options.pixel_limit)):
        rows = np.stack([exact.encoded(data), preprocessor.encoded(data)])
        # One by one: a model may take no batches.
        scores = np.concatenate([run([row[np.newaxis]])[0] for row in rows])
        probabilities = softmax(scores) if manifest.activation == "none" else scores
        differences.append(np.abs(probabilities[0].astype(np.float64) - probabilities[1]).max())
    return float(max(differences))


def _as_jpegs(image: bytes, pixel_limit: int) -> Iterator[bytes]:
    """The image as JPEGs of its own size and larger ones, which fast preprocessing decodes smaller."""
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
    # All rows are checked, those of zeros as well.
    result: NDArray[np.float64] = run([rows])[0].astype(np.float64)
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


def _compare(
    actual: NDArray[np.float64], expected: NDArray[np.float64], allowed: float, where: str, says: str
) -> float:
    differences = np.abs(actual - expected)
    worst_class = int(np.argmax(differences))
    # Written so that a NaN fails.
    if not differences[worst_class] <= allowed:
        raise ModelLoadFailed(
            f"self-test: the golden image {where} gives class {worst_class} probability {actual[worst_class]:.6f}, "
            f"{says} {expected[worst_class]:.6f} (allowed difference {allowed:.0e})"
        )
    return float(differences[worst_class])
