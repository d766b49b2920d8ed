"""Fine-tunes a ResNet-18 on your own images and exports it.

Each class has a sub-folder with its images, such as `flowers/daisy/1.jpg` and `flowers/rose/1.jpg`. A hundred images of
each class are a good start. Run this in the folder of the repository, with the extras `cpu` and `export`:

    python examples/fine_tune_resnet18.py flowers --repository models
    cnnserve serve --repository models
    cnnserve classify flowers/daisy --model flowers --top-k 1

The first command downloads torchvision's ImageNet weights once, into the cache of torch. It trains on four fifths of
the images and prints the accuracy on the others. If you have torchvision, its `resnet18` can take the place of the
built-in one: their parameters have the same names.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from cnnserve_export.architectures.resnet import resnet18

WEIGHTS = "https://download.pytorch.org/models/resnet18-f37072fd.pth"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BATCH = 16


def main() -> None:
    """Trains, saves `NAME.pth` and `NAME.txt`, and publishes the model NAME."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder with a sub-folder of images for each class")
    parser.add_argument("--repository", type=Path, default=Path("models"), help="model repository (default: models)")
    parser.add_argument("--epochs", type=int, default=5, help="passes over the images (default: 5)")
    parser.add_argument("--size", type=int, default=224, help="side of the network's input in pixels (default: 224)")
    arguments = parser.parse_args()
    name = arguments.folder.resolve().name

    labels = sorted(path.name for path in arguments.folder.iterdir() if path.is_dir())
    files = [(path, labels.index(path.parent.name)) for path in sorted(arguments.folder.glob("*/*"))]
    held_out, training = files[::5], [file for number, file in enumerate(files) if number % 5]
    torch.manual_seed(0)
    network = pretrained(len(labels))
    train(network, *read(training, arguments.size), arguments.epochs)
    print(f"accuracy on {len(held_out)} held-out images: {accuracy(network, *read(held_out, arguments.size)):.1%}")

    torch.save(network.state_dict(), f"{name}.pth")
    Path(f"{name}.txt").write_text("".join(f"{label}\n" for label in labels), encoding="utf-8")
    export(name, len(labels), arguments.size, arguments.repository)


def pretrained(classes: int) -> nn.Module:
    """Returns a ResNet-18 with ImageNet weights and a new last layer."""
    network = resnet18(1000)
    network.load_state_dict(torch.hub.load_state_dict_from_url(WEIGHTS, weights_only=True))
    network.fc = nn.Linear(512, classes)
    # Training, too, uses the means and variances of ImageNet: a few hundred images cannot replace them.
    return network.eval()


def read(files: list[tuple[Path, int]], size: int) -> tuple[Tensor, Tensor]:
    """Returns normalised images (N, 3, size, size) and the indices of their classes."""
    images = [np.asarray(pixels(path, size), np.float32) / 255 for path, _ in files]
    normalised = (np.stack(images) - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    return torch.from_numpy(normalised.transpose(0, 3, 1, 2).copy()), torch.tensor([index for _, index in files])


def pixels(path: Path, size: int) -> Image.Image:
    """Returns the image in the size of the input: what the server does for the flags in `export`."""
    with Image.open(path) as image:
        return ImageOps.exif_transpose(image).convert("RGB").resize((size, size), Image.Resampling.BILINEAR)


def train(network: nn.Module, images: Tensor, labels: Tensor, epochs: int) -> None:
    """Trains all layers; the new one learns faster."""
    old = [parameter for name, parameter in network.named_parameters() if not name.startswith("fc.")]
    optimizer = torch.optim.AdamW([{"params": old, "lr": 1e-4}, {"params": network.fc.parameters(), "lr": 1e-2}])
    for epoch in range(epochs):
        for chosen in torch.randperm(len(images)).split(BATCH):
            batch = images[chosen]
            if torch.rand(()) < 0.5:
                batch = batch.flip(3)
            loss = cross_entropy(network(batch), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch + 1} of {epochs}: loss {loss:.3f}")


@torch.inference_mode()
def accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Returns the share of images whose most probable class is theirs."""
    found = torch.cat([network(batch).argmax(1) for batch in images.split(BATCH)])
    return float((found == labels).float().mean())


def export(name: str, classes: int, size: int, repository: Path) -> None:
    """Runs `cnnserve export`. Its flags say how `pixels` and `read` made the input of the network."""
    flags = {
        "name": name,
        "repository": repository,
        "weights": f"{name}.pth",
        "labels": f"{name}.txt",
        "num-classes": classes,
        "shape": f"3,{size},{size}",
        "resize": f"{size},{size}",
    }
    command = [sys.executable, "-m", "cnnserve", "export", "resnet18"]
    subprocess.run([*command, *(f"--{flag}={value}" for flag, value in flags.items())], check=True)


if __name__ == "__main__":
    main()
