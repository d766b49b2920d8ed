"""Runs a network to learn its number of classes and whether it has a softmax, and checks that rows are independent."""

from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cnnserve.repository.onnx_ending import Ending
from cnnserve_export.activation import decide
from cnnserve_export.contract import Activation
from cnnserve_export.errors import ExportError
from cnnserve_export.outputs import Output
from cnnserve_export.user_code import told

# Number of images that `examine` runs.
ROWS = 3
# Largest difference of two rows of one image, as a share of the largest value (at least 1). Kernels for other batch
# sizes sum in another order; a larger difference means that a row depends on chance or on other rows.
_SAME = 1e-4
# The steps at which the values are made, and those that only move them, by torch's names for their gradients.
_ENDINGS: dict[str, Ending] = {"Sigmoid": "sigmoid", "Softmax": "softmax", "LogSoftmax": "log-softmax"}
_KEEP = frozenset(
    (
        *("View", "UnsafeView", "ReshapeAlias", "Squeeze", "Unsqueeze", "Slice", "Select", "Permute", "Transpose", "T"),
        *("Index", "IndexSelect", "Gather", "Clone", "Alias", "ToCopy"),
    )
)
_WRAP = "name a function that wraps the network in a module whose forward returns that tensor alone"


@dataclass(frozen=True)
class Behaviour:
    """What runs of a network have shown."""

    class_count: int
    returned: Output


def examine(network: nn.Module, rows: NDArray[Any], activation: Activation = "auto") -> Behaviour:
    """Returns the behaviour of the network on normalised images (3, C, H, W).

    The network runs each image alone, the first image once more, and all images in one batch.
    Raises `ExportError` if a run fails, if it does not return float values of shape (N, classes), or (N) for one value,
    if two runs of the same image differ, and if a row depends on the batch.
    """
    images = torch.from_numpy(rows[:ROWS])
    shape = "x".join(map(str, images.shape[1:]))
    network.eval()
    with torch.inference_mode():
        alone = torch.cat([_answer(network, image[None], f"one image of {shape}") for image in images])
        again = _answer(network, images[:1], f"one image of {shape}")
        allowed = _SAME * max(1.0, float(alone.abs().max()))
        if (difference := _difference(again, alone[:1])) > allowed:
            raise ExportError(
                f"two runs of the network on the same image differ by {difference:.2g}: it is random in eval mode; if "
                "forward calls functional.dropout, pass training=self.training"
            )
        try:
            together = _answer(network, images, f"a batch of {ROWS} images")
        except ExportError as error:
            raise ExportError(
                f"{error}; one image alone works, so a batch size is fixed; use x.flatten(1) or x.shape[0]"
            ) from error
    if (difference := _difference(together, alone)) > allowed:
        raise ExportError(
            f"the row of an image changes by {difference:.2g} with the other images of its batch; compute each row "
            "from its own image alone, and use the running statistics of batch normalisation"
        )
    answers = alone.numpy()
    returned = decide(answers, _ending(network, images[:1]), activation)
    return Behaviour(2 if returned.two_classes else answers.shape[1], returned)


def _ending(network: nn.Module, images: Tensor) -> Ending:
    """Returns what makes the values that the network returns, as torch records it for gradients."""
    try:
        with torch.enable_grad():
            # Networks may change their input in place, which torch does not allow for a tensor without a history.
            step = network(images.clone().requires_grad_() * 1).grad_fn
    except Exception:
        return "unknown"
    while step is not None:
        name = step.name().removesuffix("Backward0").removesuffix("Backward1").removesuffix("Backward2")
        if name in _ENDINGS:
            return _ENDINGS[name]
        if name not in _KEEP:
            break
        step = step.next_functions[0][0]
    return "unknown"


def _answer(network: nn.Module, images: Tensor, what: str) -> Tensor:
    try:
        # A copy, because a network may change its input in place.
        answer = network(images.clone())
    except (Exception, SystemExit) as error:
        raise ExportError(_other_floats(network) or f"the network fails on {what}: {told(error)}") from error
    if not isinstance(answer, Tensor):
        raise ExportError(f"the network returns {_described(answer)}, expected one tensor (N, classes); {_WRAP}")
    if answer.ndim == 1 and len(answer) == len(images):
        answer = answer[:, None]
    if answer.ndim != 2 or len(answer) != len(images):
        raise ExportError(
            f"the network returns shape {list(answer.shape)} for {what}, expected [{len(images)}, classes]; "
            "return one row of logits for each image"
        )
    if not answer.is_floating_point():
        raise ExportError(f"the network returns {answer.dtype} values; return floating-point logits or probabilities")
    if not answer.shape[1]:
        raise ExportError("the network returns no value for an image, a classifier returns at least one")
    return answer.float()


def _other_floats(network: nn.Module) -> str:
    """Returns an error that names a parameter or buffer of another floating-point type than float32, or ""."""
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            return (
                f"the network is not in float32 ({name} is {tensor.dtype}), but images are; "
                "call network.float() in the code that makes it"
            )
    return ""


def _described(answer: object) -> str:
    kind = f"type {type(answer).__name__}"
    if isinstance(answer, dict):
        return f"{kind} with {', '.join(map(repr, answer))}"
    if isinstance(answer, tuple | list):
        return f"{kind} of {', '.join(getattr(answer, '_fields', ())) or len(answer)}"
    return kind


def _difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max()) if one.shape == other.shape else float("inf")
