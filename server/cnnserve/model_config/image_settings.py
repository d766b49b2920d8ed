"""Reads from config.pbtxt how images are preprocessed. Nothing is guessed.

A model without a manifest takes images only if its config.pbtxt states the preprocessing:

    parameters {
      key: "cnnserve.image"
      value { string_value: '{"color": "RGB", "resize": {"mode": "shorter", "size": [256]}, "crop": [224, 224], '
        '"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "normalize": "host"}' }
    }

The fields are those of a manifest's `preprocessing`. The layout is the input's `format`. Without a `format`, it follows
from the position of the 1 or 3 channels in the input's shape.
"""

from collections.abc import Mapping
from typing import Literal

from cnnserve.errors import ModelLoadFailed
from cnnserve.images.preprocessing import DEFAULT_PIXEL_LIMIT, PIXEL_LIMIT, ImageOptions
from cnnserve.model_config.parameters import bad_value, whole
from cnnserve.model_config.settings import Settings
from cnnserve.repository import manifest as manifests
from cnnserve.repository.manifest import Preprocessing, TensorInfo
from cnnserve.wire import model_config_pb2 as pb

PARAMETER = "cnnserve.image"
_PREPROCESS = "cnnserve.preprocess"
# These have no effect if the model takes no images.
IMAGE_PARAMETERS = frozenset((_PREPROCESS, PIXEL_LIMIT))
_SOURCE = f"config.pbtxt: parameter {PARAMETER}"
_NORMALIZE = {"UINT8": ("graph", "none"), "FP16": ("host", "none"), "FP32": ("host", "none")}

Layout = Literal["NHWC", "NCHW"]


def read(config: pb.ModelConfig | None, settings: Settings) -> tuple[Preprocessing, TensorInfo] | None:
    """Returns the preprocessing and the input tensor, or None if the config states none. Raises `ModelLoadFailed`."""
    if config is None or PARAMETER not in config.parameters:
        return None
    tensor = settings.input
    shape = settings.row_shape
    if len(shape) != 3 or min(shape) < 1:
        raise ModelLoadFailed(
            f"{_SOURCE} needs an input with three fixed sizes, but input {tensor.name!r} has {list(shape)}"
        )
    layout = _layout(config, shape)
    image = shape if layout == "NHWC" else (*shape[1:], shape[0])
    try:
        spec = manifests.parse_preprocessing(config.parameters[PARAMETER].string_value, image)
    except ModelLoadFailed as error:
        raise ModelLoadFailed(f"{_SOURCE}: {error}") from error
    choices = _NORMALIZE.get(tensor.datatype, ())
    if spec.normalize not in choices:
        raise ModelLoadFailed(
            f"{_SOURCE}: normalize {spec.normalize!r} does not fit input {tensor.name!r} of type {tensor.datatype}"
            + (f"; use {' or '.join(map(repr, choices))}" if choices else ", which cannot take images; remove it")
        )
    return spec, TensorInfo(tensor.name, tensor.datatype, shape, layout)


def options(parameters: Mapping[str, str]) -> ImageOptions:
    """Returns the options of preprocessing in config.pbtxt's `parameters`. Raises `ModelLoadFailed`."""
    mode = parameters.get(_PREPROCESS, "exact")
    if mode not in ("exact", "fast"):
        raise bad_value("parameter", _PREPROCESS, mode, "exact or fast")
    limit = whole("parameter", PIXEL_LIMIT, parameters.get(PIXEL_LIMIT, str(DEFAULT_PIXEL_LIMIT)), 1)
    return ImageOptions(mode == "fast", limit)


def _layout(config: pb.ModelConfig, shape: tuple[int, ...]) -> Layout:
    stated = config.input[0].format if config.input else pb.ModelInput.FORMAT_NONE
    last, first = shape[-1] in (1, 3), shape[0] in (1, 3)
    if stated == pb.ModelInput.FORMAT_NHWC or (not stated and last and not first):
        return "NHWC"
    if stated == pb.ModelInput.FORMAT_NCHW or (not stated and first and not last):
        return "NCHW"
    raise ModelLoadFailed(
        f"{_SOURCE}: the input has shape {list(shape)}, which does not show where its channels are; set the input's "
        "format to FORMAT_NHWC or FORMAT_NCHW"
    )
