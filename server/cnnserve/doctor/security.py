"""Checks the files that say whom the server trusts, and who may ask it."""

import importlib
import time
from collections.abc import Callable, Iterator, Sized
from pathlib import Path

from cnnserve.access.lists import AccessError, read_certificates, read_tokens
from cnnserve.access.tls import WARN_S, Tls, TlsFiles
from cnnserve.config.settings import ConfigError
from cnnserve.doctor.findings import Context, Finding, Status, many, parted
from cnnserve.extras import install


def check(context: Context) -> Iterator[Finding]:
    """Yields whether certificate, tokens and trusted keys can be used, and what they are."""
    yield from _certificate(context)
    yield from _clients(context, "tokens_file", "tokens", read_tokens)
    yield from _clients(context, "certificate_scopes_file", "scopes of certificates", read_certificates)
    yield from _trusted_keys(context)


def _certificate(context: Context) -> Iterator[Finding]:
    name = "TLS certificate"
    certificate, key, authority = (context.settings.get(f"tls_{what}") for what in ("certificate", "key", "client_ca"))
    if not isinstance(certificate, Path) or not isinstance(key, Path):
        yield Finding(name, Status.NOTE, "none, so both ports are plain text")
        return
    try:
        tls = Tls(TlsFiles(certificate, key, authority if isinstance(authority, Path) else None))
    except AccessError as error:
        yield Finding(name, Status.PROBLEM, *parted(str(error)))
        return
    left_s = tls.identity.expires - time.time()
    text = f"{certificate} is valid for {left_s / 86400:.0f} more days"
    if left_s < WARN_S:
        yield Finding(name, Status.WARNING, text, "write a new certificate into the file")
    else:
        yield Finding(name, Status.OK, text)


def _clients(context: Context, setting: str, name: str, read: Callable[[Path], Sized]) -> Iterator[Finding]:
    path = context.settings.get(setting)
    if not isinstance(path, Path):
        return
    try:
        count = len(read(path))
    except AccessError as error:
        yield Finding(name, Status.PROBLEM, *parted(str(error)))
    else:
        yield Finding(name, Status.OK, f"{path} names {many(count, 'client')}")


def _trusted_keys(context: Context) -> Iterator[Finding]:
    path = context.settings.get("trusted_keys")
    name = "trusted keys"
    if not isinstance(path, Path):
        yield Finding(name, Status.NOTE, "none, so versions need no signature")
        return
    try:
        # By name: this package must not need cryptography.
        trusted = importlib.import_module("cnnserve.trust.keys").read(path)
    except ModuleNotFoundError as error:
        yield Finding(name, Status.PROBLEM, f"{error.name} is not installed", install("trust"))
        return
    except ConfigError as error:
        yield Finding(name, Status.PROBLEM, *parted(str(error)))
        return
    yield Finding(name, Status.OK, f"only versions that are signed are served; trusted are {trusted}")
    for warning in trusted.warnings:
        yield Finding(name, Status.WARNING, *parted(warning))
