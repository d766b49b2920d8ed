"""Makes the fp16 or int8 file of a version from the verified fp32 file, and requires that it agrees with fp32."""

import dataclasses
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from cnnserve.images.preprocessing import Preprocessor
from cnnserve.process.cpu import cpu_budget
from cnnserve.repository.manifest import TOLERANCES, Agreement, Calibration
from cnnserve.repository.manifest import ImageSet as ImageSetInfo
from cnnserve.runtime.session import Session, SessionOptions
from cnnserve_export import agreement, calibration, golden, images, proof, quantize
from cnnserve_export.agreement import Measured
from cnnserve_export.contract import DEFAULT_MIN_AGREEMENT, Contract, Precision
from cnnserve_export.errors import ExportError
from cnnserve_export.golden import GoldenImages
from cnnserve_export.images import ImageSet
from cnnserve_export.progress import Progress
from cnnserve_export.quantize import WeightBits
from cnnserve_export.verify import Evidence

# Fewer images do not show the range of a layer's values.
_CALIBRATION_IMAGES = 32
# With 100 images, one image that changes its class costs 1 %. More are useful, but never required.
_EVALUATION_IMAGES = 100
# 7-bit weights give the same results on every processor. 8-bit weights must agree better by more than this share.
_PORTABLE_WORTH = 0.005


@dataclass(frozen=True)
class Lowering:
    """A precision below fp32, with the images to calibrate and to evaluate it, and the agreement it needs (0 to 1)."""

    precision: Literal["fp16", "int8"]
    calibration: ImageSet | None
    evaluation: ImageSet
    min_agreement: float


@dataclass(frozen=True)
class _Candidate:
    path: Path
    weight_bits: WeightBits | None


def request(
    precision: Precision, calibration_folder: Path | None, evaluation_folder: Path | None, min_agreement: float | None
) -> Lowering | None:
    """Returns what the flags ask for; None means fp32.

    Raises `ExportError` if the flags contradict each other, and if a folder has too few different images.
    """
    if precision == "fp32":
        given = {
            "--calibration": calibration_folder,
            "--evaluation": evaluation_folder,
            "--min-agreement": min_agreement,
        }
        if unused := [flag for flag, value in given.items() if value is not None]:
            raise ExportError(f"{', '.join(unused)}: no effect with --precision fp32; add --precision fp16 or int8")
        return None
    if precision == "fp16" and calibration_folder:
        raise ExportError(
            "--calibration has no effect with --precision fp16, which needs no ranges; to measure the agreement on "
            "these images, pass --evaluation"
        )
    if precision == "int8" and not calibration_folder:
        raise ExportError(
            "--precision int8 needs the range of every layer's values; pass --calibration DIR with 100 or more images "
            "like those that clients will send"
        )
    calibrated_on = images.folder(calibration_folder) if calibration_folder else None
    needed = DEFAULT_MIN_AGREEMENT if min_agreement is None else min_agreement
    if calibrated_on is not None:
        _require_calibration(calibrated_on)
    evaluated_on = images.folder(evaluation_folder) if evaluation_folder else calibrated_on
    if evaluated_on is None:
        evaluated_on = images.built_in()
    else:
        _require_evaluation(evaluated_on, needed)
    return Lowering(precision, calibrated_on, evaluated_on, needed)


def _require_calibration(chosen: ImageSet) -> None:
    found = chosen.distinct(_CALIBRATION_IMAGES)
    if found < _CALIBRATION_IMAGES:
        raise ExportError(
            f"--calibration: {chosen.name} holds {found} different images, too few to show the range of every layer's "
            f"values; give at least {_CALIBRATION_IMAGES}, better 100"
        )


def _require_evaluation(chosen: ImageSet, needed: float) -> None:
    """Raises `ExportError` if one image is a larger share of the set than the share that may change its class."""
    # Decimals are not exact in binary: 1 / (1 - 0.9) is a little more than 10.
    allowed = round(1 - needed, 9)
    count = min(_EVALUATION_IMAGES, math.ceil(round(1 / allowed, 6))) if allowed > 0 else _EVALUATION_IMAGES
    found = chosen.distinct(count)
    if found < count:
        ways = f"give {count} or more with --evaluation"
        if found > 1:
            ways += f", or pass --min-agreement {_floor(1 - 1 / found)}"
        raise ExportError(
            f"{chosen.name} holds {found} different images, too few to show an agreement of {needed:g}; {ways}"
        )


def lower(
    model: Path,
    wanted: Lowering,
    contract: Contract,
    evidence: Evidence,
    *,
    golden_images: GoldenImages,
    labels: tuple[str, ...] | None,
    max_batch_size: int,
    progress: Progress,
) -> Evidence:
    """Replaces the fp32 file `model` by a file of the wanted precision, and returns the evidence for the new file.

    The parity stays that of the fp32 file, which is `evidence`. The golden image's probabilities and the agreement are
    those of the new file.
    Raises `ExportError` if the agreement is too low, with the measured and the needed agreement, and if the new file
    returns other probabilities for an image alone than in a batch of 2, 3 or `max_batch_size` (tolerance 1e-2).
    """
    preprocessor = Preprocessor(contract.preprocessing, contract.input)
    # In the hidden folder, which the next export removes if this export is killed.
    with tempfile.TemporaryDirectory(dir=model.parent) as scratch:
        candidates = _candidates(model, Path(scratch), wanted, preprocessor, progress)
        with progress.stage("compare") as stage:
            results = agreement.measure(
                model,
                [candidate.path for candidate in candidates],
                wanted.evaluation,
                preprocessor,
                labels=labels,
                class_count=contract.class_count,
                sums_to_one=contract.sums_to_one,
                tell=lambda done, total: stage.advance(done, total, "images"),
            )
            best = _choose(results, wanted.min_agreement)
            chosen, measured = candidates[best], results[best]
            _require(wanted, measured)
            stage.finding = _describe(wanted, measured)
            if chosen.weight_bits is not None:
                stage.finding += f"; {chosen.weight_bits}-bit weights"
            count = max(max_batch_size, len(golden_images))
            rows = proof.rows(contract.preprocessing, contract.input, golden_images, count)
            alone = _alone_and_together(
                chosen.path, rows, wanted.precision, max_batch_size, sums_to_one=contract.sums_to_one
            )
        chosen.path.replace(model)
    return dataclasses.replace(
        evidence,
        golden=golden.record(golden_images, wanted.precision),
        probabilities=alone[: len(golden_images)],
        agreement=_evidence(wanted, measured, chosen.weight_bits),
    )


def _candidates(
    model: Path, scratch: Path, wanted: Lowering, preprocessor: Preprocessor, progress: Progress
) -> list[_Candidate]:
    prepared = scratch / "prepared.onnx"
    with progress.stage(wanted.precision) as stage:
        quantize.prepare(model, prepared)
        if wanted.calibration is None:
            candidates = [_Candidate(scratch / "fp16.onnx", None)]
            quantize.to_fp16(prepared, candidates[0].path)
        else:
            ranges = calibration.ranges(
                prepared,
                quantize.OPERATORS,
                wanted.calibration,
                preprocessor,
                lambda done, total: stage.advance(done, total, "images"),
            )
            bits: tuple[WeightBits, ...] = get_args(WeightBits)
            candidates = [_Candidate(scratch / f"int8-{count}.onnx", count) for count in bits]
            for candidate, count in zip(candidates, bits, strict=True):
                quantize.to_int8(prepared, candidate.path, ranges, count)
        stage.finding = f"{candidates[0].path.stat().st_size / 1e6:.1f} MB"
        if wanted.calibration is not None:
            stage.finding += f", calibrated on {len(wanted.calibration)} images of {wanted.calibration.name}"
        return candidates


def _choose(results: list[Measured], needed: float) -> int:
    """Returns the index of the first, or of the last if only the last agrees enough or if it agrees much better."""
    first, last = results[0], results[-1]
    # A difference of one image may be chance.
    better = last.same - first.same > max(1, _PORTABLE_WORTH * first.images)
    return len(results) - 1 if better or first.top1 < needed <= last.top1 else 0


def _describe(wanted: Lowering, measured: Measured) -> str:
    where = (
        f"{wanted.evaluation.name}, also used for calibration"
        if wanted.evaluation is wanted.calibration
        else wanted.evaluation.name
    )
    text = (
        f"{wanted.precision} and fp32 have the same top class for {measured.same} of {measured.images} images "
        f"({where}): agreement {measured.top1:.2%}, needed {wanted.min_agreement:.2%}; "
        f"largest difference of a probability {measured.largest_difference:.1e}"
    )
    if measured.accuracy is not None and measured.fp32_accuracy is not None:
        text += (
            f"; accuracy {measured.accuracy:.2%}, of fp32 {measured.fp32_accuracy:.2%} "
            f"({measured.labelled} labelled images)"
        )
    return text


def _require(wanted: Lowering, measured: Measured) -> None:
    if measured.top1 >= wanted.min_agreement:
        return
    ways = ["pass --precision fp32", f"accept it with --min-agreement {_floor(measured.top1)}"]
    if wanted.calibration is not None:
        ways.insert(0, "calibrate on more images, or on images more like those that clients will send")
    raise ExportError(f"{_describe(wanted, measured)}. Nothing was published; {'; or '.join(ways)}")


def _floor(share: float) -> float:
    return int(share * 1000) / 1000


def _alone_and_together(
    path: Path, rows: NDArray[np.generic], name: Precision, max_batch_size: int, *, sums_to_one: bool = True
) -> NDArray[np.float32]:
    """Returns the probabilities of each row alone. Raises `ExportError` if a batch changes those of a row."""
    session = Session(path, SessionOptions(threads=cpu_budget()))
    alone: NDArray[np.float32] = np.concatenate([session.run(row[np.newaxis])[0] for row in rows])
    for batch in proof.batches(proof.batch_sizes(max_batch_size), len(rows)):
        proof.largest_difference(
            session.run(rows[batch])[0],
            alone[batch],
            reference=f"{name} with one image at a time",
            tolerance=TOLERANCES[name],
            sum_to_one=sums_to_one,
        )
    return alone


def _evidence(wanted: Lowering, measured: Measured, weight_bits: WeightBits | None) -> Agreement:
    evaluated = wanted.evaluation.digests()
    seen: set[str] = set()
    calibrated = None
    if wanted.calibration is not None and weight_bits is not None:
        digests = wanted.calibration.digests()
        seen = set(digests)
        calibrated = Calibration(_info(wanted.calibration, digests), weight_bits)
    return Agreement(
        images=_info(wanted.evaluation, evaluated),
        top1=measured.top1,
        needed=wanted.min_agreement,
        largest_difference=measured.largest_difference,
        calibration=calibrated,
        seen_in_calibration=sum(digest in seen for digest in evaluated),
        labelled=measured.labelled,
        accuracy=measured.accuracy,
        fp32_accuracy=measured.fp32_accuracy,
    )


def _info(chosen: ImageSet, digests: list[str]) -> ImageSetInfo:
    return ImageSetInfo(chosen.name, len(digests), images.digest(digests))
