"""Tiny networks of kinds that users import, and torch's two ONNX exporters without any of cnnserve's code."""

import contextlib
import io
import logging
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

SIDE = 16
CLASSES = 5


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int, gate: nn.Module) -> None:
        super().__init__()
        self.squeeze = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, 2, 1), nn.ReLU())
        self.excite = nn.Sequential(nn.Conv2d(2, channels, 1), gate)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.excite(self.squeeze(x))


class InvertedResidual(nn.Module):
    """More channels, a convolution of each channel, weights for the channels, fewer channels, sum with the input."""

    def __init__(self, channels: int, activation: type[nn.Module], gate: nn.Module) -> None:
        super().__init__()
        wide = 3 * channels
        self.body = nn.Sequential(
            *(nn.Conv2d(channels, wide, 1, bias=False), nn.BatchNorm2d(wide), activation()),
            *(nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False), nn.BatchNorm2d(wide), activation()),
            SqueezeExcite(wide, gate),
            *(nn.Conv2d(wide, channels, 1, bias=False), nn.BatchNorm2d(channels)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class DenseBlock(nn.Module):
    def __init__(self, channels: int, growth: int, depth: int) -> None:
        super().__init__()
        widths = [channels + growth * number for number in range(depth)]
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, growth, 3, padding=1)) for width in widths
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.cat([x, layer(x)], dim=1)
        return x


class Classifier(nn.Module):
    """From (N, 3, 16, 16) to logits (N, 5). Flattening uses the batch size, so that a trace may fix it."""

    def __init__(self, body: nn.Module, channels: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.body = body
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(channels, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.body(self.stem(x)))
        return self.head(x.view(x.size(0), -1))


def network(kind: str) -> nn.Module:
    """Returns `mobilenet`, `densenet` or `efficientnet` in eval mode, with running statistics of one pass."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if kind == "densenet":
            body = nn.Sequential(DenseBlock(8, 4, 2), nn.Conv2d(16, 8, 1), nn.AvgPool2d(2), DenseBlock(8, 4, 2))
            made = Classifier(body, 16)
        else:
            activation, gate = (nn.Hardswish, nn.Hardsigmoid()) if kind == "mobilenet" else (nn.SiLU, nn.Sigmoid())
            made = Classifier(InvertedResidual(8, activation, gate), 8)
        made.train()(torch.randn(16, 3, SIDE, SIDE))
        for parameter in made.head.parameters():
            # Larger weights, so that probabilities differ from image to image.
            nn.init.normal_(parameter, std=2)
        return made.eval()


def onnx_file(
    path: Path, made: nn.Module, *, legacy: bool = True, dynamic: bool = True, example: Tensor | None = None
) -> Path:
    """Exports `made` with torch's exporter and returns the file. The input is named `pixels`, the output `scores`."""
    if example is None:
        example = torch.zeros(2 if dynamic else 1, 3, SIDE, SIDE)
    names = {"input_names": ["pixels"], "output_names": ["scores"]}
    disabled = logging.root.manager.disable
    # torch's warnings about its own exporters do not concern the tests.
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        if legacy:
            axes = {"pixels": {0: "n"}, "scores": {0: "n"}} if dynamic else None
            torch.onnx.export(made, (example,), path, dynamo=False, dynamic_axes=axes, opset_version=17, **names)
        else:
            shapes = ({0: torch.export.Dim("n")},) if dynamic else None
            torch.onnx.export(
                made, (example,), path, dynamo=True, dynamic_shapes=shapes, external_data=False, verbose=False, **names
            )
        logging.disable(disabled)
    return path
