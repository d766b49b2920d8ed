from collections import OrderedDict, namedtuple
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cnnserve_export.behaviour import Behaviour, examine
from cnnserve_export.contract import Activation
from cnnserve_export.errors import ExportError
from cnnserve_export.outputs import LOGITS, Output

ROWS = np.random.default_rng(0).normal(size=(3, 3, 8, 8)).astype(np.float32)
Pair = namedtuple("Pair", "logits aux")


class Net(nn.Module):
    """From 3 x 8 x 8 to 4 logits, to which `change` is applied."""

    def __init__(self, change: object = None, classes: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(3, classes)
        self.change = change

    def forward(self, x: Tensor) -> object:
        logits = self.head(x.mean((2, 3)))
        return self.change(logits) if callable(self.change) else logits


def test_logits_and_probabilities_are_told_apart() -> None:
    assert examine(Net(), ROWS) == Behaviour(4, LOGITS)
    assert examine(Net(lambda y: y.softmax(1)), ROWS) == Behaviour(4, Output())
    # The network returns logits, so the export adds a softmax.
    assert examine(Net(lambda y: y.log_softmax(1)), ROWS) == Behaviour(4, LOGITS)


@pytest.mark.parametrize("change", [lambda x: nn.functional.leaky_relu(x, inplace=True), lambda x: x.mul_(2)])
def test_a_network_may_change_its_input_in_place(change: Callable[[Tensor], Tensor]) -> None:
    class InPlace(Net):
        def forward(self, x: Tensor) -> object:
            return super().forward(change(x))

    rows = ROWS.copy()
    assert examine(InPlace(), rows).class_count == 4
    np.testing.assert_array_equal(rows, ROWS)


def test_a_network_in_training_mode_is_judged_as_it_will_serve() -> None:
    network = nn.Sequential(nn.Dropout(0.9), Net()).train()
    assert examine(network, ROWS).class_count == 4


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Net(lambda y: (y, y)), "returns type tuple of 2, expected one tensor"),
        (Net(lambda y: Pair(y, y)), "returns type Pair of logits, aux, expected"),
        (Net(lambda y: OrderedDict(logits=y)), "returns type OrderedDict with 'logits', expected"),
        (Net(lambda y: y[:, :, None]), r"returns shape \[1, 4, 1\] for one image of 3x8x8, expected \[1, classes\]"),
        (Net(lambda y: y.squeeze(0)), r"returns shape \[4\]"),
        (Net(lambda y: y.argmax(1, keepdim=True)), "returns torch.int64 values; return floating-point logits"),
        (Net(classes=1), "returns one value for an image and does not end in a sigmoid; if the value is a logit"),
        (Net(lambda y: y[:, :0]), "returns no value for an image"),
        (Net(nn.functional.dropout), "two runs of the network on the same image differ"),
        (Net(lambda y: y.view(1, 4)), r"fails on a batch of 3 images: RuntimeError: shape .* \(test_behaviour.py line"),
        (Net(lambda y: y.reshape(1, -1)), r"returns shape \[1, 12\] for a batch of 3 images, .* one image alone works"),
        (Net(lambda y: y - y.mean(0)), "row of an image changes by .* with the other images of its batch"),
        (Net(lambda y: y * float("nan")), "returned NaN or infinite values"),
        (Net(lambda y: 1 / (1 + (-y).exp())), "do not sum to 1, .* but the network does not end in one"),
    ],
)
def test_what_is_no_classifier_that_can_be_served(network: nn.Module, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        examine(network, ROWS)


def test_a_softmax_can_be_demanded_but_not_twice() -> None:
    assert examine(Net(lambda y: y.sigmoid()), ROWS, "softmax").returned == LOGITS
    with pytest.raises(ExportError, match="returns probabilities, which a second softmax would flatten"):
        examine(Net(lambda y: y.softmax(1)), ROWS, "softmax")


@pytest.mark.parametrize(
    ("network", "asked", "behaviour"),
    [
        (Net(lambda y: y.sigmoid()), "auto", Behaviour(4, Output("sigmoid"))),
        (Net(lambda y: y.sigmoid()[:, [2, 1]].clone().flatten(1)), "auto", Behaviour(2, Output("sigmoid"))),
        (Net(), "sigmoid", Behaviour(4, Output("sigmoid", "sigmoid"))),
        (Net(lambda y: y.sigmoid(), 1), "auto", Behaviour(2, Output(two_classes=True))),
        (Net(lambda y: y.sigmoid().squeeze(1), 1), "auto", Behaviour(2, Output(two_classes=True))),
        (Net(None, 1), "sigmoid", Behaviour(2, Output("softmax", "sigmoid", two_classes=True))),
    ],
)
def test_sigmoids_are_told_by_the_last_step(network: nn.Module, asked: Activation, behaviour: Behaviour) -> None:
    assert examine(network, ROWS, asked) == behaviour


def test_the_last_step_of_a_network_without_gradients_is_unknown() -> None:
    network = Net(lambda y: y.detach().sigmoid())
    assert examine(network, ROWS, "softmax").returned == LOGITS
    with pytest.raises(ExportError, match="the network does not end in one"):
        examine(network, ROWS)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_a_network_of_another_type_is_told_to_become_float32(dtype: torch.dtype) -> None:
    with pytest.raises(ExportError, match=rf"head.weight is {dtype}\), but images are; call network.float\(\)"):
        examine(Net().to(dtype), ROWS)


def test_a_network_that_casts_its_images_itself_is_fine() -> None:
    class Double(Net):
        def forward(self, x: Tensor) -> object:
            return super().forward(x.double())

    assert examine(Double().double(), ROWS).class_count == 4
