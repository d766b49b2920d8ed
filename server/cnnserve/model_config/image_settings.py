"""How an image becomes the input of a model that has no manifest: as its config.pbtxt states, never by a guess.

    parameters {
      key: "cnnserve.image"
      value { string_value: '{"color": "RGB", "resize": {"mode": "shorter", "size": [256]}, "crop": [224, 224], '
        '"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "normalize": "host"}' }
    }

The words are those of a manifest's `preprocessing`. The layout is the input's `format`, or follows from where its 1 or
3 channels are.
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
# Of no effect for a model that takes no images.
IMAGE_PARAMETERS = frozenset((_PREPROCESS, PIXEL_LIMIT))
_SOURCE = f"config.pbtxt: parameter {PARAMETER}"
_NORMALIZE = {"UINT8": ("graph", "none"), "FP16": ("host", "none"), "FP32": ("host", "none")}

Layout = Literal["NHWC", "NCHW"]


def read(config: pb.ModelConfig | None, settings: Settings) -> tuple[Preprocessing, TensorInfo] | None:
    """What the config states, None where it states nothing. Raises `ModelLoadFailed`."""
    if config is None or PARAMETER not in config.parameters:
        return None
    tensor = settings.input
    shape = settings.row_shape
    if len(shape) != 3 or min(shape) < 1:
        raise ModelLoadFailed(f"{_SOURCE} needs an input of three fixed sizes, input {tensor.name!r} has {list(shape)}")
    layout = _layout(config, shape)
    image = shape if layout == "NHWC" else (*shape[1:], shape[0])
    try:
        spec = manifests.parse_preprocessing(config.parameters[PARAMETER].string_value, image)
    except ModelLoadFailed as error:
        raise ModelLoadFailed(f"{_SOURCE}: {str(error).removeprefix(manifests.MANIFEST_FILE + ': ')}") from error
    choices = _NORMALIZE.get(tensor.datatype, ())
    if spec.normalize not in choices:
        raise ModelLoadFailed(
            f"{_SOURCE}: normalize {spec.normalize!r} does not fit input {tensor.name!r} of {tensor.datatype}"
            + (f"; it takes {' or '.join(choices)}" if choices else ", which takes no images")
        )
    return spec, TensorInfo(tensor.name, tensor.datatype, shape, layout)


def options(parameters: Mapping[str, str]) -> ImageOptions:
    """How a model's images are read, from config.pbtxt's `parameters`. Raises `ModelLoadFailed`."""
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
    raise ModelLoadFailed(f"{_SOURCE}: where the channels of an input of {list(shape)} are is open; set its format")
