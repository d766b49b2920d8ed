"""Makes a `Preprocessing` that can be served from the flags that describe it.

Missing values are not guessed and contradictions are refused, because even with a wrong mean the probabilities look
plausible. What the flags leave open comes from `base`: a built-in architecture, or the file of `--preprocessing`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from cnnserve.repository.manifest import (
    Interpolation,
    Library,
    Pad,
    Preprocessing,
    ResizeMode,
    TensorInfo,
)
from cnnserve_export import contract, resizing_flags
from cnnserve_export.errors import ExportError
from cnnserve_export.resizing_flags import ResizeFlags

Color = Literal["RGB", "BGR", "L"]
CropRounding = Literal["even", "down"]
COLORS: tuple[Color, ...] = get_args(Color)
CROP_ROUNDINGS: tuple[CropRounding, ...] = get_args(CropRounding)

# Smallest normal number of float32. Much smaller values become 0 in float32, and pixels are divided by them.
_SMALLEST = 2.0**-126
_SCALE = 1 / 255
_CHANNELS = {"RGB": 3, "BGR": 3, "L": 1}


@dataclass(frozen=True, kw_only=True)
class Given:
    """The values of the preprocessing flags; None for a flag that was not given. Sizes are in pixels.

    `shape` is (C, H, W). `crop` is (H, W) or the side of a square. `resize` is (H, W) or one size. `crop_pct` is the
    share of the resized image that the crop keeps. `pad` has one value, or one for each channel.
    """

    shape: tuple[int, int, int] | None = None
    scale: float | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    resize: tuple[int, ...] | None = None
    resize_mode: ResizeMode | None = None
    resize_library: Library | None = None
    interpolation: Interpolation | None = None
    crop: tuple[int, ...] | None = None
    crop_pct: float | None = None
    crop_rounding: CropRounding | None = None
    pad: Pad | None = None
    color: Color | None = None

    @property
    def anything(self) -> bool:
        """Whether any flag was given."""
        return self != Given()


def of_network(given: Given, base: Preprocessing | None = None) -> Preprocessing:
    """Returns the preprocessing of the user's own network, which starts from `base` if there is one.

    Raises `ExportError` if flags are missing or wrong.
    """
    if base is not None:
        return changed(given, base)
    if given.shape is None:
        raise ExportError("--shape is missing; give the network's input for one image, such as --shape 3,224,224")
    return _complete(given, given.shape)


def changed(given: Given, base: Preprocessing) -> Preprocessing:
    """Returns `base` with what the flags change. Raises `ExportError` if the flags contradict each other or `base`."""
    if not given.anything:
        return base
    channels = given.shape[0] if given.shape else len(base.mean)
    if channels != len(base.mean):
        raise ExportError(
            f"--shape has {channels} channels, but the preprocessing is for {len(base.mean)}; correct --shape"
        )
    size = _size(given) or base.size
    if size is None:
        raise ExportError("the preprocessing ends at no fixed size; give --shape or --crop")
    return _complete(given, (channels, *size), base)


def of_tensor(given: Given, tensor: TensorInfo, base: Preprocessing | None = None) -> tuple[Preprocessing, TensorInfo]:
    """Returns the preprocessing for an ONNX file's input, and the input with sizes in place of open ones (-1).

    A uint8 input takes pixels, because the file normalises them itself.
    Raises `ExportError` if flags are missing, or if they contradict each other or the file.
    """
    own = tensor.shape if tensor.layout == "NCHW" else (tensor.shape[2], *tensor.shape[:2])
    channels, *open_size = own
    wanted = _size(given) or (base.size if base is not None else None)
    if -1 in open_size and wanted is None:
        raise ExportError(
            f"the input {tensor.name!r} leaves its size open; give a size, such as --shape {channels},224,224"
        )
    asked = (given.shape[0] if given.shape else channels, *(wanted or open_size))
    shape = (channels, *(has if has > 0 else wants for has, wants in zip(own[1:], asked[1:], strict=True)))
    # Only --shape means the input itself. The resize reports a crop of another size.
    if given.shape and asked != shape:
        raise ExportError(
            f"--shape is {_text(asked)}, but the file's input {tensor.name!r} takes {_text(shape)}; correct --shape"
        )
    pixels = tensor.datatype == "UINT8"
    if pixels:
        if given.mean or given.std or given.scale:
            raise ExportError(
                "the file takes uint8 pixels and normalises them itself; leave out --mean, --std and --scale"
            )
        given = replace(given, mean=(0.0,) * channels, std=(1.0,) * channels, scale=_SCALE)
    spec = replace(_complete(given, shape, base), normalize="none" if pixels else "host")
    contract.check(spec, (*shape[1:], channels))
    return spec, replace(tensor, shape=shape if tensor.layout == "NCHW" else (*shape[1:], channels))


def _size(given: Given) -> tuple[int, int] | None:
    """Returns the size (H, W) of the input if the flags give it, else None."""
    if given.shape is not None:
        return given.shape[1:]
    if given.crop is not None:
        return resizing_flags.pair(given.crop)
    return resizing_flags.pair(given.resize) if given.resize is not None and len(given.resize) == 2 else None


def _complete(given: Given, shape: Sequence[int], base: Preprocessing | None = None) -> Preprocessing:
    channels, height, width = shape
    color = _color(given.color or (base.color if base is not None else None), channels)
    scale, mean, std = _normalisation(given, channels, base)
    flags = ResizeFlags(
        size=given.resize,
        mode=given.resize_mode,
        library=given.resize_library,
        interpolation=given.interpolation,
        crop=given.crop,
        crop_pct=given.crop_pct,
        pads=given.pad is not None,
    )
    resize, crop = resizing_flags.complete(flags, (height, width), base)
    pad = _pad(given.pad, channels) if given.pad is not None else (base.pad if base is not None else None)
    rounding = given.crop_rounding or (base.crop_rounding if base is not None else "even")
    return Preprocessing(color, resize, crop, mean, std, "graph", pad=pad, scale=scale, crop_rounding=rounding)


def _color(color: Color | None, channels: int) -> Color:
    if channels not in _CHANNELS.values():
        raise ExportError(f"the input has {channels} channels; only 3 (RGB, BGR) or 1 (L, grey) can be served")
    color = color or ("L" if channels == 1 else "RGB")
    if _CHANNELS[color] != channels:
        raise ExportError(
            f"--color {color} gives {_CHANNELS[color]} channels, but the input takes {channels}; choose another --color"
        )
    return color


def _normalisation(
    given: Given, channels: int, base: Preprocessing | None
) -> tuple[float, tuple[float, ...], tuple[float, ...]]:
    if base is not None and given.scale is None and given.mean is None and given.std is None:
        return base.scale, base.mean, base.std
    scale = given.scale if given.scale is not None else (base.scale if base is not None else _SCALE)
    top = 255 * scale
    if given.mean is None or given.std is None:
        missing = " and ".join(f"--{name}" for name in ("mean", "std") if getattr(given, name) is None)
        example = "--mean 0.485,0.456,0.406 --std 0.229,0.224,0.225" if channels == 3 else "--mean 0.5 --std 0.5"
        raise ExportError(
            f"{missing} missing: give the mean and the standard deviation with which training normalised pixels of 0 "
            f"to {top:g}, such as {example}; if training did not normalise, use --mean {_text([0] * channels)} "
            f"--std {_text([1] * channels)}"
        )
    for name, values in (("mean", given.mean), ("std", given.std)):
        if len(values) != channels:
            raise ExportError(
                f"--{name} has {len(values)} value(s), but the input has {channels} channel(s); give one value for each"
            )
        # Rounded decimals of 1/255 may end a little above the scale.
        if largest := next((value for value in values if value > top * (1 + 1e-6)), None):
            raise ExportError(
                f"--{name} has {largest:g}, but pixels are on the scale from 0 to {top:g}; divide values of 0 to 255 "
                "by 255, or use --scale 1 for a network that takes pixels of 0 to 255"
            )
    if not all(math.isfinite(value) and value >= 0 for value in given.mean):
        raise ExportError(f"--mean {_text(given.mean)} is not within 0 and {top:g}; correct --mean")
    if not all(value >= _SMALLEST for value in given.std):
        raise ExportError(
            f"--std {_text(given.std)} is too small to divide by; give values of at least {_SMALLEST:.2g}"
        )
    return scale, given.mean, given.std


def _pad(pad: Pad, channels: int) -> Pad:
    if len(pad.color) not in (1, channels):
        raise ExportError(
            f"--pad has {len(pad.color)} values, but the input has {channels} channel(s); give one value, or one for "
            "each channel"
        )
    return replace(pad, color=pad.color * channels if len(pad.color) == 1 else pad.color)


def _text(values: Sequence[float]) -> str:
    return ",".join(f"{value:g}" for value in values)
