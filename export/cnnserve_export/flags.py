"""The flags of the commands, with their defaults. It imports no large packages, so that `--help` is fast."""

import argparse
import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from cnnserve_export import labels
from cnnserve_export.contract import (
    ACTIVATIONS,
    DEFAULT_MAX_BATCH_SIZE,
    DEFAULT_MIN_AGREEMENT,
    DEFAULT_OPSET,
    INPUT_FORMS,
    LARGEST_BATCH_SIZE,
    OPSETS,
    PRECISIONS,
)
from cnnserve_export.preparation import Given

_T = TypeVar("_T")

_REPOSITORY = Path("models")
_EPOCHS = 30
_IMAGENET = "imagenet"


def export_parser() -> argparse.ArgumentParser:
    """Returns the parser for the flags of `cnnserve export`."""
    parser = argparse.ArgumentParser(
        prog="cnnserve export",
        description="Convert a network to ONNX, compare the file with PyTorch and publish it in a model repository.",
        epilog="""examples:
  cnnserve export resnet50 --weights imagenet --repository models
  cnnserve export nets.birds:make --weights birds.pth --labels birds.txt --shape 3,224,224 \\
      --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225 --resize 256""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "architecture",
        metavar="ARCH",
        help="lenet5, alexnet, googlenet, resnet18, resnet34, resnet50, resnet101 or resnet152; or your own network as "
        "package.module:factory: an nn.Module, or a class or function that makes one, found as python -m finds modules",
    )
    parser.add_argument(
        "--weights",
        type=_utf8,
        metavar="FILE",
        help="checkpoint (.pth, .pt or .safetensors); or imagenet, imagenet-v1 or imagenet-v2: torchvision's published "
        "weights with their preprocessing and labels, downloaded once (default: random weights from seed 0, or those "
        "that your own network comes with)",
    )
    parser.add_argument(
        "--transform-input",
        action="store_true",
        help="expect weights for values from -1 to 1, as those ported from TensorFlow are; googlenet only (not needed "
        "for torchvision's published file, which is recognised)",
    )
    parser.add_argument(
        "--num-classes",
        type=_positive,
        metavar="N",
        help="number of classes (default: 1000, lenet5: 10); the only argument of your own factory, which is called "
        "without arguments by default",
    )
    _add_labels(parser, default="those of published weights, else none")
    _add_target(parser, default_name="ARCH, or the name of the factory")
    _add_preprocessing(parser, "needed for your own network; for a built-in architecture they change its preprocessing")
    parser.add_argument(
        "--input",
        choices=INPUT_FORMS,
        default=INPUT_FORMS[0],
        help="input of the model; uint8: NHWC pixels, which the graph normalises; float32: NCHW values, normalised "
        "before they reach the model (default: uint8)",
    )
    _add_proof(parser)
    parser.add_argument(
        "--opset",
        type=int,
        choices=OPSETS,
        default=DEFAULT_OPSET,
        metavar="N",
        help=f"ONNX operator set, {OPSETS[0]} to {OPSETS[-1]} (default: {DEFAULT_OPSET})",
    )
    _add_precision(parser)
    return parser


def import_parser() -> argparse.ArgumentParser:
    """Returns the parser for the flags of `cnnserve import`."""
    parser = argparse.ArgumentParser(
        prog="cnnserve import",
        description="""Check an existing ONNX classifier and publish it in a model repository.
The file takes one image tensor, float32 or uint8, and returns logits or probabilities. The published version
returns, in all batch sizes that are compared, what the file returns for one image at a time.""",
        epilog="""example:
  cnnserve import mobilenet.onnx --labels imagenet --repository models \\
      --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225 --resize 256""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", type=_path, metavar="FILE", help="ONNX file; external data must be in the same folder")
    _add_labels(parser, default="none")
    _add_target(parser, default_name="the name of the file")
    _add_preprocessing(
        parser, "how images become the input of the file; --mean and --std are needed if the input is float32"
    )
    _add_proof(parser)
    return parser


def copy_parser() -> argparse.ArgumentParser:
    """The flags of `cnnserve copy`."""
    parser = argparse.ArgumentParser(
        prog="cnnserve copy",
        description="Publish a copy of a version under another name or number. The copy has the same files, and a "
        "manifest that names the version from which it was copied.",
        epilog="Example: cnnserve copy models/resnet50/3 models/birds",
    )
    _add_source(parser)
    parser.add_argument(
        "to",
        type=_path,
        metavar="TO",
        help="model folder, in which the next version is published, or a version folder MODEL/N that does not exist",
    )
    return parser


def upgrade_parser() -> argparse.ArgumentParser:
    """The flags of `cnnserve upgrade`."""
    parser = argparse.ArgumentParser(
        prog="cnnserve upgrade",
        description="Publish a version of contract 1 as the next version of its model, with the same files and "
        "contract 2: the server then compares logarithms of the golden probabilities, too.",
        epilog="Example: cnnserve upgrade models/resnet50",
    )
    _add_source(parser)
    return parser


def _add_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path", type=_path, metavar="PATH", help="version folder, or model folder for its newest version"
    )


def given(arguments: argparse.Namespace) -> Given:
    """Returns the values of the preprocessing flags."""
    return Given(**{field.name: getattr(arguments, field.name) for field in dataclasses.fields(Given)})


def train_parser() -> argparse.ArgumentParser:
    """Returns the parser for the flags of `cnnserve train-lenet`."""
    parser = argparse.ArgumentParser(
        prog="cnnserve train-lenet",
        description="Train LeNet-5 on the scanned digits of scikit-learn and publish it in a model repository.",
    )
    _add_target(parser, default_name="lenet5")
    parser.add_argument("--save-weights", type=_path, metavar="FILE", help="also save the state dict in this file")
    parser.add_argument(
        "--epochs",
        type=_positive,
        default=_EPOCHS,
        metavar="N",
        help=f"number of passes over the digits (default: {_EPOCHS})",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, order and augmentation (default: 0)")
    return parser


def _add_target(parser: argparse.ArgumentParser, default_name: str) -> None:
    parser.add_argument(
        "--repository",
        type=_path,
        default=_REPOSITORY,
        metavar="DIR",
        help=f"folder of the model repository (default: {_REPOSITORY})",
    )
    parser.add_argument("--name", help=f"name of the served model (default: {default_name})")
    parser.add_argument(
        "--version", type=_positive, metavar="N", help="number of the version (default: the next number)"
    )


def _add_labels(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument(
        "--labels",
        type=_label_file,
        metavar="FILE",
        help=f"UTF-8 text file with one label a line; {_IMAGENET}: the built-in list of the 1,000 ImageNet labels "
        f"(./{_IMAGENET} means a file); default: {default}",
    )
    parser.add_argument(
        "--allow-empty-labels",
        action="store_true",
        help="publish labels that are empty, all the same, or hold control characters (default: refuse them)",
    )


def _add_preprocessing(parser: argparse.ArgumentParser, description: str) -> None:
    group = parser.add_argument_group("preprocessing", description)
    group.add_argument("--shape", type=_shape, metavar="C,H,W", help="input of the network for one image, in pixels")
    group.add_argument(
        "--mean",
        type=_numbers,
        metavar="M,M,M",
        help="mean of each channel on the scale from 0 to 1, which training subtracted",
    )
    group.add_argument(
        "--std",
        type=_numbers,
        metavar="S,S,S",
        help="standard deviation of each channel on the scale from 0 to 1, by which training divided; for a network "
        "that takes values of 0 to 255, use --mean 0 and --std 0.003921569 (1/255) for each channel",
    )
    group.add_argument(
        "--resize",
        type=_sizes,
        metavar="N|H,W",
        help="size of the resized image in pixels; N: the shorter side, the centre is kept; H,W: height and width "
        "(default: H,W of the input)",
    )
    group.add_argument(
        "--crop",
        type=_sizes,
        metavar="N|H,W",
        help="centre of the resized image to keep, in pixels (default: H,W of the input)",
    )
    group.add_argument(
        "--interpolation", choices=("bilinear", "bicubic"), help="interpolation of the resize (default: bilinear)"
    )
    group.add_argument(
        "--color",
        choices=("RGB", "BGR", "L"),
        help="order of the channels; L is grey (default: RGB, or L for one channel)",
    )
    group.add_argument(
        "--activation",
        choices=ACTIVATIONS,
        default=ACTIVATIONS[0],
        help="auto: add a softmax unless the network returns probabilities; softmax: add a softmax even if all values "
        "are within 0 and 1 (default: auto)",
    )


def _add_proof(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max-batch-size",
        type=_batch_size,
        default=DEFAULT_MAX_BATCH_SIZE,
        metavar="N",
        help="largest batch to check and to serve, in images "
        f"(1 to {LARGEST_BATCH_SIZE}, default: {DEFAULT_MAX_BATCH_SIZE})",
    )
    parser.add_argument(
        "--golden",
        type=_path,
        metavar="PATH",
        help="golden image, which the self-test of the server must repeat, or a folder of up to 32 small ones "
        "(default: a built-in image)",
    )


def _add_precision(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default=PRECISIONS[0],
        help="fp16 for NVIDIA GPUs, int8 for CPUs; published only if the agreement with fp32 suffices (default: fp32)",
    )
    parser.add_argument(
        "--calibration",
        type=_path,
        metavar="DIR",
        help="folder of images like those that clients will send, for int8 only; sub-folders count",
    )
    parser.add_argument(
        "--evaluation",
        type=_path,
        metavar="DIR",
        help="folder of images to measure the agreement with fp32, and the accuracy if sub-folders are named by class "
        "(default: for int8 the calibration images, for fp16 built-in pictures)",
    )
    parser.add_argument(
        "--min-agreement",
        type=_share,
        metavar="SHARE",
        help="agreement needed: share of images with the same top class as in fp32 "
        f"(0 to 1, default: {DEFAULT_MIN_AGREEMENT})",
    )


def _path(text: str) -> Path:
    return Path(_utf8(text))


def _label_file(text: str) -> Path:
    if text != _IMAGENET:
        return _path(text)
    if Path(text).is_file():
        raise argparse.ArgumentTypeError(
            f"{text!r} names the built-in list of ImageNet labels, but the current folder holds a file {text!r}, too; "
            f"write ./{text} for the file, or rename it"
        )
    return labels.IMAGENET_FILE


def _utf8(text: str) -> str:
    # ONNX Runtime cannot open other paths, and the manifest could not name them.
    try:
        text.encode()
    except UnicodeEncodeError as error:
        shown = os.fsencode(text).decode(errors="backslashreplace")
        raise argparse.ArgumentTypeError(f"the path {shown} is not UTF-8; rename it") from error
    return text


def _share(text: str) -> float:
    value = _converted(text, float, "a number from 0 to 1")
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not within 0 and 1")
    return value


def _positive(text: str) -> int:
    return _converted(text, _size, "a whole number of at least 1")


def _batch_size(text: str) -> int:
    value = _positive(text)
    if value > LARGEST_BATCH_SIZE:
        raise argparse.ArgumentTypeError(f"{value} is too large; the largest batch is {LARGEST_BATCH_SIZE}")
    return value


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(_each(text, float, "numbers such as 0.485,0.456,0.406"))


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(_each(text, _size, "N or H,W", counts=(1, 2)))


def _shape(text: str) -> tuple[int, ...]:
    return tuple(_each(text, _size, "C,H,W, without the batch", counts=(3,)))


def _size(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is too small; give at least 1")
    return value


def _converted(text: str, convert: Callable[[str], _T], expected: str) -> _T:
    try:
        return convert(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not {expected}") from error


def _each(text: str, convert: Callable[[str], _T], expected: str, counts: Sequence[int] = ()) -> list[_T]:
    values = _converted(text, lambda whole: [convert(part) for part in whole.split(",")], expected)
    if counts and len(values) not in counts:
        raise argparse.ArgumentTypeError(f"{text} has {len(values)} sizes, expected {expected}")
    return values
