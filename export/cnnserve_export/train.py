"""Trains LeNet-5 on the scanned digits of scikit-learn, in less than a minute for 30 epochs."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from cnnserve.images.preprocessing import Preprocessor
from cnnserve.repository.manifest import Preprocessing
from cnnserve_export import checkpoints
from cnnserve_export.architectures import ARCHITECTURES, DIGITS
from cnnserve_export.contract import contract
from cnnserve_export.digits import held_out_digits, training_digits

__all__ = ["LABELS", "Trained", "accuracy", "fit", "held_out_digits", "rows", "train_lenet5"]

LABELS = tuple("0123456789")
_BATCH = 32
_PEAK_RATE = 3e-3
_WEIGHT_DECAY = 1e-2
# Largest shift (share of the side: 3 of 28 pixels), largest zoom (share of the size) and largest turn (radians: 9
# degrees) of a varied image.
_SHIFT, _ZOOM, _TURN = 3 / 28, 0.1, 0.16


@dataclass(frozen=True)
class Trained:
    """The network in eval mode, its accuracy (0 to 1) on the held-out digits, and its origin for the manifest."""

    network: nn.Module
    accuracy: float
    origin: dict[str, str]


# Called after each epoch with its number, from 1, and its mean loss.
Report = Callable[[int, float], None]


def _no_report(_epoch: int, _loss: float) -> None:
    """Does nothing."""


def train_lenet5(epochs: int, seed: int = 0, report: Report = _no_report) -> Trained:
    """Returns a LeNet-5 that is trained on the 1,437 training digits.

    The same seed gives the same weights on the same machine.
    """
    images, labels = rows(training_digits())
    network = checkpoints.build(ARCHITECTURES["lenet5"], len(LABELS), seed)
    # Sums over several threads depend on the number of threads, and images this small gain nothing from a second
    # thread.
    with _one_thread():
        fit(network, images, labels, epochs=epochs, peak_rate=_PEAK_RATE, seed=seed, report=report)
        reached = accuracy(network, *rows(held_out_digits()))
    return Trained(network, reached, _origin(epochs, seed, reached))


def fit(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epochs: int,
    peak_rate: float,
    seed: int = 0,
    report: Report = _no_report,
) -> None:
    """Trains `network` in place on images (N, C, H, W) with labels (N); each image is varied a little every time."""
    network.train()
    steps = epochs * -(-len(images) // _BATCH)
    optimizer = torch.optim.AdamW(network.parameters(), lr=peak_rate, weight_decay=_WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=peak_rate, total_steps=steps)
    random = torch.Generator().manual_seed(seed)
    for epoch in range(1, epochs + 1):
        losses = []
        for batch in torch.split(torch.randperm(len(images), generator=random), _BATCH):
            losses.append(_step(network, optimizer, _vary(images[batch], random), labels[batch]))
            schedule.step()
        report(epoch, sum(losses) / len(losses))


def rows(digits: Sequence[tuple[bytes, int]], preprocessing: Preprocessing = DIGITS) -> tuple[Tensor, Tensor]:
    """Returns images (N, C, H, W), made by the server's own preprocessing, and labels (N)."""
    trained_on = contract(preprocessing, "float32", len(LABELS))
    preprocessor = Preprocessor(trained_on.preprocessing, trained_on.input)
    images = torch.from_numpy(np.stack([preprocessor.encoded(png) for png, _ in digits]))
    return images, torch.tensor([label for _, label in digits])


def accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Returns the share of images (N, C, H, W) whose largest logit is that of the label; sets eval mode."""
    with torch.inference_mode():
        return float((network.eval()(images).argmax(dim=1) == labels).float().mean())


def _origin(epochs: int, seed: int, reached: float) -> dict[str, str]:
    return {
        "source": "trained",
        "data": "scikit-learn load_digits, 1437 of 1797",
        "epochs": str(epochs),
        "seed": str(seed),
        "held_out_accuracy": f"{reached:.4f}",
    }


def _step(network: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> float:
    loss = functional.cross_entropy(network(images), labels, label_smoothing=0.05)
    optimizer.zero_grad()
    torch.autograd.backward(loss)
    optimizer.step()
    return loss.item()


def _vary(images: Tensor, random: torch.Generator) -> Tensor:
    """Returns the images (N, 1, H, W), each shifted, turned and scaled a little; border pixels continue outside."""
    count = len(images)
    turn, zoom, shift_x, shift_y = torch.rand((4, count), generator=random) * 2 - 1
    angle, scale = turn * _TURN, 1 + zoom * _ZOOM
    cosine, sine = torch.cos(angle) * scale, torch.sin(angle) * scale
    # affine_grid measures in halves of the image, so the shift is doubled.
    top = torch.stack([cosine, -sine, shift_x * 2 * _SHIFT], dim=1)
    bottom = torch.stack([sine, cosine, shift_y * 2 * _SHIFT], dim=1)
    grid = functional.affine_grid(torch.stack([top, bottom], dim=1), list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
