"""LeNet-5: LeCun, Bottou, Bengio, Haffner, "Gradient-Based Learning Applied to Document Recognition", 1998.

http://yann.lecun.com/exdb/publis/pdf/lecun-98.pdf, section II.B. With 10 classes it has 61,706 parameters.
"""

from torch import Tensor, nn

from cnnserve_export.architectures.initialisation import he_initialise


class LeNet5(nn.Module):
    """LeNet-5: normalised grey images (N, 1, 28, 28) to logits (N, classes).

    Differences from the paper:
    - The input has 28 x 28 pixels and the first convolution a padding of 2; the input of the paper has 32 x 32 pixels.
    - The sub-sampling layers S2 and S4 are 2 x 2 maximum pooling, without the trained coefficient and bias.
    - C3 uses all six maps of S2; table I of the paper leaves connections out to save computation and break symmetry.
    - ReLU replaces the scaled tanh, because training then needs a fraction of the epochs.
    - The output layer is linear and its values are logits; the paper has Euclidean RBF units.
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, kernel_size=5, padding=2)
        self.conv2 = nn.Conv2d(6, 16, kernel_size=5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, num_classes)
        self.pool = nn.MaxPool2d(2)
        self.relu = nn.ReLU()
        he_initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits (N, classes) for images (N, 1, 28, 28)."""
        x = self.relu(self.conv1(x))  # C1: N, 6, 28, 28
        x = self.pool(x)  # S2: N, 6, 14, 14
        x = self.relu(self.conv2(x))  # C3: N, 16, 10, 10
        x = self.pool(x)  # S4: N, 16, 5, 5
        x = self.relu(self.fc1(x.flatten(1)))  # C5: N, 120
        x = self.relu(self.fc2(x))  # F6: N, 84
        logits: Tensor = self.fc3(x)  # N, classes
        return logits


def lenet5(num_classes: int = 10) -> nn.Module:
    """Returns LeNet-5 with random weights."""
    return LeNet5(num_classes)
