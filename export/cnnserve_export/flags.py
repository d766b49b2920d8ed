"""The flags of the commands, with their defaults. It imports no large packages, so that `--help` is fast."""

import argparse
import dataclasses
from pathlib import Path

from cnnserve.config.spelling import Once, Parser, add_old_name
from cnnserve_export import flag_types, image_flags
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
from cnnserve_export.flag_types import IMAGENET
from cnnserve_export.preparation import Given

_REPOSITORY = Path("models")
_EPOCHS = 30


def export_parser() -> argparse.ArgumentParser:
    """Returns the parser for the flags of `cnnserve export`."""
    parser = Parser(
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
        type=flag_types.utf8_text,
        metavar="FILE",
        help="checkpoint (.pth, .pt or .safetensors); or imagenet, imagenet-v1 or imagenet-v2: torchvision's published "
        "weights with their preprocessing and labels, downloaded once (default: random weights from seed 0, or those "
        "that your own network comes with)",
    )
    parser.add_argument(
        "--weights-key",
        type=flag_types.utf8_text,
        metavar="KEY",
        help="which weights to take from a checkpoint that holds several, such as model_ema: a key of the checkpoint, "
        "or the first part of the names (default: what training scripts usually call them)",
    )
    parser.add_argument(
        "--transform-input",
        action="store_true",
        help="expect weights for values from -1 to 1, as those ported from TensorFlow are; googlenet only (not needed "
        "for torchvision's published file, which is recognised)",
    )
    parser.add_argument(
        "--num-classes",
        type=flag_types.positive,
        metavar="N",
        help="number of classes (default: 1000, lenet5: 10); the only argument of your own factory, which is called "
        "without arguments by default",
    )
    _add_labels(parser, default="those of published weights, else those of the newest version, else none")
    _add_target(parser, default_name="ARCH, or the name of the factory")
    image_flags.add(parser, "needed for your own network; for a built-in architecture they change its preprocessing")
    parser.add_argument(
        "--activation",
        choices=ACTIVATIONS,
        default=ACTIVATIONS[0],
        help="auto: add a softmax unless the network returns probabilities or ends in a sigmoid; softmax: add a "
        "softmax even if all values are within 0 and 1; sigmoid: add a sigmoid, for classes that are independent of "
        "each other (default: auto)",
    )
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
    _add_signing(parser)
    return parser


def import_parser() -> argparse.ArgumentParser:
    """Returns the parser for the flags of `cnnserve import`."""
    parser = Parser(
        prog="cnnserve import",
        description="""Check an existing ONNX classifier and publish it in a model repository.
The file takes one image tensor, float32 or uint8, and returns logits or probabilities. The published version
returns, in all batch sizes that are compared, what the file returns for one image at a time.""",
        epilog="""example:
  cnnserve import mobilenet.onnx --labels imagenet --repository models \\
      --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225 --resize 256""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "file", type=flag_types.path, metavar="FILE", help="ONNX file; external data must be in the same folder"
    )
    _add_labels(parser, default="those of the newest version, else none")
    _add_target(parser, default_name="the name of the file")
    image_flags.add(
        parser, "how images become the input of the file; --mean and --std are needed if the input is float32"
    )
    parser.add_argument(
        "--output",
        metavar="NAME",
        help="output with the classes, if the file has several outputs (default: the only float output)",
    )
    parser.add_argument(
        "--activation",
        choices=ACTIVATIONS,
        default=ACTIVATIONS[0],
        help="auto: what the graph and the returned values show, with a softmax added to logits; softmax: add a "
        "softmax; sigmoid: add a sigmoid, for classes that are independent of each other (default: auto)",
    )
    parser.add_argument(
        "--evaluation",
        type=flag_types.path,
        metavar="DIR",
        help="folder of images in sub-folders named by label or class number, to measure the accuracy and to try other "
        "preprocessing on (default: none)",
    )
    _add_proof(parser)
    _add_signing(parser)
    return parser


def copy_parser() -> argparse.ArgumentParser:
    """The flags of `cnnserve copy`."""
    parser = Parser(
        prog="cnnserve copy",
        description="Publish a copy of a version under another name or number. The copy has the same files, and a "
        "manifest that names the version from which it was copied.",
        epilog="Example: cnnserve copy models/resnet50/3 models/birds",
    )
    _add_source(parser)
    parser.add_argument(
        "to",
        type=flag_types.path,
        metavar="TO",
        help="model folder, in which the next version is published, or a version folder MODEL/N that does not exist",
    )
    _add_signing(parser)
    return parser


def upgrade_parser() -> argparse.ArgumentParser:
    """The flags of `cnnserve upgrade`."""
    parser = Parser(
        prog="cnnserve upgrade",
        description="Publish a version of contract 1 as the next version of its model, with the same files and "
        "contract 2: the server then compares logarithms of the golden probabilities, too.",
        epilog="Example: cnnserve upgrade models/resnet50",
    )
    _add_source(parser)
    _add_signing(parser)
    return parser


def sign_parser() -> argparse.ArgumentParser:
    """The flags of `cnnserve sign`."""
    parser = Parser(
        prog="cnnserve sign",
        description="""Sign a version, or the files of a model beside its versions, for cnnserve serve --trusted-keys.
The signature is the file model.sig in the folder, a bundle of OpenSSF's model-signing.""",
        epilog="""examples:
  openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out key.pem
  cnnserve sign models/resnet50/1 --key key.pem
  cnnserve sign models/resnet50 --key key.pem""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "path",
        type=flag_types.path,
        metavar="PATH",
        help="version folder, all of whose files are signed; or model folder, for config.pbtxt, configs, labels, "
        "version_labels.json and all other files beside its versions",
    )
    parser.add_argument(
        "--key",
        type=flag_types.path,
        metavar="FILE",
        required=True,
        help="private key of the curve P-256, P-384 or P-521, in PEM, not encrypted",
    )
    parser.add_argument(
        "--certificate",
        type=flag_types.path,
        metavar="FILE",
        help="certificate of the key, in PEM, followed by those that lead to a trusted one (default: sign with the key "
        "alone)",
    )
    return parser


def _add_signing(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--sign-key",
        type=flag_types.path,
        metavar="FILE",
        help="private key to sign the version with, as cnnserve sign does, and the model's files if the version is its "
        "first (default: publish without a signature)",
    )
    parser.add_argument(
        "--sign-certificate", type=flag_types.path, metavar="FILE", help="certificate of --sign-key (default: none)"
    )


def _add_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path", type=flag_types.path, metavar="PATH", help="version folder, or model folder for its newest version"
    )


def given(arguments: argparse.Namespace) -> Given:
    """Returns the values of the preprocessing flags."""
    return Given(**{field.name: getattr(arguments, field.name) for field in dataclasses.fields(Given)})


def train_parser() -> argparse.ArgumentParser:
    """Returns the parser for the flags of `cnnserve train-lenet`."""
    parser = Parser(
        prog="cnnserve train-lenet",
        description="Train LeNet-5 on the scanned digits of scikit-learn and publish it in a model repository.",
    )
    _add_target(parser, default_name="lenet5")
    parser.add_argument(
        "--save-weights", type=flag_types.path, metavar="FILE", help="also save the state dict in this file"
    )
    parser.add_argument(
        "--epochs",
        type=flag_types.positive,
        default=_EPOCHS,
        metavar="N",
        help=f"number of passes over the digits (default: {_EPOCHS})",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, order and augmentation (default: 0)")
    return parser


def _add_target(parser: argparse.ArgumentParser, default_name: str) -> None:
    parser.add_argument(
        "--repository",
        action=Once,
        type=flag_types.path,
        default=_REPOSITORY,
        metavar="DIR",
        help=f"folder of the model repository (default: {_REPOSITORY})",
    )
    add_old_name(parser, "--model-repository", "repository", type=flag_types.path)
    parser.add_argument("--name", help=f"name of the served model (default: {default_name})")
    parser.add_argument(
        "--version", type=flag_types.positive, metavar="N", help="number of the version (default: the next number)"
    )


def _add_labels(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument(
        "--labels",
        type=flag_types.label_file,
        metavar="FILE",
        help="UTF-8 text file with one label a line, or index_to_name.json of TorchServe, or config.json of Hugging "
        f"Face; {IMAGENET}: the built-in list of the 1,000 ImageNet labels (./{IMAGENET} means a file); "
        f"default: {default}",
    )
    parser.add_argument(
        "--allow-empty-labels",
        action="store_true",
        help="publish labels that are empty, all the same, or hold control characters (default: refuse them)",
    )


def _add_proof(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max-batch-size",
        type=flag_types.batch_size,
        default=DEFAULT_MAX_BATCH_SIZE,
        metavar="N",
        help="largest batch to check and to serve, in images "
        f"(1 to {LARGEST_BATCH_SIZE}, default: {DEFAULT_MAX_BATCH_SIZE})",
    )
    parser.add_argument(
        "--golden",
        type=flag_types.path,
        metavar="PATH",
        help="golden image, which the self-test of the server must repeat, or a folder of up to 32 small ones "
        "(default: a built-in set of eight or nine)",
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
        type=flag_types.path,
        metavar="DIR",
        help="folder of images like those that clients will send, for int8 only; sub-folders count",
    )
    parser.add_argument(
        "--evaluation",
        type=flag_types.path,
        metavar="DIR",
        help="folder of images to measure the agreement with fp32, and the accuracy if sub-folders are named by class "
        "(default: for int8 the calibration images, for fp16 built-in pictures)",
    )
    parser.add_argument(
        "--min-agreement",
        type=flag_types.share,
        metavar="SHARE",
        help="agreement needed: share of images with the same top class as in fp32 "
        f"(0 to 1, default: {DEFAULT_MIN_AGREEMENT})",
    )
