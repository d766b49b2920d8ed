"""The flags of the commands, with their defaults. Imports nothing heavy: `--help` answers at once."""

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
    """The flags of `cnnserve export`."""
    parser = argparse.ArgumentParser(
        prog="cnnserve export",
        description="Converts a network to ONNX, proves it equal to PyTorch and publishes it into a model repository.",
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
        "package.module:factory, found as python -m would: an nn.Module, or a class or function that makes one",
    )
    parser.add_argument(
        "--weights",
        type=_utf8,
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
    parser.add_argument(
        "--num-classes",
        type=_positive,
        metavar="N",
        help="classes of the network (default: 1000, lenet5 10); your own factory gets it as its only argument, "
        "and none without it",
    )
    _add_labels(parser)
    _add_target(parser, default_name="ARCH, or the factory's")
    _add_preprocessing(parser, "needed for your own network; a built-in one has its own, which these change")
    parser.add_argument(
        "--input",
        choices=INPUT_FORMS,
        default=INPUT_FORMS[0],
        help="uint8: NHWC pixels, normalised inside the graph; float32: NCHW, normalised before it (default: uint8)",
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
    """The flags of `cnnserve import`."""
    parser = argparse.ArgumentParser(
        prog="cnnserve import",
        description="""Checks an ONNX classifier that was made elsewhere and publishes it into a model repository.
It takes one image tensor, float32 or uint8, and answers logits or probabilities. What is published answers,
at every batch size, what the file answers to one image at a time.""",
        epilog="""example:
  cnnserve import mobilenet.onnx --labels imagenet --repository models \\
      --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225 --resize 256""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", type=_path, metavar="FILE", help="the ONNX file; external data may lie beside it")
    _add_labels(parser)
    _add_target(parser, default_name="the file's")
    _add_preprocessing(parser, "how images become the file's input; --mean and --std are needed where that is float32")
    _add_proof(parser)
    return parser


def given(arguments: argparse.Namespace) -> Given:
    """What the preprocessing flags said."""
    return Given(**{field.name: getattr(arguments, field.name) for field in dataclasses.fields(Given)})


def train_parser() -> argparse.ArgumentParser:
    """The flags of `cnnserve train-lenet`."""
    parser = argparse.ArgumentParser(
        prog="cnnserve train-lenet",
        description="Trains LeNet-5 on scikit-learn's scanned digits and publishes it into a model repository.",
    )
    _add_target(parser, default_name="lenet5")
    parser.add_argument("--save-weights", type=_path, metavar="FILE", help="also save the state dict here")
    parser.add_argument(
        "--epochs", type=_positive, default=_EPOCHS, metavar="N", help=f"passes over the digits (default: {_EPOCHS})"
    )
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and augmentation (default: 0)")
    return parser


def _add_target(parser: argparse.ArgumentParser, default_name: str) -> None:
    parser.add_argument(
        "--repository",
        type=_path,
        default=_REPOSITORY,
        metavar="DIR",
        help=f"model repository (default: {_REPOSITORY})",
    )
    parser.add_argument("--name", help=f"name of the served model (default: {default_name})")
    parser.add_argument("--version", type=_positive, metavar="N", help="version to publish (default: the next one)")


def _add_labels(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--labels",
        type=_label_file,
        metavar="FILE",
        help=f"UTF-8 text file with one label a line; {_IMAGENET}: the built-in list of the 1,000 ImageNet labels "
        f"(./{_IMAGENET} is a file)",
    )


def _add_preprocessing(parser: argparse.ArgumentParser, description: str) -> None:
    group = parser.add_argument_group("preprocessing", description)
    group.add_argument("--shape", type=_shape, metavar="C,H,W", help="the network's input for one image")
    group.add_argument(
        "--mean", type=_numbers, metavar="M,M,M", help="subtracted from pixels of 0 to 1, a value for each channel"
    )
    group.add_argument(
        "--std",
        type=_numbers,
        metavar="S,S,S",
        help="divided by after that; a network that takes 0 to 255 has mean 0 and std 0.003921569 (1/255)",
    )
    group.add_argument(
        "--resize",
        type=_sizes,
        metavar="N|H,W",
        help="N: the shorter side becomes N, the middle is used; H,W: exactly that (default: H,W of the input)",
    )
    group.add_argument(
        "--crop", type=_sizes, metavar="N|H,W", help="the middle that is used after --resize (default: the input's H,W)"
    )
    group.add_argument("--interpolation", choices=("bilinear", "bicubic"), help="of --resize (default: bilinear)")
    group.add_argument(
        "--color", choices=("RGB", "BGR", "L"), help="order of channels (default: RGB; L, grey, for one)"
    )
    group.add_argument(
        "--activation",
        choices=ACTIVATIONS,
        default=ACTIVATIONS[0],
        help="auto: a softmax is added unless answers are probabilities; softmax: it is added even where all values "
        "are within 0 and 1 (default: auto)",
    )


def _add_proof(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max-batch-size",
        type=_batch_size,
        default=DEFAULT_MAX_BATCH_SIZE,
        metavar="N",
        help=f"largest batch, proved equal (1 to {LARGEST_BATCH_SIZE}, default: {DEFAULT_MAX_BATCH_SIZE})",
    )
    parser.add_argument(
        "--golden", type=_path, metavar="FILE", help="image the server repeats before serving (default: a built-in one)"
    )


def _add_precision(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default=PRECISIONS[0],
        help="fp16 for NVIDIA GPUs, int8 for CPUs; published only where it agrees with fp32 (default: fp32)",
    )
    parser.add_argument(
        "--calibration",
        type=_path,
        metavar="DIR",
        help="int8: images like those the model will be sent, also in sub-folders",
    )
    parser.add_argument(
        "--evaluation",
        type=_path,
        metavar="DIR",
        help="images to measure the agreement on; in sub-folders named by class also the accuracy "
        "(default: int8 the calibration images, fp16 built-in pictures)",
    )
    parser.add_argument(
        "--min-agreement",
        type=_share,
        metavar="SHARE",
        help="share of images on which the most probable class must be fp32's "
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
    # ONNX Runtime opens no other path, and the manifest could not name it.
    try:
        text.encode()
    except UnicodeEncodeError as error:
        shown = os.fsencode(text).decode(errors="backslashreplace")
        raise argparse.ArgumentTypeError(f"the path {shown} is not UTF-8; rename it") from error
    return text


def _share(text: str) -> float:
    value = _converted(text, float, "a number from 0 to 1")
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to 1")
    return value


def _positive(text: str) -> int:
    return _converted(text, _size, "a whole number of at least 1")


def _batch_size(text: str) -> int:
    value = _positive(text)
    if value > LARGEST_BATCH_SIZE:
        raise argparse.ArgumentTypeError(f"{value} is too large to be proved; {LARGEST_BATCH_SIZE} is the largest")
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
        raise argparse.ArgumentTypeError(f"{value} is not at least 1")
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
