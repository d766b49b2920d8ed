"""The trusted keys, whose module is imported only if somebody names keys: it needs cryptography."""

import importlib
from pathlib import Path
from typing import Protocol, cast

from cnnserve import extras
from cnnserve.repository.signature import Trust
from cnnserve.sources.errors import SourceError


class Keys(Trust, Protocol):
    """A `trust.keys.TrustedKeys`."""

    @property
    def warnings(self) -> list[str]:
        """What is wrong with trusted certificates."""


def keys(path: Path) -> Keys:
    """Returns the trusted keys in a folder or a file. Raises `ConfigError`, and `SourceError` without the extra."""
    try:
        module = importlib.import_module("cnnserve.trust.keys")
    except ModuleNotFoundError as error:
        raise SourceError(
            f"trusted keys need {error.name}, which is not installed: {extras.install('trust')}"
        ) from error
    return cast("Keys", module.read(path))
