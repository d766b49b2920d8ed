"""Hugging Face transformers: `preprocessor_config.json` of an image classifier.

What is read is what the processors' Pillow backend does. Their torchvision backend resizes tensors, whose pixels differ
by a step of 255 here and there.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from cnnserve.repository.manifest import Interpolation, Preprocessing, Resize, ResizeMode
from cnnserve_export.configs.fields import Fields

# Pillow's numbers of its filters.
_RESAMPLE: Mapping[int, Interpolation] = {
    0: "nearest",
    1: "lanczos",
    2: "bilinear",
    3: "bicubic",
    4: "box",
    5: "hamming",
}
# From this size on, ConvNeXT's images are stretched instead of cropped.
_CONVNEXT_WARPS_FROM = 384
_CONVNEXT_CROP_PCT = 224 / 256
_HARMLESS = (
    *("image_processor_type", "feature_extractor_type", "processor_class", "_processor_class", "backend"),
    *("data_format", "input_data_format", "return_tensors", "device", "disable_grouping", "_valid_processor_keys"),
    # Every image becomes RGB here.
    "do_convert_rgb",
    # About labels that are images.
    *("do_reduce_labels", "reduce_labels"),
)


@dataclass(frozen=True)
class _Processor:
    """A processor's defaults. `square`: whether a size that is one number means a square or the shorter side."""

    square: bool
    center_crop: bool = False
    flips: bool = False


_PROCESSORS = {
    "ViT": _Processor(square=True),
    "DeiT": _Processor(square=True, center_crop=True),
    "Bit": _Processor(square=False, center_crop=True),
    "CLIP": _Processor(square=False, center_crop=True),
    "ConvNext": _Processor(square=False),
    "EfficientNet": _Processor(square=True),
    "MobileNetV1": _Processor(square=False, center_crop=True),
    "MobileNetV2": _Processor(square=False, center_crop=True),
    "MobileViT": _Processor(square=False, center_crop=True, flips=True),
}

Size = tuple[int, int]


def read(fields: Fields) -> Preprocessing:
    """Returns the preprocessing of an image processor. Raises `ExportError` for a processor or field not known."""
    kind = _kind(fields)
    defaults = _PROCESSORS[kind]
    interpolation: Interpolation = "bilinear"
    resize: Resize | None = None
    crop: Size | None = None
    if fields.flag("do_resize", default=True):
        interpolation = fields.choice("resample", fields.needed("resample"), _RESAMPLE)
        if kind == "ConvNext":
            resize, crop = _convnext(fields, interpolation)
        else:
            resize = Resize(*_size(fields, square=defaults.square), interpolation)
    if fields.flag("do_center_crop", default=defaults.center_crop):
        crop = _crop(fields)
    scale, mean, std = _normalisation(fields, kind)
    flips = fields.flag("do_flip_channel_order", default=defaults.flips)
    # Sizes and filters of steps that are switched off.
    fields.finish(
        (*_HARMLESS, "size", "resample", "crop_size", "crop_pct", "image_mean", "image_std", "rescale_factor")
    )
    return Preprocessing("BGR" if flips else "RGB", resize, crop, mean, std, "graph", scale=scale, crop_rounding="down")


def _kind(fields: Fields) -> str:
    named = fields.value("image_processor_type") or fields.value("feature_extractor_type", "")
    name = str(named)
    for suffix in ("Fast", "Pil", "ImageProcessor", "FeatureExtractor"):
        name = name.removesuffix(suffix)
    if name not in _PROCESSORS:
        known = ", ".join(f"{processor}ImageProcessor" for processor in _PROCESSORS)
        raise fields.wrong("image_processor_type", named, f"one of {known}")
    return name


def _size(fields: Fields, *, square: bool) -> tuple[ResizeMode, tuple[int, ...]]:
    """Returns mode and size of the resize."""
    value = fields.needed("size")
    if not isinstance(value, dict):
        sizes = fields.sizes("size", value, (1, 2))
        return ("exact", (sizes[0], sizes[-1])) if square or len(sizes) == 2 else ("shorter", sizes)
    stated = {name: side for name, side in value.items() if side is not None}
    if stated.keys() == {"height", "width"}:
        return "exact", fields.sizes("size", [stated["height"], stated["width"]], (2,))
    if stated.keys() == {"shortest_edge"}:
        return "shorter", fields.sizes("size", stated["shortest_edge"], (1,))
    raise fields.wrong("size", value, "height and width, or shortest_edge")


def _crop(fields: Fields) -> Size:
    value = fields.needed("crop_size")
    if isinstance(value, dict):
        value = [value.get("height"), value.get("width")]
    sizes = fields.sizes("crop_size", value, (1, 2))
    return sizes[0], sizes[-1]


def _convnext(fields: Fields, interpolation: Interpolation) -> tuple[Resize, Size | None]:
    value = fields.needed("size")
    edge = fields.sizes("size", value.get("shortest_edge") if isinstance(value, dict) else value, (1,))[0]
    share = fields.number("crop_pct", _CONVNEXT_CROP_PCT)
    if edge >= _CONVNEXT_WARPS_FROM:
        return Resize("exact", (edge, edge), interpolation), None
    return Resize("shorter", (math.floor(edge / share),), interpolation), (edge, edge)


def _normalisation(fields: Fields, kind: str) -> tuple[float, tuple[float, ...], tuple[float, ...]]:
    """Returns scale, mean and standard deviation; those of EfficientNet's further steps are folded into them."""
    rescales = fields.flag("do_rescale", default=True)
    scale = fields.number("rescale_factor", 1 / 255) if rescales else 1.0
    normalises = fields.flag("do_normalize", default=kind != "MobileViT")
    divides_again = fields.flag("include_top", default=True) if kind == "EfficientNet" else False
    shift = 1.0 if kind == "EfficientNet" and fields.flag("rescale_offset", default=False) and rescales else 0.0
    mean: tuple[float, ...] = (0.0,) * 3
    std: tuple[float, ...] = (1.0,) * 3
    if normalises or divides_again:
        stated = _three(fields, "image_std")
        mean = _three(fields, "image_mean") if normalises else mean
        std = stated if normalises != divides_again else tuple(value * value for value in stated)
    # x * scale - shift, then - mean, then / std.
    return scale, tuple(value + shift for value in mean), std


def _three(fields: Fields, name: str) -> tuple[float, ...]:
    values = fields.numbers(name)
    values = values * 3 if len(values) == 1 else values
    if len(values) != 3:
        raise fields.wrong(name, list(values), "3 values")
    return values
