"""`cnnserve pack` makes a pack of a version, `cnnserve pull` publishes versions from a pack or another source."""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from cnnserve.config.settings import ConfigError
from cnnserve.config.spelling import Parser
from cnnserve.errors import ModelLoadFailed
from cnnserve.repository.show_text import printable
from cnnserve.repository.signature import Trust
from cnnserve.sources import packing, trusting
from cnnserve.sources.errors import SourceError
from cnnserve.sources.pull import pull as pull_from
from cnnserve.sources.room import DEFAULT_GIB, GIB, Room


def pack(argv: Sequence[str]) -> int:
    """Runs `cnnserve pack` and returns its exit status: 0, 1 if there is no pack, 130 if it was interrupted."""
    return _guarded(_pack, pack_parser().parse_args(argv), "there is no pack")


def pull(argv: Sequence[str]) -> int:
    """Runs `cnnserve pull` and returns its exit status: 0, 1 if nothing was published, 130 if it was interrupted."""
    return _guarded(_pull, pull_parser().parse_args(argv), "nothing was published")


def pack_parser() -> argparse.ArgumentParser:
    """Returns the parser of `cnnserve pack`."""
    parser = Parser(
        prog="cnnserve pack",
        description="Make a pack of a version: an OCI image layout in the form of CNCF ModelPack.",
        epilog="Example: cnnserve pack models/resnet50/1 --output resnet50.tar",
    )
    parser.add_argument("path", type=Path, metavar="PATH", help="folder of a version with a manifest")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR|FILE.tar",
        required=True,
        help="folder of the layout, or a tar of it if the name ends in .tar; it must not exist",
    )
    parser.add_argument(
        "--modelcar",
        action="store_true",
        help="make a container image with the files in its folder models, for image volumes of Kubernetes and KServe "
        "(default: an artifact of CNCF ModelPack)",
    )
    return parser


def pull_parser() -> argparse.ArgumentParser:
    """Returns the parser of `cnnserve pull`."""
    parser = Parser(
        prog="cnnserve pull",
        description="Fetch versions, compare them with their digests and signatures, and publish them in a model "
        "repository.",
        epilog="Example: cnnserve pull oci://registry.example.org/models/resnet50:1 --repository models",
    )
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="folder or tar of a pack, folder of a version, a model or a model repository, oci://HOST/NAME:TAG or "
        "@sha256:…, s3://, gs://, az:// or hf:// of the same (extra remote), or https:// of a layout or a tar",
    )
    parser.add_argument(
        "--repository", type=Path, metavar="DIR", required=True, help="model repository in which to publish"
    )
    parser.add_argument(
        "--trusted-keys",
        type=Path,
        metavar="PATH",
        help="folder of public keys and certificates (PEM), or one such file: publish only what one of them has signed "
        "with cnnserve sign (default: signatures are not checked)",
    )
    parser.add_argument(
        "--max-size",
        type=_size,
        default=DEFAULT_GIB * GIB,
        metavar="GIB",
        help=f"largest size of the unpacked files in all, in GiB (default: {DEFAULT_GIB})",
    )
    parser.add_argument(
        "--send-credentials-to",
        action="append",
        default=[],
        metavar="HOST",
        help="send credentials also to this host, such as that of the registry's token service; repeat the flag for "
        "several (default: to the host of SOURCE only)",
    )
    return parser


def _pack(arguments: argparse.Namespace) -> None:
    made = packing.pack(arguments.path, arguments.output, modelcar=arguments.modelcar)
    content = f"{made.model} version {made.version}, {made.files} files, {made.size} bytes"
    print(printable(f"{arguments.output}: {content}, {made.digest}"))


def _pull(arguments: argparse.Namespace) -> None:
    arrived = pull_from(
        arguments.source,
        arguments.repository.absolute(),
        Room(arguments.max_size),
        _trust(arguments.trusted_keys),
        arguments.send_credentials_to,
    )
    absolute = arguments.repository.is_absolute()
    for note in dict.fromkeys(version.kept for version in arrived if version.kept):
        print(f"warning: {printable(note)}", file=sys.stderr)
    for version in arrived:
        folder = str(version.folder) if absolute else os.path.relpath(version.folder)
        if not version.new:
            print(f"{printable(folder)} is there already, with the same content", file=sys.stderr)
        print(printable(folder))


def _trust(path: Path | None) -> Trust | None:
    """Returns the trusted keys, if there are any."""
    if path is None:
        return None
    trusted = trusting.keys(path)
    for warning in trusted.warnings:
        print(f"warning: {printable(warning)}", file=sys.stderr)
    return trusted


def _size(text: str) -> int:
    try:
        number = float(text)
    except ValueError:
        number = -1
    if not 0 < number <= 1 << 20:
        raise argparse.ArgumentTypeError(f"{text!r} is no size in GiB, expected a number above 0")
    return int(number * GIB)


def _guarded(command: Callable[[argparse.Namespace], None], arguments: argparse.Namespace, outcome: str) -> int:
    # Orchestrators stop a process with SIGTERM. As after Ctrl-C, unfinished files are then removed.
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        command(arguments)
    except (SourceError, ModelLoadFailed, ConfigError, OSError) as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"interrupted; {outcome}", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, previous)
    return 0
