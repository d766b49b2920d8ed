"""ResNet: He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016.

https://arxiv.org/abs/1512.03385, table 1. Parameters with 1,000 classes: ResNet-18 11,689,512; ResNet-34 21,797,672;
ResNet-50 25,557,032; ResNet-101 44,549,160; ResNet-152 60,192,808. They have the names that torchvision uses, so
torchvision's checkpoints load.
"""

import math

from torch import Tensor, nn

from cnnserve_export.architectures.initialisation import he_initialise


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    # There is no bias, because the batch normalisation after every convolution has one.
    return nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    """Returns a projection if the block changes the shape, else None (option B of the paper)."""
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(_conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions (figure 5, left): (N, inputs, H, W) to (N, width, H/stride, W/stride)."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the output of the block (N, width, H/stride, W/stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.relu(self.bn1(self.conv1(x)))  # N, width, H/stride, W/stride
        y = self.bn2(self.conv2(y))  # N, width, H/stride, W/stride
        output: Tensor = self.relu(y + shortcut)
        return output

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """The batch normalisation just before the addition."""
        return self.bn2


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolutions (figure 5, right): (N, inputs, H, W) to (N, 4 width, H/stride, W/stride).

    Difference from the paper, as in torchvision ("ResNet v1.5"): the 3 x 3 convolution has the stride, not the first
    1 x 1 convolution.
    """

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = _conv(width, width * self.expansion, 1)
        self.bn3 = nn.BatchNorm2d(width * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(inputs, width * self.expansion, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the output of the block (N, 4 width, H/stride, W/stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.relu(self.bn1(self.conv1(x)))  # N, width, H, W
        y = self.relu(self.bn2(self.conv2(y)))  # N, width, H/stride, W/stride
        y = self.bn3(self.conv3(y))  # N, 4 width, H/stride, W/stride
        output: Tensor = self.relu(y + shortcut)
        return output

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """The batch normalisation just before the addition."""
        return self.bn3


class ResNet(nn.Module):
    """ResNet: normalised RGB images (N, 3, 224, 224) to logits (N, classes).

    `depths` holds the number of blocks of each of the four stages.
    """

    def __init__(
        self, block: type[BasicBlock | Bottleneck], depths: tuple[int, int, int, int], num_classes: int
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        e = block.expansion
        self.layer1 = _stage(block, 64, 64, depths[0], stride=1)
        self.layer2 = _stage(block, 64 * e, 128, depths[1], stride=2)
        self.layer3 = _stage(block, 128 * e, 256, depths[2], stride=2)
        self.layer4 = _stage(block, 256 * e, 512, depths[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(512 * e, num_classes)
        he_initialise(self)
        _damp_residuals(self, sum(depths))

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits (N, classes) for images (N, 3, 224, 224)."""
        # In the shapes, e is the expansion of the block: 1 (basic) or 4 (bottleneck).
        x = self.relu(self.bn1(self.conv1(x)))  # N, 64, 112, 112
        x = self.maxpool(x)  # N, 64, 56, 56
        x = self.layer1(x)  # N, 64e, 56, 56
        x = self.layer2(x)  # N, 128e, 28, 28
        x = self.layer3(x)  # N, 256e, 14, 14
        x = self.layer4(x)  # N, 512e, 7, 7
        x = self.avgpool(x).flatten(1)  # N, 512e
        logits: Tensor = self.fc(x)  # N, classes
        return logits


def _stage(block: type[BasicBlock | Bottleneck], inputs: int, width: int, depth: int, stride: int) -> nn.Sequential:
    outputs = width * block.expansion
    return nn.Sequential(block(inputs, width, stride), *(block(outputs, width, 1) for _ in range(depth - 1)))


def _damp_residuals(network: ResNet, blocks: int) -> None:
    # Untrained batch normalisation passes its input through, so every addition doubles the power of the signal. After
    # the fifty blocks of ResNet-152, logits would reach 1e7. With weights of 1/sqrt(blocks), all blocks together
    # multiply the power by at most e = 2.718.
    for module in network.modules():
        if isinstance(module, BasicBlock | Bottleneck):
            nn.init.constant_(module.last_norm.weight, 1 / math.sqrt(blocks))


def resnet18(num_classes: int = 1000) -> nn.Module:
    """Returns ResNet-18 with random weights."""
    return ResNet(BasicBlock, (2, 2, 2, 2), num_classes)


def resnet34(num_classes: int = 1000) -> nn.Module:
    """Returns ResNet-34 with random weights."""
    return ResNet(BasicBlock, (3, 4, 6, 3), num_classes)


def resnet50(num_classes: int = 1000) -> nn.Module:
    """Returns ResNet-50 with random weights."""
    return ResNet(Bottleneck, (3, 4, 6, 3), num_classes)


def resnet101(num_classes: int = 1000) -> nn.Module:
    """Returns ResNet-101 with random weights."""
    return ResNet(Bottleneck, (3, 4, 23, 3), num_classes)


def resnet152(num_classes: int = 1000) -> nn.Module:
    """Returns ResNet-152 with random weights."""
    return ResNet(Bottleneck, (3, 8, 36, 3), num_classes)
