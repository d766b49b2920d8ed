"""A server without its ports: settings in, registry and method table out. The server and Ray's replicas build on it."""

import importlib
import logging
from dataclasses import dataclass
from functools import partial

from cnnserve.api.classifier import ClassifierService
from cnnserve.api.health import HealthService
from cnnserve.api.inspection import InspectionService
from cnnserve.api.methods import Method
from cnnserve.api.model_control import RepositoryService
from cnnserve.api.model_infer import Inference
from cnnserve.api.observing import Observer
from cnnserve.api.open_inference import InferenceService
from cnnserve.api.regions import SharedMemory
from cnnserve.api.shared_memory import SharedMemoryService
from cnnserve.assembly.loading import Loading, models_of, needs, prepare
from cnnserve.config.settings import ServerConfig
from cnnserve.images.decoding_pool import DecodingPool
from cnnserve.process import memory_limit
from cnnserve.process.admission import MemoryBudget
from cnnserve.process.pressure import MemoryPressure
from cnnserve.registry.control import EXPLICIT, ModelControl
from cnnserve.registry.health import Health
from cnnserve.registry.registry import Registry

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parts:
    """What answers requests, whatever carries them. `streaming`: the services whose streams have to be drained."""

    registry: Registry
    health: Health
    methods: tuple[Method, ...]
    streaming: tuple[ClassifierService | InferenceService, ...]
    observer: Observer
    decoders: DecodingPool
    budget: MemoryBudget
    pressure: MemoryPressure
    max_message_bytes: int


def assemble(config: ServerConfig, loading: Loading | None = None) -> Parts:
    """Returns the parts of a server. `loading`: the registry if it loads already; by default, nothing is loaded yet.

    Raises `ConfigError`, see `prepare`.
    """
    loading = loading or prepare(config)
    registry, budget = loading.registry, loading.budget
    control = ModelControl(
        registry, models_of(config), mode=config.model_control_mode, allowed=config.allow_model_control
    )
    health = Health(registry, strict=config.strict_readiness, may_be_empty=config.model_control_mode == EXPLICIT)
    max_message_bytes = _largest_message(config, budget)
    observer = _observer(config)
    classifier = ClassifierService(registry, budget, max_message_bytes, observer)
    repository, regions = RepositoryService(control), SharedMemory(config.shared_memory_prefix)
    shared_memory, inspection = SharedMemoryService(regions), InspectionService(registry)
    inference = InferenceService(
        registry,
        Inference(budget, regions, max_message_bytes),
        lambda: health.is_ready,
        (*repository.extensions, *inspection.extensions, *shared_memory.extensions),
        triton_status=config.triton_status_codes,
        observer=observer,
    )
    services = (inference, inspection, shared_memory, classifier, repository, HealthService(health))
    methods = observer.methods(method for service in services for method in service.methods())
    pressure = MemoryPressure(budget)
    registry.on_change(pressure.learn)
    follow = partial(_follow_memory, config.max_pending_mib, budget, pressure)
    registry.on_change(follow)
    # A model may be loaded already.
    follow()
    return Parts(
        registry,
        health,
        tuple(methods),
        (classifier, inference),
        observer,
        loading.decoders,
        budget,
        pressure,
        max_message_bytes,
    )


def _observer(config: ServerConfig) -> Observer:
    """Returns what logs and traces requests. Raises `ConfigError` if OpenTelemetry is wanted and not installed."""
    share = config.access_log_sample if config.access_log else 0.0
    if not config.tracing:
        return Observer(share)
    with needs("tracing", "otel"):
        # By name: a server that does not trace must not pay for OpenTelemetry.
        return Observer(share, tracing=importlib.import_module("cnnserve.api.tracing").start())


def _largest_message(config: ServerConfig, budget: MemoryBudget) -> int:
    """Returns the message limit in bytes: a message is in memory twice, and two of them must fit into the budget."""
    wanted = config.max_message_mib * 2**20
    if config.max_pending_mib or 2 * wanted <= budget.limit_bytes:
        return wanted
    smaller = budget.limit_bytes // 2
    _log.warning(
        "messages may have %d MiB instead of %d (max_message_mib): two of them must fit into the memory for requests",
        smaller >> 20,
        config.max_message_mib,
    )
    return smaller


def _follow_memory(asked_mib: int, budget: MemoryBudget, pressure: MemoryPressure) -> None:
    """What models take, requests may not hold; called after each load and unload."""
    limit = memory_limit.memory_limit()
    if limit is not None:
        budget.limit_bytes = memory_limit.budget(asked_mib, limit, pressure.idle_bytes).mib * 2**20
