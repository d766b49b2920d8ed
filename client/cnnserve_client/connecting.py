"""Explains why a connection failed. Imports neither grpc nor protobuf.

gRPC uses the status UNAVAILABLE for every such failure, and servers use it for a model that is loading. Only gRPC's
text shows the difference. If a later version of gRPC changes its text, the error is still an `UnavailableError` with
the address and that text.
"""

import re
from typing import Final

from . import errors

# The texts of gRPC 1.63 to 1.85, in lower case.
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


def unavailable(address: str, details: str, *, encrypted: bool, proxy: str = "") -> errors.UnavailableError:
    """Returns the error for the gRPC status UNAVAILABLE.

    Args:
        address: the address of the connection.
        details: gRPC's text.
        encrypted: whether the client uses TLS.
        proxy: the environment variable that names a proxy for the address, empty if none does.
    """
    text = details.lower()
    if not any(known in text for known in _NOT_CONNECTED):
        return errors.UnavailableError(f"{address}: {details}")
    if _UNUSABLE in text:
        return errors.ConnectionFailedError(
            "TLS cannot use the given files: root_certificates and certificate must contain complete PEM certificates, "
            f"and key must contain the private key of certificate ({details})"
        )
    explain = _with_tls if encrypted else _without_tls
    return errors.ConnectionFailedError(f"{explain(address, text, proxy)} ({details})")


def _with_tls(address: str, text: str, proxy: str) -> str:
    if any(known in text for known in _OTHER_NAME):
        return (
            f"the TLS certificate of the server at {address} is for another host name: use a host name from the "
            "certificate in the address, or give the server a certificate for this address"
        )
    if untrusted := _UNTRUSTED.search(text):
        reason = (untrusted["reason"] or "unknown reason").strip()
        fix = "set root_certificates to the PEM file of the authority that issued the certificate"
        if any(known in reason for known in _OUT_OF_DATE):
            fix = "give the server a new certificate, or correct the clock of this machine or of the server"
        return f"the TLS certificate of the server at {address} is not trusted ({reason}): {fix}"
    if "wrong_version_number" in text:
        return f"the server at {address} does not use TLS: connect without TLS, or to a port with TLS"
    if _HANDSHAKE in text:
        return f"the TLS handshake with the server at {address} failed: compare the TLS settings of client and server"
    if any(known in text for known in _CLOSED):
        return (
            f"the server at {address} closed the TLS connection: if it requires a client certificate, set certificate "
            "and key to a certificate that it trusts"
        )
    return _unreachable(address, proxy)


def _without_tls(address: str, text: str, proxy: str) -> str:
    if any(known in text for known in _CLOSED):
        return (
            f"the server at {address} closed the connection: if it requires TLS, set tls or root_certificates; else "
            "check that this is a gRPC port"
        )
    return _unreachable(address, proxy)


def _unreachable(address: str, proxy: str) -> str:
    text = (
        f"cannot reach a server at {address}: check that `cnnserve serve` runs there and that this is its gRPC port, "
        "not its HTTP port"
    )
    if not proxy:
        return text
    return (
        f"{text}; the environment variable {proxy} names a proxy for it: if it is in the way, add the host to no_proxy"
    )
