"""Reads all measurements of the server at one moment. `transports/http/exposition.py` adds Prometheus' names.

Nothing is counted here: the numbers come from the registry, the statistics and the memory budget.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import cnnserve
from cnnserve import logs
from cnnserve.batching.drift import Drift
from cnnserve.batching.statistics import Histogram
from cnnserve.model.selftest import SelfTest
from cnnserve.model.version import Model
from cnnserve.process import refusals
from cnnserve.process.admission import MemoryBudget
from cnnserve.registry.lifecycle import ModelEntry, State, VersionEntry
from cnnserve.registry.registry import Registry
from cnnserve.runtime.session import runtime_version


@dataclass(frozen=True)
class Distribution:
    """A copy of a `Histogram`: the count of each bucket of `statistics.BOUNDS_NS` and above, and the sum (ns)."""

    counts: tuple[int, ...]
    total_ns: int


@dataclass(frozen=True)
class Work:
    """A copy of a loaded version's `Statistics`; times in ns.

    `batches`: number of runs by number of images; `waiting`: requests in the queue; `busy_ns`: time of all runs of all
    instances; `bad_rows`: output rows that were not sent, because they are not finite or no probabilities.
    """

    success: int
    inferences: int
    bad_rows: int
    executions: int
    request_ns: int
    queue_ns: int
    compute_input_ns: int
    compute_infer_ns: int
    compute_output_ns: int
    waiting: int
    instances: int
    busy_ns: int
    failures: Mapping[str, int]
    batches: Mapping[int, int]
    request: Distribution
    queue: Distribution
    preprocessing: Distribution
    compute: Distribution


@dataclass(frozen=True)
class Version:
    """One version; or, with an empty `version`, a model that is wanted but has no version.

    `work` is None if the version is not loaded. `load_s`: duration in s of the load that serves, None if none serves.
    `placement`: number of nodes by execution provider. `self_test`: None if it had none. `drift` counts what the
    version answers; it is read on a thread.
    """

    model: str
    version: str
    state: State
    load_s: float | None = None
    placement: Mapping[str, int] = field(default_factory=dict)
    work: Work | None = None
    self_test: SelfTest | None = None
    drift: Drift | None = None
    labels: Sequence[str] = ()


@dataclass(frozen=True)
class Snapshot:
    """Measurements of the whole server.

    Bytes are those of the memory budget; `refused`: requests that it refused; `unlogged`: dropped log messages;
    `refusals`: requests that ended with an error, by reason; `unaudited`: audit lines among the dropped messages;
    `certificate_end`: of the TLS certificate, in seconds since 1970, None for plain text.
    """

    versions: tuple[Version, ...]
    held_bytes: int
    decoding_bytes: int
    limit_bytes: int
    refused: int
    unlogged: int
    server_version: str
    runtime_version: str
    refusals: Mapping[str, int] = field(default_factory=dict)
    unaudited: int = 0
    certificate_end: float | None = None


def snapshot(registry: Registry, budget: MemoryBudget, certificate_end: float | None = None) -> Snapshot:
    """Returns the measurements of the server now. Takes a few microseconds per version. Call it on the event loop."""
    return Snapshot(
        tuple(version for model in registry.models for version in _versions(model)),
        budget.held_bytes,
        budget.decoding_bytes,
        budget.limit_bytes,
        budget.refused,
        logs.dropped(),
        cnnserve.__version__,
        runtime_version(),
        dict(refusals.counts),
        logs.dropped_audits(),
        certificate_end,
    )


def _versions(model: ModelEntry) -> Iterator[Version]:
    if model.wanted and not model.versions:
        yield Version(model.name, "", State.UNAVAILABLE)
    for entry in model.versions.values():
        # A version that was unloaded on purpose is left out, because it must not set off an alert.
        if model.wanted or entry.model is not None:
            yield _version(model.name, entry)


def _version(name: str, entry: VersionEntry) -> Version:
    if entry.model is None:
        return Version(name, str(entry.version), entry.state)
    model, info = entry.model, entry.model.info
    return Version(
        name,
        str(entry.version),
        entry.state,
        entry.load_s,
        info.placement,
        _work(model),
        info.self_test,
        model.drift,
        info.labels,
    )


def _work(model: Model) -> Work:
    own = model.statistics
    return Work(
        success=own.success.count,
        inferences=own.inferences,
        bad_rows=own.bad_rows,
        executions=own.executions,
        request_ns=own.success.ns,
        queue_ns=own.queue.ns,
        compute_input_ns=own.steps.compute_input.ns,
        compute_infer_ns=own.steps.compute_infer.ns,
        compute_output_ns=own.steps.compute_output.ns,
        waiting=model.waiting,
        instances=model.instances,
        busy_ns=sum(steps.compute_input.ns + steps.compute_infer.ns for steps in own.batches.values()),
        failures=dict(own.failures),
        batches={size: steps.compute_infer.count for size, steps in own.batches.items()},
        request=_distribution(own.latencies.request),
        queue=_distribution(own.latencies.queue),
        preprocessing=_distribution(own.latencies.preprocessing),
        compute=_distribution(own.latencies.compute),
    )


def _distribution(histogram: Histogram) -> Distribution:
    return Distribution(tuple(histogram.counts), histogram.total_ns)
