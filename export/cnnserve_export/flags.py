"""The flags of the commands, with their defaults. Imports nothing heavy: `--help` answers at once."""

import argparse
from pathlib import Path

from cnnserve_export.contract import DEFAULT_MAX_BATCH_SIZE, DEFAULT_OPSET, INPUT_FORMS, OPSETS

_REPOSITORY = Path("models")
_EPOCHS = 30


def export_parser() -> argparse.ArgumentParser:
    """The flags of `cnnserve export`."""
    parser = argparse.ArgumentParser(
        prog="cnnserve export",
        description="Converts a network to ONNX, proves it equal to PyTorch and publishes it into a model repository.",
        epilog="Example: cnnserve export resnet50 --weights imagenet --repository models",
    )
    parser.add_argument(
        "architecture",
        metavar="ARCH",
        help="lenet5, alexnet, googlenet, resnet18, resnet34, resnet50, resnet101 or resnet152",
    )
    parser.add_argument(
        "--weights",
        metavar="FILE",
        help="checkpoint, .pth, .pt or .safetensors; or imagenet, imagenet-v1, imagenet-v2: torchvision's published "
        "weights with their preprocessing and labels, downloaded once (default: random, seed 0)",
    )
    parser.add_argument(
        "--transform-input",
        action="store_true",
        help="googlenet only: the weights expect values from -1 to 1, as those ported from TensorFlow do "
        "(torchvision's published file is recognised)",
    )
    parser.add_argument("--labels", type=Path, metavar="FILE", help="class names, UTF-8, one per line")
    parser.add_argument(
        "--num-classes", type=_positive, metavar="N", help="classes of the network (default: 1000, lenet5 10)"
    )
    _add_target(parser, default_name="ARCH")
    parser.add_argument(
        "--input",
        choices=INPUT_FORMS,
        default=INPUT_FORMS[0],
        help="uint8: NHWC pixels, normalised inside the graph; float32: NCHW, normalised before it (default: uint8)",
    )
    parser.add_argument(
        "--max-batch-size",
        type=_positive,
        default=DEFAULT_MAX_BATCH_SIZE,
        metavar="N",
        help=f"largest batch, proved equal (default: {DEFAULT_MAX_BATCH_SIZE})",
    )
    parser.add_argument(
        "--golden", type=Path, metavar="FILE", help="image the server repeats before serving (default: a built-in one)"
    )
    parser.add_argument(
        "--opset",
        type=int,
        choices=OPSETS,
        default=DEFAULT_OPSET,
        metavar="N",
        help=f"ONNX operator set, {OPSETS[0]} to {OPSETS[-1]} (default: {DEFAULT_OPSET})",
    )
    return parser


def train_parser() -> argparse.ArgumentParser:
    """The flags of `cnnserve train-lenet`."""
    parser = argparse.ArgumentParser(
        prog="cnnserve train-lenet",
        description="Trains LeNet-5 on scikit-learn's scanned digits and publishes it into a model repository.",
    )
    _add_target(parser, default_name="lenet5")
    parser.add_argument("--save-weights", type=Path, metavar="FILE", help="also save the state dict here")
    parser.add_argument(
        "--epochs", type=_positive, default=_EPOCHS, metavar="N", help=f"passes over the digits (default: {_EPOCHS})"
    )
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and augmentation (default: 0)")
    return parser


def _add_target(parser: argparse.ArgumentParser, default_name: str) -> None:
    parser.add_argument(
        "--repository", type=Path, default=_REPOSITORY, metavar="DIR", help=f"model repository (default: {_REPOSITORY})"
    )
    parser.add_argument("--name", help=f"name of the served model (default: {default_name})")
    parser.add_argument("--version", type=_positive, metavar="N", help="version to publish (default: the next one)")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not at least 1")
    return value
