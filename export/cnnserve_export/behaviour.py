"""What a network shows when it is run: its classes, its softmax, and whether each image is answered by itself."""

from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cnnserve_export.activation import ends_in_softmax
from cnnserve_export.contract import Activation
from cnnserve_export.errors import ExportError
from cnnserve_export.user_code import told

# Images that `examine` runs.
ROWS = 3
# Rows that differ by more depend on chance or on each other; kernels of other batch sizes sum in another order.
_SAME = 1e-4
_WRAP = "name a function that wraps the network in a module whose forward picks that tensor"


@dataclass(frozen=True)
class Behaviour:
    """What a network answers to an image."""

    class_count: int
    ends_in_softmax: bool


def examine(network: nn.Module, rows: NDArray[Any], activation: Activation = "auto") -> Behaviour:
    """Runs the network on normalised images (3, C, H, W): alone, again, and together.

    Raises `ExportError` where it answers no (N, classes), is not deterministic, or mixes or counts the images.
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
                f"the network answers the same image differently (by {difference:.2g}): it is random in eval mode too; "
                "dropout applied by hand needs training=self.training"
            )
        try:
            together = _answer(network, images, f"a batch of {ROWS} images")
        except ExportError as error:
            raise ExportError(
                f"{error}; one image alone works, so the batch size is written into it: use x.flatten(1) or x.shape[0]"
            ) from error
    if (difference := _difference(together, alone)) > allowed:
        raise ExportError(
            f"an image's answer depends on the other images of its batch (by {difference:.2g}); "
            "each row must be computed from its own image alone, with batch normalisation's running statistics"
        )
    answers = alone.numpy()
    return Behaviour(answers.shape[1], ends_in_softmax(answers, activation))


def _answer(network: nn.Module, images: Tensor, what: str) -> Tensor:
    try:
        # A copy: a network may change its input in place.
        answer = network(images.clone())
    except (Exception, SystemExit) as error:
        raise ExportError(_other_floats(network) or f"the network fails on {what}: {told(error)}") from error
    if not isinstance(answer, Tensor):
        raise ExportError(f"the network answers {_described(answer)}, expected one tensor (N, classes); {_WRAP}")
    if answer.ndim != 2 or len(answer) != len(images):
        raise ExportError(
            f"the network answers shape {list(answer.shape)} to {what}, expected [{len(images)}, classes]"
        )
    if not answer.is_floating_point():
        raise ExportError(f"the network answers {answer.dtype}, expected floating-point logits or probabilities")
    if answer.shape[1] < 2:
        raise ExportError(
            "the network answers 1 value for an image, a classifier at least 2; "
            "for a sigmoid's p answer torch.cat([1 - p, p], dim=1)"
        )
    return answer.float()


def _other_floats(network: nn.Module) -> str:
    """Names the first parameter or buffer of another floating-point type than the images'; "" where there is none."""
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            return (
                f"the network is no float32 network ({name} is {tensor.dtype}), images are float32: "
                "call network.float() where it is made"
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
