"""The architectures that can be exported by name, each with its paper, its number of classes and its preprocessing."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from cnnserve.repository.manifest import Preprocessing, Resize
from cnnserve_export import golden_choice
from cnnserve_export.architectures.alexnet import alexnet
from cnnserve_export.architectures.googlenet import googlenet
from cnnserve_export.architectures.lenet import lenet5
from cnnserve_export.architectures.resnet import resnet18, resnet34, resnet50, resnet101, resnet152
from cnnserve_export.golden import GoldenImages

# Both describe the images that training used. `normalize` is replaced later, because `--input` decides whether the ONNX
# graph or the server normalises.
IMAGENET = Preprocessing(
    color="RGB",
    resize=Resize("shorter", (256,)),
    crop=(224, 224),
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    normalize="graph",
)
# `mean` and `std` are those of the pixels (0 to 1) of the training digits after the resize.
DIGITS = Preprocessing(
    color="L", resize=Resize("exact", (28, 28)), crop=None, mean=(0.306,), std=(0.325,), normalize="graph"
)


@dataclass(frozen=True)
class Architecture:
    """An architecture that can be exported.

    `factory(classes)` returns the network with random weights: normalised images (N, C, H, W) to logits (N, classes).
    `class_count` is the default number of classes; 0 means that only a run of the network shows the number. `golden`
    returns the default golden images. `training_only` holds prefixes of checkpoint keys; keys with such a prefix
    belong to parts that only training needs, and an export drops them.
    """

    name: str
    factory: Callable[[int], nn.Module]
    paper: str
    class_count: int = 1000
    preprocessing: Preprocessing = IMAGENET
    golden: Callable[[], GoldenImages] = golden_choice.photographs
    training_only: tuple[str, ...] = ()


_RESNET_PAPER = "He et al. 2015, arXiv:1512.03385"

ARCHITECTURES: dict[str, Architecture] = {
    architecture.name: architecture
    for architecture in (
        Architecture(
            "lenet5", lenet5, "LeCun et al. 1998", class_count=10, preprocessing=DIGITS, golden=golden_choice.digits
        ),
        Architecture("alexnet", alexnet, "Krizhevsky 2014, arXiv:1404.5997"),
        Architecture("googlenet", googlenet, "Szegedy et al. 2014, arXiv:1409.4842", training_only=("aux1.", "aux2.")),
        Architecture("resnet18", resnet18, _RESNET_PAPER),
        Architecture("resnet34", resnet34, _RESNET_PAPER),
        Architecture("resnet50", resnet50, _RESNET_PAPER),
        Architecture("resnet101", resnet101, _RESNET_PAPER),
        Architecture("resnet152", resnet152, _RESNET_PAPER),
    )
}
