"""Small networks of odd kinds, to be exported by name: they view their input, standardise it, or end in a sigmoid."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

SIDE = 16
# As `package.module:factory` and the flags of `cnnserve export`.
FLAGS = f"--shape 3,{SIDE},{SIDE} --mean 0,0,0 --std 1,1,1 --max-batch-size 4"

STANDARDS: dict[str, Callable[[Tensor], Tensor]] = {
    "deviation": lambda x: (x - x.mean((1, 2, 3), keepdim=True)) / x.std((1, 2, 3), keepdim=True),
    "range": lambda x: (
        (x - x.amin((1, 2, 3), keepdim=True)) / (x.amax((1, 2, 3), keepdim=True) - x.amin((1, 2, 3), keepdim=True))
    ),
    "norm": lambda x: x / x.pow(2).sum((1, 2, 3), keepdim=True).sqrt(),
}


class Network(nn.Module):
    """Standardises each image as named, then a convolution and `classes` values, to which `end` is applied."""

    def __init__(self, standard: str = "", classes: int = 5, end: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.standard = STANDARDS.get(standard)
        self.features = nn.Sequential(nn.Conv2d(3, 8, 5), nn.ReLU(), nn.MaxPool2d(2))
        self.head = nn.Linear(8 * 6 * 6, classes)
        self.end = end

    def forward(self, x: Tensor) -> Tensor:
        """Returns the values (N, classes)."""
        made: Tensor = self.features(x if self.standard is None else self.standard(x))
        # The classic form, which needs the usual order in memory.
        made = self.head(made.view(made.size(0), -1))
        return made if self.end is None else self.end(made)


def view() -> Network:
    return Network()


def deviation() -> Network:
    return Network("deviation")


def spread() -> Network:
    return Network("range")


def norm() -> Network:
    return Network("norm")


def sigmoids() -> Network:
    return Network(end=nn.Sigmoid())


def sigmoid() -> Network:
    return Network(classes=1, end=nn.Sigmoid())


def flat_sigmoid() -> Network:
    return Network(classes=1, end=nn.Sequential(nn.Sigmoid(), nn.Flatten(0)))


def logit() -> Network:
    return Network(classes=1)
