"""Makes a `Preprocessing` that can be served from the flags that describe it.

Missing values are not guessed and contradictions are refused, because even with a wrong mean the probabilities look
plausible.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from cnnserve.repository.manifest import Interpolation, Preprocessing, Resize, TensorInfo
from cnnserve_export.errors import ExportError

Color = Literal["RGB", "BGR", "L"]

# Smallest normal number of float32. Much smaller values become 0 in float32, and pixels are divided by them.
_SMALLEST = 2.0**-126
_CHANNELS = {"RGB": 3, "BGR": 3, "L": 1}


@dataclass(frozen=True, kw_only=True)
class Given:
    """The values of the preprocessing flags; None for a flag that was not given. Sizes are in pixels.

    `shape` is (C, H, W). `crop` is (H, W) or the side of a square. `resize` is (H, W) or the shorter side.
    """

    shape: tuple[int, int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    resize: tuple[int, ...] | None = None
    crop: tuple[int, ...] | None = None
    interpolation: Interpolation | None = None
    color: Color | None = None

    @property
    def anything(self) -> bool:
        """Whether any flag was given."""
        return self != Given()


def of_network(given: Given) -> Preprocessing:
    """Returns the preprocessing of the user's own network. Raises `ExportError` if flags are missing or wrong."""
    if given.shape is None:
        raise ExportError("--shape is missing; give the network's input for one image, such as --shape 3,224,224")
    return _complete(given, given.shape)


def of_architecture(given: Given, base: Preprocessing) -> Preprocessing:
    """Returns `base` with what the flags change. Raises `ExportError` if the flags contradict each other or `base`."""
    if not given.anything:
        return base
    height, width = base.crop or (base.resize.size if base.resize else (0, 0))
    size = _size(given) or (height, width)
    channels = given.shape[0] if given.shape else len(base.mean)
    if channels != len(base.mean):
        raise ExportError(
            f"--shape has {channels} channels, but this architecture takes {len(base.mean)}; correct --shape"
        )
    if given.mean is None and given.std is None:
        given = replace(given, mean=base.mean, std=base.std)
    if base.resize is not None:
        if given.resize is None:
            if size != (height, width):
                raise ExportError(
                    f"an input of {size[0]}x{size[1]} pixels needs --resize, too; say how images get to that size"
                )
            given = replace(given, resize=base.resize.size)
        given = replace(given, interpolation=given.interpolation or base.resize.interpolation)
    return _complete(replace(given, color=given.color or base.color), (channels, *size))


def of_tensor(given: Given, tensor: TensorInfo) -> tuple[Preprocessing, TensorInfo]:
    """Returns the preprocessing for an ONNX file's input, and the input with sizes in place of open ones (-1).

    A uint8 input takes pixels, because the file normalises them itself.
    Raises `ExportError` if flags are missing, or if they contradict each other or the file.
    """
    own = tensor.shape if tensor.layout == "NCHW" else (tensor.shape[2], *tensor.shape[:2])
    channels, *open_size = own
    wanted = _size(given)
    if -1 in open_size and wanted is None:
        raise ExportError(
            f"the input {tensor.name!r} leaves its size open; give a size, such as --shape {channels},224,224"
        )
    asked = (given.shape[0] if given.shape else channels, *(wanted or open_size))
    shape = (channels, *(has if has > 0 else wants for has, wants in zip(own[1:], asked[1:], strict=True)))
    # Only --shape means the input itself. `_resize` reports a crop of another size.
    if given.shape and asked != shape:
        raise ExportError(
            f"--shape is {_text(asked)}, but the file's input {tensor.name!r} takes {_text(shape)}; correct --shape"
        )
    pixels = tensor.datatype == "UINT8"
    if pixels:
        if given.mean or given.std:
            raise ExportError("the file takes uint8 pixels and normalises them itself; leave --mean and --std out")
        given = replace(given, mean=(0.0,) * channels, std=(1.0,) * channels)
    spec = replace(_complete(given, shape), normalize="none" if pixels else "host")
    return spec, replace(tensor, shape=shape if tensor.layout == "NCHW" else (*shape[1:], channels))


def _size(given: Given) -> tuple[int, int] | None:
    """Returns the size (H, W) of the input if the flags give it, else None."""
    if given.shape is not None:
        return given.shape[1:]
    if given.crop is not None:
        return _pair(given.crop)
    return _pair(given.resize) if given.resize is not None and len(given.resize) == 2 else None


def _complete(given: Given, shape: Sequence[int]) -> Preprocessing:
    channels, height, width = shape
    color = _color(given, channels)
    mean, std = _normalisation(given, channels)
    resize = _resize(given, (height, width))
    crop = None if resize.mode == "exact" and resize.size == (height, width) else (height, width)
    return Preprocessing(color, resize, crop, mean, std, "graph")


def _color(given: Given, channels: int) -> Color:
    if channels not in _CHANNELS.values():
        raise ExportError(f"the input has {channels} channels; only 3 (RGB, BGR) or 1 (L, grey) can be served")
    color: Color = given.color or ("L" if channels == 1 else "RGB")
    if _CHANNELS[color] != channels:
        raise ExportError(
            f"--color {color} gives {_CHANNELS[color]} channels, but the input takes {channels}; choose another --color"
        )
    return color


def _normalisation(given: Given, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if given.mean is None or given.std is None:
        missing = " and ".join(f"--{name}" for name in ("mean", "std") if getattr(given, name) is None)
        example = "--mean 0.485,0.456,0.406 --std 0.229,0.224,0.225" if channels == 3 else "--mean 0.5 --std 0.5"
        raise ExportError(
            f"{missing} missing: give the mean and the standard deviation with which training normalised pixels of 0 "
            f"to 1, such as {example}; if training did not normalise, use --mean {_text([0] * channels)} "
            f"--std {_text([1] * channels)}"
        )
    for name, values in (("mean", given.mean), ("std", given.std)):
        if len(values) != channels:
            raise ExportError(
                f"--{name} has {len(values)} value(s), but the input has {channels} channel(s); give one value for each"
            )
        if largest := next((value for value in values if value > 1), None):
            raise ExportError(
                f"--{name} has {largest:g}, but pixels are on the scale from 0 to 1; divide values of 0 to 255 by 255"
            )
    if not all(math.isfinite(value) and value >= 0 for value in given.mean):
        raise ExportError(f"--mean {_text(given.mean)} is not within 0 and 1; correct --mean")
    if not all(value >= _SMALLEST for value in given.std):
        raise ExportError(
            f"--std {_text(given.std)} is too small to divide by; give values of at least {_SMALLEST:.2g}"
        )
    return given.mean, given.std


def _resize(given: Given, size: tuple[int, int]) -> Resize:
    if given.crop is not None:
        if given.resize is None:
            raise ExportError(f"--crop {_text(given.crop)} needs --resize, too; give the size before the crop")
        if _pair(given.crop) != size:
            raise ExportError(
                f"--crop {_text(given.crop)} does not give the input's size {_text(size)}; correct --crop"
            )
    interpolation = given.interpolation or "bilinear"
    if given.resize is None:
        return Resize("exact", size, interpolation)
    resize = Resize("shorter" if len(given.resize) == 1 else "exact", given.resize, interpolation)
    if given.crop is None and resize.mode == "exact" and resize.size != size:
        raise ExportError(
            f"--resize {_text(given.resize)} does not give the input's size {_text(size)}; "
            f"if the centre is to be kept, add --crop {_text(size)}"
        )
    if resize.mode == "shorter":
        small = resize.size[0] < min(size)
    else:
        small = any(had < wanted for had, wanted in zip(resize.size, size, strict=True))
    if small:
        raise ExportError(
            f"--resize {_text(given.resize)} is smaller than the input's {_text(size)}, so every image would be "
            "padded; give a larger --resize"
        )
    return resize


def _pair(sizes: Sequence[int]) -> tuple[int, int]:
    return (sizes[0], sizes[0]) if len(sizes) == 1 else (sizes[0], sizes[1])


def _text(values: Sequence[float]) -> str:
    return ",".join(f"{value:g}" for value in values)
