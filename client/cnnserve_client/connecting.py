"""Why no connection came about, in words that help. Imports neither grpc nor protobuf.

gRPC has one status for all of it, the one a loading model has too; the rest is its text. Should the words change, the
error stays an UnavailableError that names the address and has gRPC's text.
"""

import re
from typing import Final

from . import errors

# gRPC 1.63 to 1.85.
_NOT_CONNECTED: Final = (
    "connections to all backends failing",
    "failed to connect to all addresses",
    "dns resolution failed",
    "errors resolving",
)
_OTHER_NAME: Final = ("hostname verification check failed", "is not in peer certificate")
_UNTRUSTED: Final = re.compile(r"certificate_verify_failed(?:: (?P<reason>[a-z][a-z ]+))?")
_OUT_OF_DATE: Final = ("expired", "not yet valid")
_UNUSABLE: Final = "failed to create security handshaker"
_HANDSHAKE: Final = "handshake failed"
_CLOSED: Final = ("socket closed", "connection reset")


def unavailable(address: str, details: str, *, encrypted: bool) -> errors.UnavailableError:
    """The error for a server that was not there or not ready, or that no TLS connection came about with."""
    words = details.lower()
    if not any(known in words for known in _NOT_CONNECTED):
        return errors.UnavailableError(f"{address}: {details}")
    if _UNUSABLE in words:
        return errors.ConnectionFailedError(
            "TLS cannot use the files it was given: root_certificates and certificate have to hold whole certificates "
            f"in PEM, key the key of that certificate ({details})"
        )
    explain = _encrypted if encrypted else _plain
    return errors.ConnectionFailedError(f"{explain(address, words)} ({details})")


def _encrypted(address: str, words: str) -> str:
    if any(known in words for known in _OTHER_NAME):
        return (
            f"the TLS certificate of the server at {address} is for another name: use the address that it names, or "
            "give the server a certificate for this one"
        )
    if untrusted := _UNTRUSTED.search(words):
        reason = (untrusted["reason"] or "unknown reason").strip()
        fix = "root_certificates has to name the PEM file of the authority that issued it"
        if any(known in reason for known in _OUT_OF_DATE):
            fix = "the server needs another, or one of the two clocks is wrong"
        return f"the TLS certificate of the server at {address} is not trusted ({reason}): {fix}"
    if "wrong_version_number" in words:
        return f"the server at {address} does not speak TLS: connect without it, or to the port that does"
    if _HANDSHAKE in words:
        return f"no TLS connection came about with the server at {address}"
    if any(known in words for known in _CLOSED):
        return (
            f"the server at {address} closed the TLS connection: it may want a certificate of this client that it "
            "trusts (certificate and key)"
        )
    return _missing(address)


def _plain(address: str, words: str) -> str:
    if any(known in words for known in _CLOSED):
        return (
            f"what listens at {address} closed the connection: it may speak TLS only (tls, root_certificates), or be "
            "no gRPC port"
        )
    return _missing(address)


def _missing(address: str) -> str:
    return (
        f"cannot reach a server at {address}: check that `cnnserve serve` runs there and that this is its gRPC port, "
        "not its HTTP port"
    )
