"""What can be exported by name: each architecture with its paper, its classes and its preprocessing."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from cnnserve.repository.manifest import Preprocessing, Resize
from cnnserve_export import golden
from cnnserve_export.architectures.alexnet import alexnet
from cnnserve_export.architectures.googlenet import googlenet
from cnnserve_export.architectures.lenet import lenet5
from cnnserve_export.architectures.resnet import resnet18, resnet34, resnet50, resnet101, resnet152

# Both are in the form the network was trained with; `--input` decides where the normalisation is done.
IMAGENET = Preprocessing(
    color="RGB",
    resize=Resize("shorter", (256,)),
    crop=(224, 224),
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    normalize="graph",
)
# Mean and deviation of the training digits' pixels after the resize.
DIGITS = Preprocessing(
    color="L", resize=Resize("exact", (28, 28)), crop=None, mean=(0.306,), std=(0.325,), normalize="graph"
)


@dataclass(frozen=True)
class Architecture:
    """`factory(classes)` builds the network with random weights: normalised images (N, C, H, W) to logits (N, classes).

    `class_count` is the default number, 0 where only a run tells. `golden` makes the default golden image, a PNG.
    `training_only` are prefixes of checkpoint keys for parts that only training needs; an export drops them.
    """

    name: str
    factory: Callable[[int], nn.Module]
    paper: str
    class_count: int = 1000
    preprocessing: Preprocessing = IMAGENET
    golden: Callable[[], bytes] = golden.photograph
    training_only: tuple[str, ...] = ()


_RESNET_PAPER = "He et al. 2015, arXiv:1512.03385"

ARCHITECTURES: dict[str, Architecture] = {
    architecture.name: architecture
    for architecture in (
        Architecture("lenet5", lenet5, "LeCun et al. 1998", class_count=10, preprocessing=DIGITS, golden=golden.digit),
        Architecture("alexnet", alexnet, "Krizhevsky 2014, arXiv:1404.5997"),
        Architecture("googlenet", googlenet, "Szegedy et al. 2014, arXiv:1409.4842", training_only=("aux1.", "aux2.")),
        Architecture("resnet18", resnet18, _RESNET_PAPER),
        Architecture("resnet34", resnet34, _RESNET_PAPER),
        Architecture("resnet50", resnet50, _RESNET_PAPER),
        Architecture("resnet101", resnet101, _RESNET_PAPER),
        Architecture("resnet152", resnet152, _RESNET_PAPER),
    )
}
