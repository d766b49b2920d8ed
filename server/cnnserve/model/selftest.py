"""The self-test of a version before it is READY, on the sessions and instances that will serve it."""

import contextlib
import io
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cnnserve.batching.drift import Moments, moments
from cnnserve.datatypes import NUMPY_TYPES, Rows, TensorSpec
from cnnserve.errors import ModelLoadFailed
from cnnserve.images.preprocessing import Preprocessor
from cnnserve.model import class_rows
from cnnserve.model.class_rows import ClassRows
from cnnserve.model.classification import are_probabilities, softmax
from cnnserve.model.comparison import Tolerance, compare, tolerance
from cnnserve.model_config.providers import Provider
from cnnserve.repository.manifest import Manifest, golden_probabilities
from cnnserve.repository.onnx_ending import Ending

# Batch size of the self-test if there are no buckets.
_INVARIANCE_BATCH = 3
# Factors by which the golden image is enlarged, to show what fast preprocessing changes in large images.
_FAST_SIZES = (1, 2, 4)

Run = Callable[[Sequence[Rows]], list[Rows]]


@dataclass(frozen=True)
class SelfTest:
    """The result of a self-test: the largest differences from the golden probabilities, and the tolerance.

    `golden_difference` is that of the golden image alone, `batch_difference` that in batches, `batches` that for each
    batch size. `provider`: where it ran. `fast_difference`: the largest change of a probability by fast preprocessing;
    None if that is off. `complete`: whether all runs were made, or some are left for the time after READY.
    """

    golden_difference: float
    batch_difference: float
    tolerance: float
    batches: dict[int, float] = field(default_factory=dict)
    provider: str = ""
    fast_difference: float | None = None
    complete: bool = True
    # Of the golden images as the model receives them.
    inputs: Moments | None = None

    def __str__(self) -> str:
        passed = (
            "self-test passed: the probabilities of the golden image differ by at most "
            f"{self.golden_difference:.1e} alone and by {self.batch_difference:.1e} in batches of "
            f"{', '.join(map(str, self.batches))} (tolerance {self.tolerance:.0e})"
        )
        if not self.complete:
            passed += "; the rest of the self-test follows"
        if self.fast_difference is None:
            return passed
        return f"{passed}; fast preprocessing changes them by at most {self.fast_difference:.1e}"


@dataclass(frozen=True)
class Probe:
    """The result of running a model without a manifest on noise: class count, and what its rows are.

    `sizes`: the batch sizes of the runs; empty if an input size is free, because then nothing is run.
    """

    class_count: int
    rows: ClassRows
    sizes: tuple[int, ...] = ()

    def __str__(self) -> str:
        if not self.sizes:
            ran = "and not run, because an input size is free; as far as the graph shows,"
        else:
            ran = f"in batches of {', '.join(map(str, self.sizes))}"
        return f"unverified: no manifest; {ran} its output rows are {self.rows}"


def probe(
    run: Run,
    shape: Sequence[int],
    datatype: str,
    output: int,
    *,
    spec: TensorSpec,
    ending: Ending,
    sizes: Sequence[int],
) -> Probe:
    """Runs noise of a row's `shape` in batches of each size. `output`: index of the output with the classes.

    `spec` describes this output, `ending` says what makes its values. Raises `ModelLoadFailed` if the number of classes
    differs between batches, `InferenceFailed` if a run fails.
    """
    generator = np.random.default_rng(0)
    results = []
    for size in sizes:
        noise = generator.uniform(0, 2 if datatype == "BOOL" else 255, (size, *shape))
        # Preprocessing makes floats of about 0 to 1.
        rows = noise / 255 if datatype.startswith("FP") else noise
        results.append(run([rows.astype(NUMPY_TYPES[datatype])])[output])
    counts = {result.size // size for result, size in zip(results, sizes, strict=True)}
    if len(counts) > 1:
        values = " or ".join(map(str, sorted(counts)))
        raise ModelLoadFailed(
            f"self-test: an output row has {values} values, depending on the batch size; export the model with a free "
            "batch dimension"
        )
    found = class_rows.decide(spec, ending, results)
    return Probe(2 if found.single else counts.pop(), found, tuple(sizes))


def batch_sizes(buckets: Sequence[int], maximum: int) -> list[int]:
    """Returns the batch sizes to test: all buckets; without buckets 1 and 3 (at most `maximum`)."""
    return sorted({*buckets}) if buckets else sorted({1, min(_INVARIANCE_BATCH, maximum)})


class _NotFinite(ModelLoadFailed):
    """Values of a row are not finite."""


class Extra:
    """The time that work may take which goes beyond the first golden image alone and in the smallest batches (s)."""

    def __init__(self, limit_s: float = math.inf) -> None:
        self._left_s = limit_s
        self.complete = True

    def allows(self, seconds: float) -> bool:
        """Returns whether there is time for work that should take this long. If not, the self-test is not complete."""
        if seconds > self._left_s:
            self.complete = False
            return False
        return True

    @contextlib.contextmanager
    def counting(self) -> Iterator[None]:
        """Subtracts the time that the work inside really takes: on a busy machine that is more than it should take."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._left_s -= time.perf_counter() - started


@dataclass(frozen=True)
class _Row:
    """A row of a batch. `alone`: what it gives alone; None if not run. `expected`: its golden probabilities."""

    name: str
    row: Rows
    alone: NDArray[np.float64] | None = None
    expected: NDArray[np.float64] | None = None


class _Golden:
    """The golden images of a version, and what the model returned for those that were run alone."""

    def __init__(self, run: Run, manifest: Manifest, preprocessor: Preprocessor, read: Callable[[str], bytes]) -> None:
        self._run = run
        self._manifest = manifest
        self._exact = preprocessor.for_golden_images().exact()
        self._read = read
        self._expected = golden_probabilities(manifest, read).astype(np.float64)
        self._rows: list[_Row] = []
        # Time of the quickest run of one row; the first run of a session takes longer.
        self.row_s = math.inf
        # The same with the decoding of its image.
        self.image_s = math.inf

    @property
    def names(self) -> Sequence[str]:
        """The file names of the images."""
        return self._manifest.golden.images

    @property
    def is_single(self) -> bool:
        """Whether only one image was run."""
        return len(self._rows) == 1

    def image(self, index: int) -> bytes:
        """Returns an image file."""
        return self._read(self.names[index])

    def inputs(self) -> Moments:
        """Returns mean and standard deviation of the images that were run alone."""
        return moments(np.stack([one.row for one in self._rows if one.expected is not None]))

    def run_alone(self, index: int, allowed: Tolerance) -> float:
        """Runs the next image alone and returns the largest difference from its golden probabilities."""
        name, expected = self.names[index], self._expected[index]
        started = time.perf_counter()
        row = self._exact.encoded(self.image(index))
        alone = self._run_row(row)
        self.image_s = min(self.image_s, time.perf_counter() - started)
        self._rows.append(_Row(name, row, alone, expected))
        return compare(alone, expected, allowed, f"{name} alone", "the manifest says")

    def add_variants(self, extra: "Extra") -> None:
        """Adds variants of the first image, for batches that would have no other row. They run alone if time allows.

        One is darker, because a row may depend on the brightest one of its batch.
        """
        name, row = f"a variant of {self.names[0]}", self._rows[0].row
        darker = (row // 2 if row.dtype.kind == "u" else row / 2).astype(row.dtype)
        # A network that standardises each image has no answer to a variant that is all one value.
        with contextlib.suppress(_NotFinite):
            if extra.allows(self.row_s):
                with extra.counting():
                    self._rows.append(_Row(name, darker, self._run_row(darker)))
        turned = np.ascontiguousarray(row[::-1])
        alone = None
        if extra.allows(self.row_s):
            with extra.counting():
                alone = self._run_row(turned)
        self._rows.append(_Row(name, turned, alone))

    def run_batch(self, size: int, allowed: Tolerance) -> float:
        """Runs a batch of these rows. The first image is also its last row.

        Returns the largest difference from the golden probabilities. Each row must also be what it is alone.
        """
        placed = [self._rows[number % len(self._rows)] for number in range(size - 1)] + self._rows[:1]
        answers = _probabilities(self._run, self._manifest, np.stack([one.row for one in placed]))
        worst = 0.0
        for one, answer in zip(placed, answers, strict=True):
            where = f"{one.name} in a batch of {size}"
            if one.alone is not None:
                compare(answer, one.alone, allowed, where, "alone it is")
            if one.expected is not None:
                worst = max(worst, compare(answer, one.expected, allowed, where, "the manifest says"))
        return worst

    def _run_row(self, row: Rows) -> NDArray[np.float64]:
        started = time.perf_counter()
        answers = _probabilities(self._run, self._manifest, row[np.newaxis])
        self.row_s = min(self.row_s, time.perf_counter() - started)
        alone: NDArray[np.float64] = answers[0]
        return alone


def run_golden(
    run: Run,
    manifest: Manifest,
    preprocessor: Preprocessor,
    read: Callable[[str], bytes],
    *,
    sizes: Sequence[int],
    provider: Provider,
    largest: int = 0,
    extra: Extra | None = None,
) -> SelfTest:
    """Runs each golden image alone, and all of them in a batch of each size and of `largest` rows (0: none).

    Each time, the probabilities must be the golden ones and, in a batch, also those of the image alone, within the
    tolerances. Otherwise it raises `ModelLoadFailed`. Only the first image and `sizes` are always run, the others as
    far as `extra` allows. `run` takes the parts of a batch, `read` returns a file of the version. Returns the
    differences.
    """
    extra = extra or Extra()
    allowed = tolerance(manifest, provider)
    golden = _Golden(run, manifest, preprocessor, read)
    difference = golden.run_alone(0, allowed)
    for index in range(1, len(golden.names)):
        if not extra.allows(golden.image_s):
            break
        with extra.counting():
            difference = max(difference, golden.run_alone(index, allowed))
    if golden.is_single and max(largest, *sizes) > 1:
        golden.add_variants(extra)
    batches = {size: golden.run_batch(size, allowed) if size > 1 else difference for size in sizes}
    if largest and largest not in batches and extra.allows(largest * golden.row_s):
        batches[largest] = golden.run_batch(largest, allowed)
    fast = _fast_difference(run, manifest, preprocessor, golden.image(0)) if preprocessor.options.fast else None
    return SelfTest(
        difference,
        max(batches.values(), default=difference),
        allowed.probability,
        batches,
        provider.name,
        fast,
        extra.complete,
        golden.inputs(),
    )


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
        all(test.complete for test in tests),
        tests[0].inputs,
    )


def _fast_difference(run: Run, manifest: Manifest, preprocessor: Preprocessor, image: bytes) -> float:
    """Returns the largest change of a probability if fast preprocessing reads the golden image, and JPEGs of it."""
    fast = preprocessor.for_golden_images()
    exact = fast.exact()
    differences = []
    for data in (image, *_as_jpegs(image, preprocessor.options.pixel_limit)):
        rows = np.stack([exact.encoded(data), fast.encoded(data)])
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


def _probabilities(run: Run, manifest: Manifest, rows: Rows) -> NDArray[np.float64]:
    # All rows are checked, also those of zeros.
    result: NDArray[np.float64] = run([rows])[0].astype(np.float64)
    if result.shape != (len(rows), manifest.class_count):
        raise ModelLoadFailed(
            f"self-test: output shape {list(result.shape)}, expected {[len(rows), manifest.class_count]}"
        )
    if not np.isfinite(result).all():
        raise _NotFinite("self-test: the output rows have values that are not finite; export the model again")
    if manifest.activation == "softmax" and not are_probabilities(result):
        raise ModelLoadFailed(
            f"self-test: the output rows are not probabilities (values {result.min():.3g} to {result.max():.3g}, "
            f"sums {result.sum(axis=1).min():.3g} to {result.sum(axis=1).max():.3g}), but the manifest says softmax; "
            "export the model again"
        )
    return result
