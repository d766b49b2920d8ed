"""What loads models at the start of a server: settings in, registry out. It imports nothing that answers requests."""

import contextlib
import importlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

from cnnserve import extras
from cnnserve.access.accounts import ClientLimits
from cnnserve.access.control import AccessControl
from cnnserve.access.following import Followed
from cnnserve.access.tls import TlsFiles
from cnnserve.config.settings import ConfigError, ServerConfig
from cnnserve.errors import ServingError
from cnnserve.images.decoding_pool import DecodingPool
from cnnserve.model import loader
from cnnserve.model.layout_cache import LayoutCache
from cnnserve.model_config.execution import Device
from cnnserve.process import memory_limit
from cnnserve.process.admission import MemoryBudget
from cnnserve.process.cpu import cpu_budget, decoding_threads
from cnnserve.process.pressure import resident_bytes
from cnnserve.registry.control import EXPLICIT
from cnnserve.registry.opening import LoadLimits, VersionOpener
from cnnserve.registry.registry import Registry
from cnnserve.repository import layout
from cnnserve.repository.folders import Models, NamedModels
from cnnserve.repository.signature import Trust

_log = logging.getLogger(__name__)

# Limits of the number of loads at the same time. Several, so that a model that builds for minutes does not delay the
# others; few, because each load needs the memory of its model twice.
_LOADS_AT_LEAST = 2
_LOADS_AT_MOST = 4


@dataclass(frozen=True)
class Loading:
    """A registry, and what its models use."""

    registry: Registry
    decoders: DecodingPool
    budget: MemoryBudget


def prepare(config: ServerConfig) -> Loading:
    """Returns the registry of a server. Nothing is loaded yet. Raises `ConfigError`, see `make_registry`."""
    threads = cpu_threads(config)
    decoders = DecodingPool(config.decode_threads or decoding_threads(threads))
    budget = memory_budget(config)
    return Loading(make_registry(config, threads, decoders, budget), decoders, budget)


def cpu_threads(config: ServerConfig) -> int:
    """Returns the number of CPU threads for the runs of one model."""
    return config.cpu_threads or cpu_budget()


def access_control(config: ServerConfig) -> AccessControl:
    """Reads the files of access control. Raises `AccessError` if one of them cannot be used."""
    files = None
    if config.tls_certificate and config.tls_key:
        files = TlsFiles(config.tls_certificate, config.tls_key, config.tls_client_ca)
    limits = ClientLimits(config.client_requests_per_second, config.client_images_in_flight)
    return AccessControl(
        config.tokens_file, config.certificate_scopes_file, config.trusted_proxy, tls_files=files, limits=limits
    )


@contextlib.contextmanager
def needs(setting: str, extra: str) -> Iterator[None]:
    """Raises `ConfigError` if a package is missing that only the `extra` of a setting installs."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigError(f"{setting} needs {error.name}, which is not installed: {extras.install(extra)}") from error


def memory_budget(config: ServerConfig) -> MemoryBudget:
    """Returns the memory that requests may hold, and logs it with its source."""
    found = memory_limit.budget(config.max_pending_mib, memory_limit.memory_limit(), resident_bytes())
    if found.warning:
        _log.warning("%s", found.warning)
    _log.info("requests may hold %d MiB of memory: %s", found.mib, found.reason)
    return MemoryBudget(found.mib * 2**20)


def trusted_keys(config: ServerConfig) -> Trust | None:
    """Returns the keys whose signatures count, if there are any. Raises `ConfigError`."""
    if config.trusted_keys is None:
        return None
    with needs("trusted_keys", "trust"):
        # By name: without trusted keys, the start must not pay for cryptography.
        trusted = importlib.import_module("cnnserve.trust.keys").read(config.trusted_keys)
    for warning in trusted.warnings:
        _log.warning("trusted keys: %s", warning)
    _log.info("only versions with a signature of a trusted key are served; trusted are %s", trusted)
    return cast("Trust", trusted)


def followed_keys(config: ServerConfig, registry: Registry) -> list[Followed]:
    """Returns the trusted keys, which are read again as the files of access control are."""
    if config.trusted_keys is None or registry.trust is None:
        return []
    return [Followed("trusted keys", (config.trusted_keys,), registry.trust.reload)]


def models_of(config: ServerConfig) -> Models:
    """Returns where the models are: a model repository, or single models."""
    if config.model:
        return NamedModels(config.models)
    # What is at an address was pulled before.
    assert isinstance(config.repository, Path)
    if config.single_model_name and layout.is_single(config.repository):
        return NamedModels({config.single_model_name: config.repository})
    return config.repository


def layout_cache(config: ServerConfig, threads: int) -> LayoutCache:
    """Returns where the layouts that the server finds are kept."""
    return LayoutCache(config.layout_cache, threads, by_default=config.auto_layout)


def make_registry(config: ServerConfig, threads: int, decoders: DecodingPool, budget: MemoryBudget) -> Registry:
    """Returns the registry of the model repository. Nothing is loaded yet. Raises `ConfigError`, see `trusted_keys`."""
    trust = trusted_keys(config)
    device: Device = "cuda" if config.device == "cuda" else "cpu"
    open_version = partial(
        loader.open_version,
        cpu_threads=threads,
        device=device,
        engine_cache=config.engine_cache,
        budget=budget,
        load_timeout_s=config.load_timeout_s,
        build_timeout_s=config.build_timeout_s,
        counts_drift=not config.no_drift_metrics,
        layouts=layout_cache(config, threads),
    )
    at_once = min(max(threads, _LOADS_AT_LEAST), _LOADS_AT_MOST)
    opener = VersionOpener(
        open_version,
        decoders,
        at_once=at_once,
        require_manifest=config.require_manifest or trust is not None,
        limits=LoadLimits(config.load_timeout_s, config.build_timeout_s),
    )
    return Registry(models_of(config), opener, config.model_config_name, trust)


async def load_first(config: ServerConfig, registry: Registry) -> None:
    """Loads the models to be served at start. What fails is logged."""
    explicit = config.model_control_mode == EXPLICIT
    try:
        await registry.load_all(config.load_model if explicit and "*" not in config.load_model else None)
    except ServingError as error:
        _log.error("%s", error)
