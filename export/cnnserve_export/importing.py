"""One import, from an ONNX file made elsewhere to a published version, or to nothing.

The file's own answers to one image at a time are the reference; what is published gives the same at every batch size.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from cnnserve.errors import InferenceFailed, ModelLoadFailed
from cnnserve.model.classification import softmax
from cnnserve.model_config.providers import CPU
from cnnserve.process.cpu import cpu_budget
from cnnserve.repository.manifest import Golden, Manifest, OnnxInfo, Parity, Preprocessing, TensorInfo
from cnnserve.runtime.session import Session, SessionOptions
from cnnserve_export import companions, foreign, labels, preparation, proof, publish, surgery
from cnnserve_export.activation import ends_in_softmax
from cnnserve_export.contract import DEFAULT_MAX_BATCH_SIZE, OUTPUT_NAME, Activation, Contract
from cnnserve_export.errors import ExportError
from cnnserve_export.foreign import Foreign
from cnnserve_export.golden import GOLDEN_FILE
from cnnserve_export.progress import Progress, Stage

MODEL_FILE = "model.onnx"
# Largest difference allowed for any probability, from what the file answers to the image alone.
TOLERANCE = 1e-4

_ORIGINAL = "original"


@dataclass(frozen=True, kw_only=True)
class Import:
    """What to import and where to. `given` says how images become the file's input, `labels` is a file of names."""

    file: Path
    given: preparation.Given
    golden_png: bytes
    repository: Path
    name: str
    version: int | None = None
    labels: Path | None = None
    activation: Activation = "auto"
    max_batch_size: int = DEFAULT_MAX_BATCH_SIZE


@dataclass(frozen=True)
class _Reference:
    """What the file answers: `rows` are its inputs, `expected` the probabilities for each of them alone."""

    rows: NDArray[np.generic]
    expected: NDArray[np.float32]
    ends_in_softmax: bool
    # Its rows have further dimensions of 1.
    flattened: bool


@dataclass(frozen=True)
class _Proved:
    """The served file: `fixed_batch` where it runs no other; `differences` by batch size."""

    model: onnx.ModelProto
    fixed_batch: int | None
    differences: dict[str, float]
    change: str


def run(job: Import, progress: Progress) -> Path:
    """Checks, proves and publishes; returns the version's folder.

    Raises `ExportError` or cnnserve's `ModelLoadFailed`; nothing is left in the repository then.
    """
    target = publish.plan(job.repository, job.name, job.version)
    with progress.stage("read") as stage:
        source = foreign.read(job.file)
        spec, tensor = preparation.of_tensor(job.given, source.input)
        stage.finding = (
            f"{job.file.name}: opset {source.opset}, IR {source.model.ir_version}, {source.parameters:,} parameters, "
            f"input {tensor.name!r} {tensor.datatype} {tensor.layout}"
        )
    with publish.staging(target) as folder:
        with progress.stage("check") as stage:
            reference = _ask(job, source, spec, tensor, folder, stage=stage)
            class_count = reference.expected.shape[1]
            names = labels.read(job.labels, class_count, "correct the file") if job.labels else None
            model = _finished(source, reference)
            contract = Contract(tensor, TensorInfo(model.graph.output[0].name, "FP32", (class_count,)), spec)
            # Before the work, not after it.
            publish.check_compatible(target, contract, job.max_batch_size)
            softmax_is = "probabilities" if reference.ends_in_softmax else "logits; softmax is added"
            stage.finding = f"{class_count} classes, answers {softmax_is}"
        with progress.stage("verify") as stage:
            proved = _prove(job, source, model, reference, folder)
            measured = ", ".join(f"{value:.1e} at batch {size}" for size, value in proved.differences.items())
            stage.finding = f"{proved.change}; largest difference from the file {measured} (allowed {TOLERANCE:.0e})"
            stage.finding += proof.doubt(reference.expected, TOLERANCE)
        with progress.stage("publish") as stage:
            companions.write(folder, job.golden_png, names)
            manifest = _manifest(job, target, source=source, contract=contract, reference=reference, proved=proved)
            published = publish.commit(folder, manifest, target)
            stage.finding = f"{target.model} version {published.name}"
    return published


def _ask(
    job: Import, source: Foreign, spec: Preprocessing, tensor: TensorInfo, folder: Path, *, stage: Stage
) -> _Reference:
    """Runs the original, one image at a time."""
    # Under its own name, which errors tell; with its external data inside, as it was looked at.
    path = folder / _ORIGINAL / job.file.name
    path.parent.mkdir()
    path.write_bytes(source.data)
    try:
        session = Session(path, SessionOptions(threads=cpu_budget()))
        _check_onnx(source.model)
        rows = proof.rows(spec, tensor, job.golden_png, _row_count(job, source))
        answers = np.concatenate(
            [_answer(session, row, source.fixed_batch or 1) for row in stage.track(rows, len(rows), "images")]
        )
        again = _answer(session, rows[0], source.fixed_batch or 1)
    finally:
        shutil.rmtree(path.parent)
    if not np.allclose(again, answers[:1], atol=TOLERANCE, equal_nan=True):
        raise ExportError(
            "the file answers the same image differently: it draws random numbers; export the network again after "
            "network.eval()"
        )
    flat = answers.reshape(len(rows), -1)
    is_softmax = ends_in_softmax(flat, job.activation)
    return _Reference(rows, flat if is_softmax else softmax(flat), is_softmax, answers.ndim > 2)


def _row_count(job: Import, source: Foreign) -> int:
    return max(job.max_batch_size, source.fixed_batch or 1)


def _answer(session: Session, row: NDArray[np.generic], batch: int) -> NDArray[np.float32]:
    """The file's answer to one image, (1, classes, ...); where its batch is fixed, to as many of it."""
    try:
        answer: NDArray[np.float32] = session.run(np.repeat(row[np.newaxis], batch, axis=0))[0]
    except InferenceFailed as error:
        raise ExportError(f"the file fails on a batch of {batch}: {error}") from error
    if answer.ndim < 2 or len(answer) != batch or answer.shape[1] < 2 or any(size != 1 for size in answer.shape[2:]):
        raise ExportError(
            f"the file answers shape {list(answer.shape)} to a batch of {batch}, expected [{batch}, classes] with at "
            "least 2 classes"
        )
    return answer[:1]


def _check_onnx(model: onnx.ModelProto) -> None:
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise ExportError(f"the file breaks ONNX's rules: {str(error).splitlines()[0]}") from error


def _prove(job: Import, source: Foreign, finished: onnx.ModelProto, reference: _Reference, folder: Path) -> _Proved:
    """The first form of the file that gives the reference's answers, written as the version's model."""
    path = folder / MODEL_FILE
    reason: Exception | None = None
    for model, fixed_batch, change in _forms(source, finished):
        sizes = [fixed_batch] if fixed_batch else proof.batch_sizes(job.max_batch_size)
        unaltered = model is source.model
        path.write_bytes(source.data if unaltered else model.SerializeToString(deterministic=True))
        try:
            _check_onnx(model)
            differences = _compare(path, reference, sizes)
        except (ExportError, ModelLoadFailed, InferenceFailed) as error:
            reason = reason or error
            continue
        told = f"{change}, any other fails ({reason})" if fixed_batch and reason else change
        return _Proved(model, fixed_batch, differences, "the file as it is" if unaltered else told)
    raise ExportError(f"no form of the file gives its answers again: {reason}") from reason


def _finished(source: Foreign, reference: _Reference) -> onnx.ModelProto:
    model = surgery.with_rows(source.model) if reference.flattened else source.model
    return model if reference.ends_in_softmax else surgery.with_softmax(model, OUTPUT_NAME)


def _forms(source: Foreign, model: onnx.ModelProto) -> Iterator[tuple[onnx.ModelProto, int | None, str]]:
    """The model for any batch, as it is or made so, and at last for the one size that it was made for."""
    name, size = source.input.name, source.fixed_batch or 1
    if source.fixed_batch is None:
        yield model, None, "any batch"
    free = surgery.with_free_reshapes(model, name, size)
    yield surgery.with_batch(free, name, surgery.BATCH), None, f"made for any batch, was {source.fixed_batch or 'not'}"
    fixed = model if source.fixed_batch else surgery.with_batch(model, name, size)
    yield fixed, size, f"only batches of {size}"


def _compare(path: Path, reference: _Reference, sizes: list[int]) -> dict[str, float]:
    session = Session(path, SessionOptions(threads=cpu_budget()))
    return {
        str(size): proof.largest_difference(
            session.run(reference.rows[:size])[0],
            reference.expected[:size],
            reference="the imported file",
            tolerance=TOLERANCE,
        )
        for size in sizes
    }


def _manifest(
    job: Import,
    target: publish.Target,
    *,
    source: Foreign,
    contract: Contract,
    reference: _Reference,
    proved: _Proved,
) -> Manifest:
    return Manifest(
        model=target.model,
        version=target.version,
        architecture="imported",
        parameters=source.parameters,
        onnx=OnnxInfo(MODEL_FILE, source.opset, proved.model.ir_version, source.precision),
        input=contract.input,
        output=contract.output,
        activation="softmax",
        class_count=contract.class_count,
        labels=labels.LABELS_FILE if job.labels else None,
        max_batch_size=proved.fixed_batch or job.max_batch_size,
        preprocessing=contract.preprocessing,
        golden=Golden(GOLDEN_FILE, tuple(map(float, reference.expected[0])), TOLERANCE),
        parity=Parity(proved.differences, TOLERANCE, CPU, "imported file"),
        weights=source.origin,
        files={},
        producer=companions.producer(),
        activation_by="network" if reference.ends_in_softmax else "export",
    )
