"""One import: from an existing ONNX file to a published version.

What the file returns for one image at a time is the reference. The published version must return the same
probabilities in all batch sizes that are compared.
"""

import io
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from cnnserve.errors import InferenceFailed, ModelLoadFailed
from cnnserve.model_config.providers import CPU
from cnnserve.process.cpu import cpu_budget
from cnnserve.repository import onnx_ending
from cnnserve.repository.manifest import TOLERANCES, Manifest, OnnxInfo, Parity, Preprocessing, TensorInfo
from cnnserve.repository.onnx_ending import Ending
from cnnserve.runtime.session import Session, SessionOptions
from cnnserve_export import (
    activation,
    agreement,
    companions,
    evaluation,
    foreign,
    golden,
    images,
    labels,
    preparation,
    previous,
    proof,
    publish,
    surgery,
)
from cnnserve_export.contract import DEFAULT_MAX_BATCH_SIZE, OUTPUT_NAME, Activation, Contract
from cnnserve_export.errors import ExportError
from cnnserve_export.foreign import Foreign
from cnnserve_export.golden import GoldenImages
from cnnserve_export.images import ImageSet
from cnnserve_export.outputs import Output
from cnnserve_export.progress import Progress, Stage

MODEL_FILE = "model.onnx"
# What the manifest of every imported version says.
ARCHITECTURE = "imported"
_ORIGINAL = "original"


@dataclass(frozen=True, kw_only=True)
class Import:
    """What to import, and where to publish it; `given` says how images become the input, `labels` is a label file."""

    file: Path
    given: preparation.Given
    golden_images: GoldenImages
    repository: Path
    name: str
    version: int | None = None
    labels: Path | None = None
    allow_empty_labels: bool = False
    activation: Activation = "auto"
    # The preprocessing of training, which `given` changes.
    stated: Preprocessing | None = None
    # The output with the classes, if the file has several.
    output: str | None = None
    # Labelled images.
    evaluation: Path | None = None
    max_batch_size: int = DEFAULT_MAX_BATCH_SIZE
    signer: publish.Signs | None = None


@dataclass(frozen=True)
class _Reference:
    """What the imported file returns: `rows` are its inputs, `expected` the probabilities of each row alone."""

    rows: NDArray[np.generic]
    expected: NDArray[np.float32]
    output: Output
    # True if its output rows have further dimensions of 1.
    flattened: bool


@dataclass(frozen=True)
class _Proved:
    """The model to publish; `fixed_batch` is its only batch size or None, `differences` has batch sizes as keys."""

    model: onnx.ModelProto
    fixed_batch: int | None
    differences: dict[str, float]
    change: str


def run(job: Import, progress: Progress) -> Path:
    """Checks the file, publishes it and returns the folder of the version.

    Raises `ExportError`, or `ModelLoadFailed` if ONNX Runtime cannot load the file. Nothing is left in the repository
    then.
    """
    target = publish.plan(job.repository, job.name, job.version)
    labelled = images.folder(job.evaluation) if job.evaluation is not None else None
    settled = previous.settle(
        previous.newest(job.repository, job.name, ARCHITECTURE),
        brought=job.stated,
        needs_labels=job.labels is None,
        activation=job.activation,
    )
    with progress.stage("read") as stage:
        source = foreign.read(job.file, job.output)
        spec, tensor = preparation.of_tensor(job.given, source.input, settled.preprocessing)
        stage.finding = (
            f"{job.file.name}: opset {source.opset}, IR {source.model.ir_version}, {source.parameters:,} parameters, "
            f"input {tensor.name!r} {tensor.datatype} {tensor.layout}"
            + "".join(f"; {change}" for change in source.changes)
        )
        if job.stated is not None and tensor.datatype == "UINT8":
            stage.finding += "; mean and std of --preprocessing left out, because the file takes pixels"
    with publish.staging(target) as folder:
        with progress.stage("check") as stage:
            reference = _ask(job, source, spec, tensor, folder, asked=settled.activation, stage=stage)
            class_count = reference.expected.shape[1]
            names = settled.labels
            if job.labels:
                allow_empty = job.allow_empty_labels
                names = labels.read(job.labels, class_count, "correct the file", allow_empty=allow_empty)
            model = _finished(source, reference)
            contract = Contract(tensor, TensorInfo(model.graph.output[0].name, "FP32", (class_count,)), spec)
            # `commit` checks it again, but users should not have to wait for this error.
            publish.check_compatible(target, contract, job.max_batch_size)
            stage.finding = f"{class_count} classes, returns {reference.output.described()}{settled.told}"
        with progress.stage("verify") as stage:
            tolerance = _tolerance(source)
            proved = _prove(job, source, model, reference, folder)
            measured = ", ".join(f"{value:.1e} at batch {size}" for size, value in proved.differences.items())
            stage.finding = f"{proved.change}; largest difference of a probability from the file: {measured} "
            stage.finding += f"(tolerance {tolerance:.0e})"
            stage.finding += proof.doubt(reference.expected, tolerance)
            stage.finding += proof.normalisation_doubt(spec, tensor, folder / MODEL_FILE)
        if labelled is not None:
            _evaluate(
                folder / MODEL_FILE,
                labelled=labelled,
                contract=contract,
                classes=agreement.classes_by_folder(names, class_count),
                fixed_batch=proved.fixed_batch,
                progress=progress,
            )
        with progress.stage("publish") as stage:
            probabilities = reference.expected[: len(job.golden_images)]
            companions.write(folder, job.golden_images, probabilities, names)
            manifest = _manifest(
                job, target, names, source=source, contract=contract, reference=reference, proved=proved
            )
            doubt = proof.served(folder, manifest)
            published = publish.commit(folder, manifest, target, job.signer)
            stage.finding = f"{target.model} version {published.name}{doubt}"
    return published


def _evaluate(
    model: Path,
    *,
    labelled: ImageSet,
    contract: Contract,
    classes: Mapping[str, frozenset[int]],
    fixed_batch: int | None,
    progress: Progress,
) -> None:
    """Tells the accuracy on labelled images, and what may be wrong with the preprocessing."""
    with progress.stage("evaluate") as stage:
        spec, tensor = contract.preprocessing, contract.input
        found = evaluation.evaluate(
            model, labelled, spec, tensor, classes=classes, fixed_batch=fixed_batch, tell=stage.advance
        )
        stage.finding = f"accuracy {found.accuracy:.2%} of {found.images} images ({labelled.name})"
        stage.finding += "".join(f"\n  {warning}" for warning in found.warnings)


def _ask(
    job: Import,
    source: Foreign,
    spec: Preprocessing,
    tensor: TensorInfo,
    folder: Path,
    *,
    asked: Activation,
    stage: Stage,
) -> _Reference:
    """Runs the imported file, one image at a time, and returns its rows and probabilities.

    `asked` is what --activation says of the file's output.
    """
    # The copy has the name of the file, because errors contain it. It includes the external data that was checked.
    path = folder / _ORIGINAL / job.file.name
    path.parent.mkdir()
    path.write_bytes(source.data)
    try:
        session = Session(path, SessionOptions(threads=cpu_budget()))
        _check_onnx(source.model)
        rows = proof.rows(spec, tensor, job.golden_images, _row_count(job, source))
        answers = np.concatenate(
            [_answer(session, row, source.fixed_batch or 1) for row in stage.track(rows, len(rows), "images")]
        )
        again = _answer(session, rows[0], source.fixed_batch or 1)
    finally:
        shutil.rmtree(path.parent)
    if not np.allclose(again, answers[:1], atol=_tolerance(source), equal_nan=True):
        raise ExportError(
            "two runs of the file on the same image differ, because it draws random numbers; export the network again "
            "after network.eval()"
        )
    flat = answers.reshape(len(rows), -1)
    output = activation.decide(flat, _ending(source), asked)
    return _Reference(rows, activation.probabilities(flat, output), output, answers.ndim != 2)


def _ending(source: Foreign) -> Ending:
    name = source.model.graph.output[0].name
    return onnx_ending.endings(io.BytesIO(source.data), [name])[name]


def _tolerance(source: Foreign) -> float:
    """Returns the largest allowed difference of a probability from what the file returns for the image alone."""
    # Kernels of other batch sizes sum in another order, and float16 rounds the sums of each layer.
    return TOLERANCES["fp16" if source.precision == "fp16" else "fp32"]


def _row_count(job: Import, source: Foreign) -> int:
    return max(job.max_batch_size, source.fixed_batch or 1, len(job.golden_images))


def _answer(session: Session, row: NDArray[np.generic], batch: int) -> NDArray[np.float32]:
    """Returns the file's output for one image, (1, classes, ...), which is repeated to fill a batch of `batch`."""
    try:
        answer: NDArray[np.float32] = session.run(np.repeat(row[np.newaxis], batch, axis=0))[0]
    except InferenceFailed as error:
        raise ExportError(f"the file fails on a batch of {batch}: {error}") from error
    if answer.ndim < 1 or len(answer) != batch or not answer.size or any(size != 1 for size in answer.shape[2:]):
        raise ExportError(
            f"the file returns shape {list(answer.shape)} for a batch of {batch}, expected [{batch}, classes]; import "
            "a classifier"
        )
    return answer[:1]


def _check_onnx(model: onnx.ModelProto) -> None:
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise ExportError(f"the file is not valid ONNX: {' '.join(str(error).split())}; export it again") from error


def _prove(job: Import, source: Foreign, finished: onnx.ModelProto, reference: _Reference, folder: Path) -> _Proved:
    """Writes and returns the first form of the file that returns the reference's probabilities."""
    path = folder / MODEL_FILE
    reason: Exception | None = None
    for model, fixed_batch, change in _forms(source, finished):
        sizes = [fixed_batch] if fixed_batch else proof.batch_sizes(job.max_batch_size)
        unaltered = model is source.model
        path.write_bytes(source.data if unaltered else model.SerializeToString(deterministic=True))
        try:
            _check_onnx(model)
            differences = _compare(path, reference, sizes, _tolerance(source))
        except (ExportError, ModelLoadFailed, InferenceFailed) as error:
            reason = reason or error
            continue
        told = f"{change}, because others fail ({reason})" if fixed_batch and reason else change
        return _Proved(model, fixed_batch, differences, "the file is published unchanged" if unaltered else told)
    raise ExportError(
        f"no form of the file returns its probabilities in batches: {reason}; export it again with a free batch"
    ) from reason


def _finished(source: Foreign, reference: _Reference) -> onnx.ModelProto:
    model = surgery.with_rows(source.model) if reference.flattened else source.model
    output = reference.output
    if output.adds is not None:
        add = surgery.with_softmax if output.adds == "softmax" else surgery.with_sigmoid
        model = add(model, f"{OUTPUT_NAME}_1" if output.two_classes else OUTPUT_NAME)
    return surgery.with_two_classes(model, OUTPUT_NAME) if output.two_classes else model


def _forms(source: Foreign, model: onnx.ModelProto) -> Iterator[tuple[onnx.ModelProto, int | None, str]]:
    """Yields forms of the model, each with its fixed batch size or None and what was changed.

    First those for any batch size, as the file is or changed; last the form for the one size of the file.
    """
    name, size = source.input.name, source.fixed_batch or 1
    before = f"fixed at {source.fixed_batch}" if source.fixed_batch else "declared, but not possible"
    if source.fixed_batch is None:
        yield model, None, "batches of any size"
    free = surgery.with_free_reshapes(model, name, size)
    yield (
        surgery.with_batch(free, name, surgery.BATCH),
        None,
        f"changed to batches of any size (before: {before})",
    )
    fixed = model if source.fixed_batch else surgery.with_batch(model, name, size)
    yield fixed, size, f"only batches of {size}"


def _compare(path: Path, reference: _Reference, sizes: list[int], tolerance: float) -> dict[str, float]:
    session = Session(path, SessionOptions(threads=cpu_budget()))
    differences: dict[str, float] = {}
    for batch in proof.batches(sizes, len(reference.rows)):
        size = str(batch.stop - batch.start)
        difference = proof.largest_difference(
            session.run(reference.rows[batch])[0],
            reference.expected[batch],
            reference="the imported file",
            tolerance=tolerance,
            sum_to_one=reference.output.activation == "softmax",
        )
        differences[size] = max(difference, differences.get(size, 0.0))
    return differences


def _manifest(
    job: Import,
    target: publish.Target,
    names: Sequence[str] | None,
    *,
    source: Foreign,
    contract: Contract,
    reference: _Reference,
    proved: _Proved,
) -> Manifest:
    return Manifest(
        model=target.model,
        version=target.version,
        architecture=ARCHITECTURE,
        parameters=source.parameters,
        onnx=OnnxInfo(MODEL_FILE, source.opset, proved.model.ir_version, source.precision),
        input=contract.input,
        output=contract.output,
        activation=reference.output.activation,
        class_count=contract.class_count,
        labels=labels.LABELS_FILE if names is not None else None,
        max_batch_size=proved.fixed_batch or job.max_batch_size,
        preprocessing=contract.preprocessing,
        golden=golden.record(job.golden_images, source.precision),
        parity=Parity(proved.differences, _tolerance(source), CPU, "imported file"),
        weights=source.origin,
        files={},
        producer=companions.producer(),
        activation_by="network" if reference.output.by_network else "export",
    )
