"""Random weights with which an untrained network returns different probabilities for different images.

He et al., "Delving Deep into Rectifiers", ICCV 2015, https://arxiv.org/abs/1502.01852, eq. 10: with a standard
deviation of sqrt(2 / fan_in), a layer that is followed by a ReLU keeps the power of its signal. PyTorch's default
divides the power by six in every layer. A deep network then returns the same uniform probabilities for every image, and
a comparison of these probabilities shows nothing.
"""

from torch import nn


def he_initialise(network: nn.Module) -> None:
    """Draws new weights for every convolution and linear layer from torch's generator and sets their biases to 0."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
