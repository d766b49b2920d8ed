"""Random weights under which an untrained network still answers like a network.

He et al., "Delving Deep into Rectifiers", ICCV 2015, https://arxiv.org/abs/1502.01852, eq. 10: with a standard
deviation of sqrt(2 / fan_in) a layer followed by a ReLU passes the power of its signal on. PyTorch's default divides it
by six in every layer, and a deep network then gives every image the same uniform probabilities, on which a proof of
parity proves nothing.
"""

from torch import nn


def he_initialise(network: nn.Module) -> None:
    """Draws the weights of every convolution and linear layer anew from torch's generator; biases become 0."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
