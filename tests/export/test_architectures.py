import pytest
import torch

from cnnserve_export import checkpoints
from cnnserve_export.architectures import ARCHITECTURES
from cnnserve_export.architectures.googlenet import GoogLeNet

PARAMETERS = {
    "lenet5": 61_706,
    "alexnet": 61_100_840,
    "googlenet": 6_624_904,
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
}

# Names and shapes in torchvision's published checkpoints.
TORCHVISION = {
    "alexnet": {"features.0.weight": (64, 3, 11, 11), "features.10.bias": (256,), "classifier.6.weight": (1000, 4096)},
    "googlenet": {
        "conv1.conv.weight": (64, 3, 7, 7),
        "conv1.bn.running_var": (64,),
        "inception3a.branch1.conv.weight": (64, 192, 1, 1),
        "inception3a.branch3.1.conv.weight": (32, 16, 3, 3),
        "inception5b.branch4.1.bn.weight": (128,),
        "fc.weight": (1000, 1024),
    },
    "resnet18": {"layer2.0.downsample.0.weight": (128, 64, 1, 1), "layer4.1.bn2.bias": (512,), "fc.bias": (1000,)},
    "resnet34": {"layer3.5.conv2.weight": (256, 256, 3, 3)},
    "resnet50": {"conv1.weight": (64, 3, 7, 7), "layer1.0.downsample.1.weight": (256,), "fc.weight": (1000, 2048)},
    "resnet101": {"layer3.22.conv3.weight": (1024, 256, 1, 1)},
    "resnet152": {"layer2.7.conv2.weight": (128, 128, 3, 3), "layer3.35.bn3.running_mean": (1024,)},
}


def test_every_architecture_is_counted() -> None:
    assert PARAMETERS.keys() == ARCHITECTURES.keys()


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_count(name: str) -> None:
    architecture = ARCHITECTURES[name]
    with torch.device("meta"):
        network = architecture.factory(architecture.class_count)
    assert sum(parameter.numel() for parameter in network.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", TORCHVISION)
def test_names_and_shapes_are_torchvisions(name: str) -> None:
    with torch.device("meta"):
        state = ARCHITECTURES[name].factory(1000).state_dict()
    assert {key: tuple(state[key].shape) for key in TORCHVISION[name]} == TORCHVISION[name]


@pytest.mark.parametrize("name", PARAMETERS)
def test_an_untrained_network_tells_images_apart(name: str) -> None:
    network = checkpoints.build(ARCHITECTURES[name], 10)
    shape = (2, 1, 28, 28) if name == "lenet5" else (2, 3, 224, 224)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        probabilities = network(images).softmax(dim=1)
    assert probabilities.shape == (2, 10)
    assert probabilities.isfinite().all()
    # If the probabilities were 0 and 1, or all equal, the parity would show nothing.
    assert 0.12 < probabilities.max() < 0.999
    assert (probabilities[0] - probabilities[1]).abs().max() > 1e-3


def test_building_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    first = checkpoints.build(ARCHITECTURES["lenet5"], 10)
    assert torch.equal(torch.random.get_rng_state(), before)
    second = checkpoints.build(ARCHITECTURES["lenet5"], 10)
    assert torch.equal(first.get_parameter("fc1.weight"), second.get_parameter("fc1.weight"))


def test_googlenet_auxiliary_heads_are_for_training_only() -> None:
    network = GoogLeNet(5, aux_logits=True).eval()
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        main, lower, upper = network.forward_with_auxiliary(images)
        assert torch.equal(main, network(images))
    assert main.shape == lower.shape == upper.shape == (1, 5)
    with pytest.raises(ValueError, match="aux_logits=True"):
        GoogLeNet(5).forward_with_auxiliary(images)


def test_googlenet_transform_input_is_a_change_of_normalisation() -> None:
    plain = GoogLeNet(5).eval()
    pixels = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.inference_mode():
        expected = plain((pixels - 0.5) / 0.5)
        plain.transform_input = True
        actual = plain((pixels - mean) / std)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
