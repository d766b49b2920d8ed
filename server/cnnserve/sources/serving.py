"""`cnnserve serve` with an address in place of a model repository: pulls it into a cache before anything is served."""

import dataclasses
import logging

from cnnserve.config.settings import ConfigError, ServerConfig
from cnnserve.repository.signature import Trust
from cnnserve.sources import trusting
from cnnserve.sources.errors import SourceError
from cnnserve.sources.pull import pull_whole
from cnnserve.sources.room import GIB, Room
from cnnserve.sources.web import shown

_log = logging.getLogger(__name__)


def pulled(config: ServerConfig) -> tuple[ServerConfig, int]:
    """Returns the settings with the folder of what was pulled as model repository, and 0.

    Otherwise it logs the reason and returns the exit status of the server: 1, or 2 if the trusted keys cannot be used.
    """
    address = shown(str(config.repository))
    cache = config.pull_cache.expanduser().absolute()
    try:
        trust: Trust | None = None
        if config.trusted_keys is not None:
            trust = trusting.keys(config.trusted_keys)
        _log.info("pulling %s into %s", address, cache)
        folder, new = pull_whole(str(config.repository), cache, Room(config.max_pull_gib * GIB), trust)
    except SourceError as error:
        _log.error("%s cannot be served: %s", address, error)
        return config, 1
    except ConfigError as error:
        _log.error("%s", error)
        return config, 2
    what = "was pulled" if new else "has not changed since it was pulled"
    _log.info("%s %s; the server serves %s, and fetches nothing more", address, what, folder)
    return dataclasses.replace(config, repository=folder), 0
