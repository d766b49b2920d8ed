"""Compares mean and standard deviation of a preprocessing with the arithmetic at the beginning of an ONNX graph."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from cnnserve.repository import onnx_head
from cnnserve.repository.manifest import Preprocessing, TensorInfo
from cnnserve.repository.onnx_head import Affine

# Means that differ by less are the same, as a share of the range of a pixel. fp16 is off by up to 5e-4 of a value.
_SAME_MEAN = 2e-3
_SAME_STD = 1e-2
# Normalised values that a graph makes so much smaller were meant to be pixels. The largest standard deviation, 1, and
# networks that expect values of -1 to 1 instead of ImageNet's normalisation, divide by less.
_LARGEST_DIVISOR = 8.0
# Values that reach further are pixels still, which the graph has to normalise itself.
_LARGEST_NORMALISED = 16.0


def contradiction(spec: Preprocessing, tensor: TensorInfo, file: Path) -> str:
    """Returns how the graph contradicts the mean and the std of `spec`, or "" if it does not or if that is not clear.

    `tensor`: the graph's input. A graph that cannot be read contradicts nothing.
    """
    try:
        with file.open("rb") as opened:
            return contradiction_in(opened, spec, tensor)
    except OSError:
        return ""


def contradiction_in(file: BinaryIO, spec: Preprocessing, tensor: TensorInfo) -> str:
    """Does the same for an open file."""
    try:
        axis = 3 if tensor.layout == "NHWC" else 1
        steps = onnx_head.input_arithmetic(file, tensor.name, axis, len(spec.mean))
    except (OSError, ValueError):
        return ""
    return _contradiction(spec, tensor, steps)


def _contradiction(spec: Preprocessing, tensor: TensorInfo, steps: Sequence[Affine]) -> str:
    if spec.normalize == "host":
        return _repetition(spec, steps)
    if spec.normalize == "none" and not any(spec.mean) and all(std == 1 for std in spec.std):
        # Nothing is stated.
        return ""
    # What a pixel of 0 to 255 is multiplied by before the graph gets it.
    unit = 1.0 if tensor.datatype == "UINT8" else spec.scale
    prefixes = list(itertools.accumulate(steps, Affine.then))
    complete = [step for step in prefixes if _scales(step) and _shifts(step)] or prefixes[-1:]
    agreeing = next((step for step in complete if _agrees(spec, step, unit)), None)
    if agreeing is not None:
        return _repetition(spec, steps[prefixes.index(agreeing) + 1 :])
    if not complete:
        return ""
    return (
        f"the graph normalises pixels with {_described(complete[-1], unit / spec.scale)}, the manifest says "
        f"{_statistics(spec.mean, spec.std)}"
    )


def _repetition(spec: Preprocessing, steps: Sequence[Affine]) -> str:
    """Returns how steps after the normalisation normalise once more, or ""."""
    if max(255 * spec.scale / std for std in spec.std) > _LARGEST_NORMALISED:
        return ""
    for step in itertools.accumulate(steps, Affine.then):
        squeezes = all(abs(scale) * _LARGEST_DIVISOR < 1 for scale in step.scale)
        if squeezes or (_scales(step) and _shifts(step) and _agrees(spec, step, spec.scale)):
            return (
                f"the graph normalises once more, with {_described(step, 1.0)}, what was normalised with "
                f"{_statistics(spec.mean, spec.std)}"
            )
    return ""


def _scales(step: Affine) -> bool:
    return any(scale != 1 for scale in step.scale)


def _shifts(step: Affine) -> bool:
    return any(shift != 0 for shift in step.shift)


def _agrees(spec: Preprocessing, step: Affine, unit: float) -> bool:
    """Returns whether a step normalises pixels, multiplied by `unit`, with the manifest's mean and std.

    A step without a shift shows no mean, and one without a scale no std: a convolution may contain the rest.
    """
    relative = unit / spec.scale
    return all(
        a != 0
        and (not _shifts(step) or abs(-b / a - mean * relative) <= _SAME_MEAN * relative)
        and (not _scales(step) or abs(1 / a - std * relative) <= _SAME_STD * std * relative)
        for mean, std, a, b in zip(spec.mean, spec.std, step.scale, step.shift, strict=True)
    )


def _described(step: Affine, relative: float) -> str:
    if not all(step.scale):
        return "a factor of 0"
    means = [-b / a / relative for a, b in zip(step.scale, step.shift, strict=True)]
    return _statistics(means, [1 / a / relative for a in step.scale])


def _statistics(mean: Sequence[float], std: Sequence[float]) -> str:
    return f"mean {_listed(mean)} and standard deviation {_listed(std)}"


def _listed(values: Sequence[float]) -> str:
    return " ".join(f"{value + 0.0:.4g}" for value in values)
