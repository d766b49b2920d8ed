"""`cnnserve token new NAME`: makes a token, and the line for the tokens file."""

import argparse
import secrets
from collections.abc import Sequence

from cnnserve.access.lists import digest_of, valid_name
from cnnserve.access.scopes import GIVEN, scopes_of
from cnnserve.config.spelling import Parser

_BYTES = 32
# So that programs which search for leaked secrets recognise it.
_PREFIX = "cnnserve_"


def main(arguments: Sequence[str]) -> int:
    """Runs `cnnserve token` and returns its exit status."""
    args = token_parser().parse_args(arguments)
    token = _PREFIX + secrets.token_urlsafe(_BYTES)
    scopes = ",".join(scope for scope in GIVEN if scope in args.scopes)
    print(f"token, shown only now: {token}")
    print(f"line for --tokens-file: {args.name} {scopes} {digest_of(token).hex()}")
    return 0


def token_parser() -> argparse.ArgumentParser:
    """Returns the parser of `cnnserve token`."""
    parser = Parser(
        prog="cnnserve token",
        description="Print a new token, and the line for --tokens-file of cnnserve serve, which has its SHA-256 only.",
    )
    parser.add_argument("command", choices=("new",), help="new: make a token")
    parser.add_argument("name", metavar="NAME", type=_name, help="name of the client in the file and in audit lines")
    parser.add_argument(
        "--scope",
        dest="scopes",
        metavar="SCOPE",
        required=True,
        type=_scopes,
        action="extend",
        help=f"what the token allows: {', '.join(GIVEN)}; several with commas between them, or repeat the flag",
    )
    return parser


def _name(text: str) -> str:
    if not valid_name(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not 1 to 64 letters, digits, '.', '_' and '-'")
    return text


def _scopes(text: str) -> list[str]:
    try:
        return [scope.value for scope in scopes_of(text)]
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
