"""Checks the files that say whom the server trusts."""

import importlib
from collections.abc import Iterator
from pathlib import Path

from cnnserve.config import ConfigError
from cnnserve.doctor.findings import Context, Finding, Status, parted
from cnnserve.doctor.software import install


def check(context: Context) -> Iterator[Finding]:
    """Yields whether the trusted keys can be read, and which they are."""
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
