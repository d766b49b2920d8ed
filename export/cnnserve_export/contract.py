"""The contract of a served model: its input, output and preprocessing, which every step of an export keeps to."""

import dataclasses
from dataclasses import dataclass
from typing import Literal, get_args

from cnnserve.repository.manifest import Preprocessing, TensorInfo, check_preprocessing
from cnnserve.repository.manifest.fields import InvalidField
from cnnserve.repository.onnx_header import PORTABLE_OPSET
from cnnserve_export.errors import ExportError
from cnnserve_export.outputs import LOGITS, Output

InputForm = Literal["uint8", "float32"]
INPUT_FORMS: tuple[InputForm, ...] = get_args(InputForm)
Activation = Literal["auto", "softmax", "sigmoid"]
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)
Precision = Literal["fp32", "fp16", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
INPUT_NAME = "image"
OUTPUT_NAME = "probabilities"

DEFAULT_MAX_BATCH_SIZE = 32
# Every row runs in PyTorch and in ONNX Runtime. Checks of larger batches would take hours, and serving would not be
# faster.
LARGEST_BATCH_SIZE = 1024
# Share of images with the same top class as in fp32 that fp16 and int8 need.
DEFAULT_MIN_AGREEMENT = 0.99
DEFAULT_OPSET = PORTABLE_OPSET
OPSETS = range(18, 23)


@dataclass(frozen=True)
class Contract:
    """The input and output tensors for one image, and the preprocessing that makes the input.

    `returned` says what the network itself returns, and so what the converter adds.
    """

    input: TensorInfo
    output: TensorInfo
    preprocessing: Preprocessing
    returned: Output = LOGITS

    @property
    def class_count(self) -> int:
        """Number of classes: of probabilities in an output row."""
        return self.output.shape[0]

    @property
    def sums_to_one(self) -> bool:
        """Whether the probabilities of a row sum to 1."""
        return self.returned.activation == "softmax"


def contract(trained: Preprocessing, form: InputForm, class_count: int, returned: Output = LOGITS) -> Contract:
    """Returns the contract of a network that was trained with the preprocessing `trained`.

    If `form` is "uint8", the input is pixels (H, W, C), and the graph normalises them. If `form` is "float32", the
    input is normalised values (C, H, W).
    Raises `ExportError` if the preprocessing gives images no fixed size.
    """
    spec, tensor = image_input(trained, form)
    return Contract(tensor, TensorInfo(OUTPUT_NAME, "FP32", (class_count,)), spec, returned)


def image_input(trained: Preprocessing, form: InputForm) -> tuple[Preprocessing, TensorInfo]:
    """Returns the preprocessing of an image and the input tensor that it gives; the input's half of `contract`.

    Raises `ExportError` if images get no fixed size, or if the server would refuse the preprocessing.
    """
    if (size := trained.size) is None:
        raise ExportError("the preprocessing gives images no fixed size; add a crop or an exact resize")
    height, width = size
    channels = len(trained.mean)
    if form == "uint8":
        spec = dataclasses.replace(trained, normalize="graph")
        tensor = TensorInfo(INPUT_NAME, "UINT8", (height, width, channels), "NHWC")
    else:
        spec = dataclasses.replace(trained, normalize="host")
        tensor = TensorInfo(INPUT_NAME, "FP32", (channels, height, width), "NCHW")
    check(spec, (height, width, channels))
    return spec, tensor


def check(spec: Preprocessing, image_shape: tuple[int, ...]) -> None:
    """Raises `ExportError` if the server would refuse preprocessing for images of height, width and channels."""
    try:
        check_preprocessing(spec, image_shape)
    except InvalidField as error:
        raise ExportError(f"the server cannot do what was given: {error}") from error
