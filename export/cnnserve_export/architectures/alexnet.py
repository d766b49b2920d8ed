"""AlexNet: Krizhevsky, "One weird trick for parallelizing convolutional neural networks", 2014.

https://arxiv.org/abs/1404.5997: the single-column network of the footnote on page 5. With 1,000 classes it has
61,100,840 parameters. They have the names that torchvision uses, so torchvision's checkpoints load.
"""

from torch import Tensor, nn

from cnnserve_export.architectures.initialisation import he_initialise


class AlexNet(nn.Module):
    """AlexNet: normalised RGB images (N, 3, 224, 224) to logits (N, classes).

    Differences from the paper, all as in torchvision:
    - There is no local response normalisation.
    - The convolutions have 64, 192, 384, 256 and 256 filters; the fourth has 384 in the paper.
    - Dropout comes before the first two linear layers; in the paper it comes after them.
    """

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, kernel_size=11, stride=4, padding=2),  # N, 64, 55, 55
            nn.ReLU(inplace=True),
            nn.MaxPool2d(kernel_size=3, stride=2),  # N, 64, 27, 27
            nn.Conv2d(64, 192, kernel_size=5, padding=2),  # N, 192, 27, 27
            nn.ReLU(inplace=True),
            nn.MaxPool2d(kernel_size=3, stride=2),  # N, 192, 13, 13
            nn.Conv2d(192, 384, kernel_size=3, padding=1),  # N, 384, 13, 13
            nn.ReLU(inplace=True),
            nn.Conv2d(384, 256, kernel_size=3, padding=1),  # N, 256, 13, 13
            nn.ReLU(inplace=True),
            nn.Conv2d(256, 256, kernel_size=3, padding=1),  # N, 256, 13, 13
            nn.ReLU(inplace=True),
            nn.MaxPool2d(kernel_size=3, stride=2),  # N, 256, 6, 6
        )
        # Does nothing for images of 224 x 224. For other sizes it gives the 6 x 6 that the classifier needs.
        self.avgpool = nn.AdaptiveAvgPool2d((6, 6))
        self.classifier = nn.Sequential(
            nn.Dropout(0.5),
            nn.Linear(256 * 6 * 6, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            nn.Linear(4096, 4096),
            nn.ReLU(inplace=True),
            nn.Linear(4096, num_classes),
        )
        he_initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits (N, classes) for images (N, 3, 224, 224)."""
        x = self.features(x)  # N, 256, 6, 6
        x = self.avgpool(x)  # N, 256, 6, 6
        x = x.flatten(1)  # N, 9216
        logits: Tensor = self.classifier(x)  # N, classes
        return logits


def alexnet(num_classes: int = 1000) -> nn.Module:
    """Returns AlexNet with random weights."""
    return AlexNet(num_classes)
