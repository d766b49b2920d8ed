"""The flags that all client commands share, and the `Client` that they describe."""

import argparse
import difflib
import os
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from cnnserve_client.errors import InvalidInputError
from cnnserve_client.security import Tls
from cnnserve_client.target import DEFAULT_ADDRESS, checked_timeout

if TYPE_CHECKING:
    from cnnserve_client.client import Client

# How argparse begins the text about arguments that it does not know.
_UNKNOWN = "unrecognized arguments: "
_TOKEN_VARIABLE = "CNNSERVE_TOKEN"  # noqa: S105 - the variable's name


class Parser(argparse.ArgumentParser):
    """argparse's parser, but a wrong command line prints one line, with the nearest flag."""

    def error(self, message: str) -> NoReturn:
        """Prints what is wrong in one line, and exits with status 2."""
        if message.startswith(_UNKNOWN):
            words = message.removeprefix(_UNKNOWN).split(" ")
            word = next((word for word in words if word.startswith("-")), words[0]).partition("=")[0]
            flags = [flag for action in self._actions for flag in action.option_strings]
            near = difflib.get_close_matches(word, flags, 1, 0.7)
            message = f"unknown flag {word}" if word.startswith("-") else f"unexpected argument {word!r}"
            message += "".join(f"; did you mean {flag}?" for flag in near)
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def client_parser(command: str, description: str, *, timeout_s: float) -> argparse.ArgumentParser:
    """Returns a parser with the flags for the address, TLS and token. `timeout_s` is the default of `--timeout-s`."""
    parser = Parser(prog=f"cnnserve {command}", description=description, allow_abbrev=False)
    parser.add_argument(
        "--address",
        default=DEFAULT_ADDRESS,
        metavar="HOST:PORT",
        help="address of the server's gRPC port, or several addresses separated by commas (default: %(default)s)",
    )
    parser.add_argument(
        "--timeout-s",
        type=_seconds,
        default=timeout_s,
        metavar="S",
        help="timeout of a request in seconds (default: %(default)g)",
    )
    secure = parser.add_argument_group("TLS and token")
    secure.add_argument(
        "--tls", action="store_true", help="use TLS; --root-certificates and --certificate also switch TLS on"
    )
    secure.add_argument(
        "--root-certificates",
        metavar="FILE",
        help="PEM file with the certificates of the authorities to trust (default: the ones that come with gRPC)",
    )
    secure.add_argument("--certificate", metavar="FILE", help="PEM file with the certificate of this client")
    secure.add_argument("--key", metavar="FILE", help="PEM file with the private key of --certificate")
    secure.add_argument(
        "--token-file",
        metavar="FILE",
        help=f"file with the token to send (default: the token in the environment variable {_TOKEN_VARIABLE})",
    )
    secure.add_argument(
        "--token-over-plain-text",
        action="store_true",
        help="allow sending the token to other machines without TLS (default: only to this machine)",
    )
    return parser


def connect(args: argparse.Namespace, *, retries: int = 4) -> "Client":
    """Returns a client with the settings of the flags. Raises `InvalidInputError` if they are wrong."""
    from cnnserve_client.client import Client  # noqa: PLC0415 - imports grpc, which --help does not need

    tls = Tls(args.root_certificates, args.certificate, args.key) if _names_tls(args) else args.tls
    return Client(
        args.address,
        timeout_s=args.timeout_s,
        tls=tls,
        token=token_of(args),
        token_over_plain_text=args.token_over_plain_text,
        retries=retries,
    )


def _names_tls(args: argparse.Namespace) -> bool:
    return any((args.root_certificates, args.certificate, args.key))


def token_of(args: argparse.Namespace) -> str:
    """Returns the token of `--token-file` or of the environment, empty for none. Raises `InvalidInputError`."""
    # No flag takes the token itself, because other users of the machine can see the flags of a process.
    if args.token_file is None:
        return os.environ.get(_TOKEN_VARIABLE, "")
    try:
        return Path(args.token_file).read_text(encoding="utf-8-sig").strip()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise InvalidInputError(f"--token-file: cannot read {args.token_file!r}: {reason}") from error


def _seconds(text: str) -> float:
    try:
        return checked_timeout(float(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no timeout: use seconds, above 0 and at most 1e9") from error
