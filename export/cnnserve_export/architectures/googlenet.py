"""GoogLeNet: Szegedy et al., "Going Deeper with Convolutions", CVPR 2015.

https://arxiv.org/abs/1409.4842, table 1. With 1,000 classes and without the auxiliary heads it has 6,624,904
parameters. They have the names that torchvision uses, so torchvision's checkpoints load.
"""

import torch
from torch import Tensor, nn

from cnnserve_export.architectures.initialisation import he_initialise

# Mean and standard deviation of ImageNet. Weights ported from TensorFlow were trained with 0.5 for both instead, which
# gives values from -1 to 1.
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HALF = 0.5


class ConvBlock(nn.Module):
    """Convolution, batch normalisation and ReLU; the paper has a bias in place of the normalisation."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, padding: int = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Returns (N, outputs, H', W') for (N, inputs, H, W)."""
        output: Tensor = self.relu(self.bn(self.conv(x)))
        return output


class Inception(nn.Module):
    """Four branches side by side (figure 2b): (N, inputs, H, W) to (N, n1 + n3[1] + n5[1] + pool, H, W).

    `n1` and `pool` are the channels after the first and the fourth branch. `n3` and `n5` each hold the channels after
    the 1 x 1 reduction and after the branch.

    Difference from the paper, as in torchvision: the branch that the paper calls 5 x 5 has a 3 x 3 kernel, because the
    published weights have one.
    """

    def __init__(self, inputs: int, n1: int, n3: tuple[int, int], n5: tuple[int, int], pool: int) -> None:
        super().__init__()
        self.branch1 = ConvBlock(inputs, n1, 1)
        self.branch2 = nn.Sequential(ConvBlock(inputs, n3[0], 1), ConvBlock(n3[0], n3[1], 3, padding=1))
        self.branch3 = nn.Sequential(ConvBlock(inputs, n5[0], 1), ConvBlock(n5[0], n5[1], 3, padding=1))
        self.branch4 = nn.Sequential(_pool(3, stride=1, padding=1), ConvBlock(inputs, pool, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Returns the outputs of the four branches, joined along the channels."""
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], dim=1)


class AuxiliaryHead(nn.Module):
    """A classifier half-way through the network (section 5), for training only: (N, inputs, 14, 14) to logits."""

    def __init__(self, inputs: int, num_classes: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d((4, 4))
        self.conv = ConvBlock(inputs, 128, 1)
        self.fc1 = nn.Linear(128 * 4 * 4, 1024)
        self.relu = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(0.7)
        self.fc2 = nn.Linear(1024, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits (N, classes)."""
        x = self.conv(self.pool(x))  # N, 128, 4, 4
        x = self.dropout(self.relu(self.fc1(x.flatten(1))))  # N, 1024
        logits: Tensor = self.fc2(x)  # N, classes
        return logits


class GoogLeNet(nn.Module):
    """GoogLeNet: RGB images (N, 3, 224, 224), normalised as for ImageNet, to logits (N, classes).

    Differences from the paper, both as in torchvision:
    - Batch normalisation replaces local response normalisation.
    - The dropout after the global average pooling is 0.2 instead of 0.4.

    `forward` returns the main logits alone, in training too. If the network was made with `aux_logits`,
    `forward_with_auxiliary` returns the logits of all three heads.

    If `transform_input` is true, the network first changes the values from ImageNet's normalisation to the range -1 to
    1. The weights that torchvision publishes need this, although their file does not say so.
    """

    def __init__(self, num_classes: int = 1000, *, aux_logits: bool = False, transform_input: bool = False) -> None:
        super().__init__()
        self.transform_input = transform_input
        self.conv1 = ConvBlock(3, 64, 7, stride=2, padding=3)
        self.maxpool1 = _pool(3, stride=2)
        self.conv2 = ConvBlock(64, 64, 1)
        self.conv3 = ConvBlock(64, 192, 3, padding=1)
        self.maxpool2 = _pool(3, stride=2)
        self.inception3a = Inception(192, 64, (96, 128), (16, 32), 32)
        self.inception3b = Inception(256, 128, (128, 192), (32, 96), 64)
        self.maxpool3 = _pool(3, stride=2)
        self.inception4a = Inception(480, 192, (96, 208), (16, 48), 64)
        self.inception4b = Inception(512, 160, (112, 224), (24, 64), 64)
        self.inception4c = Inception(512, 128, (128, 256), (24, 64), 64)
        self.inception4d = Inception(512, 112, (144, 288), (32, 64), 64)
        self.inception4e = Inception(528, 256, (160, 320), (32, 128), 128)
        self.maxpool4 = _pool(2, stride=2)
        self.inception5a = Inception(832, 256, (160, 320), (32, 128), 128)
        self.inception5b = Inception(832, 384, (192, 384), (48, 128), 128)
        self.aux1 = AuxiliaryHead(512, num_classes) if aux_logits else None
        self.aux2 = AuxiliaryHead(528, num_classes) if aux_logits else None
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.2)
        self.fc = nn.Linear(1024, num_classes)
        he_initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the main logits (N, classes) for images (N, 3, 224, 224)."""
        x = self._after_4a(x)
        x = self._after_4d(x)
        return self._head(x)

    def forward_with_auxiliary(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the main logits and those of the lower and the upper auxiliary head, each (N, classes).

        Raises `ValueError` if the network was made without auxiliary heads.
        """
        if self.aux1 is None or self.aux2 is None:
            raise ValueError("this GoogLeNet was made without auxiliary heads; pass aux_logits=True")
        x = self._after_4a(x)
        lower: Tensor = self.aux1(x)
        x = self._after_4d(x)
        upper: Tensor = self.aux2(x)
        return self._head(x), lower, upper

    def _after_4a(self, x: Tensor) -> Tensor:
        if self.transform_input:
            x = _to_half_range(x)
        x = self.conv1(x)  # N, 64, 112, 112
        x = self.maxpool1(x)  # N, 64, 56, 56
        x = self.conv3(self.conv2(x))  # N, 192, 56, 56
        x = self.maxpool2(x)  # N, 192, 28, 28
        x = self.inception3a(x)  # N, 256, 28, 28
        x = self.inception3b(x)  # N, 480, 28, 28
        x = self.maxpool3(x)  # N, 480, 14, 14
        output: Tensor = self.inception4a(x)  # N, 512, 14, 14
        return output

    def _after_4d(self, x: Tensor) -> Tensor:
        x = self.inception4b(x)  # N, 512, 14, 14
        x = self.inception4c(x)  # N, 512, 14, 14
        output: Tensor = self.inception4d(x)  # N, 528, 14, 14
        return output

    def _head(self, x: Tensor) -> Tensor:
        x = self.inception4e(x)  # N, 832, 14, 14
        x = self.maxpool4(x)  # N, 832, 7, 7
        x = self.inception5a(x)  # N, 832, 7, 7
        x = self.inception5b(x)  # N, 1024, 7, 7
        x = self.avgpool(x).flatten(1)  # N, 1024
        logits: Tensor = self.fc(self.dropout(x))  # N, classes
        return logits


def _pool(kernel: int, stride: int, padding: int = 0) -> nn.MaxPool2d:
    # Rounding up gives the sizes of table 1 without padding.
    return nn.MaxPool2d(kernel, stride=stride, padding=padding, ceil_mode=True)


def _to_half_range(x: Tensor) -> Tensor:
    """Returns `x` with mean 0.5 and standard deviation 0.5 in place of ImageNet's normalisation, in one step."""
    mean, std = (torch.tensor(values, dtype=x.dtype).view(1, 3, 1, 1) for values in _IMAGENET)
    return x * (std / _HALF) + (mean - _HALF) / _HALF


def googlenet(num_classes: int = 1000) -> nn.Module:
    """Returns GoogLeNet with random weights and without auxiliary heads."""
    return GoogLeNet(num_classes)
