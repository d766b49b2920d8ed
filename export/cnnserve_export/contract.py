"""What a served model takes and answers: chosen once, and then held to by converter, proof, manifest and publisher."""

import dataclasses
from dataclasses import dataclass
from typing import Literal, get_args

from cnnserve.repository.manifest import Preprocessing, TensorInfo
from cnnserve.repository.onnx_header import PORTABLE_OPSET
from cnnserve_export.errors import ExportError

InputForm = Literal["uint8", "float32"]
INPUT_FORMS: tuple[InputForm, ...] = get_args(InputForm)
Activation = Literal["auto", "softmax"]
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)
Precision = Literal["fp32", "fp16", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
INPUT_NAME = "image"
OUTPUT_NAME = "probabilities"

DEFAULT_MAX_BATCH_SIZE = 32
# Every row is run, in PyTorch and in ONNX Runtime: larger batches would take hours to prove and are served no faster.
LARGEST_BATCH_SIZE = 1024
# Share of images on which fp16 and int8 must put the same class first as fp32 does.
DEFAULT_MIN_AGREEMENT = 0.99
DEFAULT_OPSET = PORTABLE_OPSET
OPSETS = range(18, 23)


@dataclass(frozen=True)
class Contract:
    """One image's input and output tensors, and the preprocessing that makes the input.

    `ends_in_softmax`: the network answers probabilities by itself; else the converter adds the softmax.
    """

    input: TensorInfo
    output: TensorInfo
    preprocessing: Preprocessing
    ends_in_softmax: bool = False

    @property
    def class_count(self) -> int:
        """Probabilities in an answer."""
        return self.output.shape[0]


def contract(trained: Preprocessing, form: InputForm, class_count: int, *, ends_in_softmax: bool = False) -> Contract:
    """The contract of a network trained behind `trained`.

    "uint8" takes pixels (H, W, C) and normalises inside the graph, "float32" takes normalised values (C, H, W).
    Raises `ExportError` where the preprocessing ends at no fixed size.
    """
    spec, tensor = image_input(trained, form)
    return Contract(tensor, TensorInfo(OUTPUT_NAME, "FP32", (class_count,)), spec, ends_in_softmax)


def image_input(trained: Preprocessing, form: InputForm) -> tuple[Preprocessing, TensorInfo]:
    """The input's half of `contract`: how an image is prepared, and the tensor it becomes."""
    size = trained.crop or (trained.resize.size if trained.resize else ())
    if len(size) != 2:
        raise ExportError("the preprocessing ends at no fixed size; give it a crop or an exact resize")
    height, width = size
    channels = len(trained.mean)
    if form == "uint8":
        tensor = TensorInfo(INPUT_NAME, "UINT8", (height, width, channels), "NHWC")
        return dataclasses.replace(trained, normalize="graph"), tensor
    tensor = TensorInfo(INPUT_NAME, "FP32", (channels, height, width), "NCHW")
    return dataclasses.replace(trained, normalize="host"), tensor
