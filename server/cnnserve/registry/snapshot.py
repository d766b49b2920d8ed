"""What the server can be measured by, read out at one moment. `transports/http/exposition.py` gives it Prometheus' names.

Nothing is counted here: the numbers are the registry's, the statistics' and the memory budget's own.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import cnnserve
from cnnserve.batching.statistics import Histogram
from cnnserve.model.version import Model
from cnnserve.process.admission import MemoryBudget
from cnnserve.registry.lifecycle import ModelEntry, State, VersionEntry
from cnnserve.registry.registry import Registry
from cnnserve.runtime.session import runtime_version


@dataclass(frozen=True)
class Distribution:
    """A histogram as it was: how many per bucket of `statistics.BOUNDS_NS` and above, and their sum (ns)."""

    counts: tuple[int, ...]
    total_ns: int


@dataclass(frozen=True)
class Work:
    """What a loaded version had done, counted as `Statistics` says; times in ns. `batches`: runs by their images."""

    success: int
    inferences: int
    executions: int
    request_ns: int
    queue_ns: int
    compute_input_ns: int
    compute_infer_ns: int
    compute_output_ns: int
    waiting: int
    failures: Mapping[str, int]
    batches: Mapping[int, int]
    request: Distribution
    queue: Distribution
    preprocessing: Distribution
    compute: Distribution


@dataclass(frozen=True)
class Version:
    """One version, or with an empty `version` a model that is wanted and has none. `work` is None where none is loaded.

    `load_s`: how long the load took that serves, None where none does; `placement`: nodes by execution provider.
    """

    model: str
    version: str
    state: State
    load_s: float | None = None
    placement: Mapping[str, int] = field(default_factory=dict)
    work: Work | None = None


@dataclass(frozen=True)
class Snapshot:
    """The whole server. Bytes are those of the memory budget, `refused` the requests that it had no room for."""

    versions: tuple[Version, ...]
    held_bytes: int
    decoding_bytes: int
    limit_bytes: int
    refused: int
    server_version: str
    runtime_version: str


def snapshot(registry: Registry, budget: MemoryBudget) -> Snapshot:
    """The server now. On the event loop, where all of it lives; a few microseconds a version."""
    return Snapshot(
        tuple(version for model in registry.models for version in _versions(model)),
        budget.held_bytes,
        budget.decoding_bytes,
        budget.limit_bytes,
        budget.refused,
        cnnserve.__version__,
        runtime_version(),
    )


def _versions(model: ModelEntry) -> Iterator[Version]:
    if model.wanted and not model.versions:
        yield Version(model.name, "", State.UNAVAILABLE)
    for entry in model.versions.values():
        # What was unloaded on purpose is nothing to be alarmed about.
        if model.wanted or entry.model is not None:
            yield _version(model.name, entry)


def _version(name: str, entry: VersionEntry) -> Version:
    if entry.model is None:
        return Version(name, str(entry.version), entry.state)
    placement = entry.model.info.placement
    return Version(name, str(entry.version), entry.state, entry.load_s, placement, _work(entry.model))


def _work(model: Model) -> Work:
    own = model.statistics
    return Work(
        success=own.success.count,
        inferences=own.inferences,
        executions=own.executions,
        request_ns=own.success.ns,
        queue_ns=own.queue.ns,
        compute_input_ns=own.steps.compute_input.ns,
        compute_infer_ns=own.steps.compute_infer.ns,
        compute_output_ns=own.steps.compute_output.ns,
        waiting=model.waiting,
        failures=dict(own.failures),
        batches={size: steps.compute_infer.count for size, steps in own.batches.items()},
        request=_distribution(own.latencies.request),
        queue=_distribution(own.latencies.queue),
        preprocessing=_distribution(own.latencies.preprocessing),
        compute=_distribution(own.latencies.compute),
    )


def _distribution(histogram: Histogram) -> Distribution:
    return Distribution(tuple(histogram.counts), histogram.total_ns)
