"""The flags that all of the client's commands share, and the client that they ask for."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from cnnserve_client.errors import InvalidInputError
from cnnserve_client.security import Tls
from cnnserve_client.target import DEFAULT_ADDRESS, checked_timeout

if TYPE_CHECKING:
    from cnnserve_client.client import Client

_TOKEN_VARIABLE = "CNNSERVE_TOKEN"  # noqa: S105 - the variable's name


def client_parser(command: str, description: str, *, timeout_s: float) -> argparse.ArgumentParser:
    """A parser that knows where the server is and how to speak to it."""
    parser = argparse.ArgumentParser(prog=f"cnnserve {command}", description=description, allow_abbrev=False)
    parser.add_argument(
        "--address",
        default=DEFAULT_ADDRESS,
        metavar="HOST:PORT",
        help="the server's gRPC port; several with commas between them (default: %(default)s)",
    )
    parser.add_argument(
        "--timeout-s", type=_seconds, default=timeout_s, metavar="S", help="seconds per request (default: %(default)g)"
    )
    secure = parser.add_argument_group("encryption and identity")
    secure.add_argument("--tls", action="store_true", help="encrypt; the flags below with a certificate do so, too")
    secure.add_argument("--root-certificates", metavar="FILE", help="PEM file that vouches for the server")
    secure.add_argument("--certificate", metavar="FILE", help="this client's certificate, PEM")
    secure.add_argument("--key", metavar="FILE", help="its key, PEM")
    secure.add_argument(
        "--token-file", metavar="FILE", help=f"holds the token to send (default: the variable {_TOKEN_VARIABLE})"
    )
    secure.add_argument(
        "--token-over-plain-text", action="store_true", help="send it to other machines without encryption, too"
    )
    return parser


def connect(args: argparse.Namespace, *, retries: int = 4) -> "Client":
    """A client as the flags ask for it. Raises `InvalidInputError` for those that cannot be."""
    from cnnserve_client.client import Client  # noqa: PLC0415 - brings grpc along, which --help does without

    tls = Tls(args.root_certificates, args.certificate, args.key) if _names_tls(args) else args.tls
    return Client(
        args.address,
        timeout_s=args.timeout_s,
        tls=tls,
        token=_token(args),
        token_over_plain_text=args.token_over_plain_text,
        retries=retries,
    )


def _names_tls(args: argparse.Namespace) -> bool:
    return any((args.root_certificates, args.certificate, args.key))


def _token(args: argparse.Namespace) -> str:
    # Never a flag: other users of the machine see the flags of a process.
    if args.token_file is None:
        return os.environ.get(_TOKEN_VARIABLE, "")
    try:
        return Path(args.token_file).read_text().strip()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise InvalidInputError(f"token-file: cannot read {args.token_file!r}: {reason}") from error


def _seconds(text: str) -> float:
    try:
        return checked_timeout(float(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time above 0 seconds") from error
