"""Runs a version before it is READY: its self-test or its probe, on every session, and its warm-up runs."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from cnnserve.datatypes import Rows
from cnnserve.errors import InferenceFailed, InvalidInput, ModelLoadFailed
from cnnserve.images.preprocessing import Preprocessor
from cnnserve.model import class_rows, selftest
from cnnserve.model.selftest import Extra, Probe, Run, SelfTest
from cnnserve.model_config.settings import Settings
from cnnserve.repository.manifest import Manifest
from cnnserve.repository.onnx_ending import Ending
from cnnserve.runtime.workers import Worker

# Runs of the self-test that take longer together do not delay a start. The others of a ResNet-50 took a third of its
# start to READY.
EXTRA_S = 0.05


@dataclass(frozen=True)
class Findings:
    """The result of the runs: a self-test if the version has a manifest, otherwise a probe.

    `placement`: number of nodes by provider. `slowest_run_s`: the time of the slowest run that was no warm-up.
    """

    self_test: SelfTest | None
    probe: Probe | None
    placement: dict[str, int]
    slowest_run_s: float


class _Runs:
    """The runs of one examination: each may take `limit_s`, `slowest_s` is the time of the slowest so far."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self.slowest_s = 0.0

    def of(self, worker: Worker) -> Run:
        """Returns the function that runs batches on a worker."""

        def run(parts: Sequence[Rows]) -> list[Rows]:
            started = time.monotonic()
            try:
                return worker.instance.run(parts, self._limit_s)
            finally:
                self.slowest_s = max(self.slowest_s, time.monotonic() - started)

        return run


def examine(
    workers: Sequence[Worker],
    settings: Settings,
    *,
    manifest: Manifest | None,
    preprocessor: Preprocessor | None,
    read: Callable[[str], bytes],
    warmups: Iterable[Rows],
    run_limit_s: float,
    extra_s: float = EXTRA_S,
    ending: Ending = "unknown",
) -> Findings:
    """Tests a version, whose files `read` returns, then runs `warmups` on every worker. Raises `ModelLoadFailed`.

    A run that takes longer than `run_limit_s` is ended and fails the version. `extra_s`: the time for the runs of the
    self-test that may also be made later. `ending`: what makes the values of the classes, if there is no manifest.
    """
    runs = _Runs(run_limit_s)
    # One instance of each session is enough, because instances that share a session compute the same.
    tested = list({id(worker.session): worker for worker in workers}.values())
    test, probe = None, None
    try:
        for worker in tested:
            # The self-test also runs every bucket. But on a GPU, the first run of a size may differ from all others, so
            # the self-test must not measure it.
            if manifest is None or worker.session.provider.kind != "cpu":
                worker.warm(run_limit_s)
        if manifest is None or preprocessor is None:
            probe = _probe(runs, tested[0], settings, ending)
        else:
            test = _self_test(
                runs, tested, settings, manifest=manifest, preprocessor=preprocessor, read=read, extra=Extra(extra_s)
            )
        for rows in warmups:
            for worker in workers:
                worker.instance.run([rows], run_limit_s)
    except (InferenceFailed, InvalidInput) as error:
        raise ModelLoadFailed(f"self-test: {error}") from error
    return Findings(test, probe, _placement(tested), runs.slowest_s)


def _self_test(
    runs: _Runs,
    workers: Sequence[Worker],
    settings: Settings,
    *,
    manifest: Manifest,
    preprocessor: Preprocessor,
    read: Callable[[str], bytes],
    extra: Extra,
) -> SelfTest:
    tests = []
    for worker in workers:
        sizes = selftest.batch_sizes(worker.buckets, settings.max_batch_size)
        provider = worker.session.provider
        run = runs.of(worker)
        tests.append(
            selftest.run_golden(
                run,
                manifest,
                preprocessor,
                read,
                sizes=sizes,
                provider=provider,
                largest=settings.max_batch_size,
                extra=extra,
            )
        )
    return selftest.worst(tests)


def _probe(runs: _Runs, worker: Worker, settings: Settings, ending: Ending) -> Probe:
    """Probes a model without a manifest. If an input size is free, nothing can be run."""
    output = settings.label_output
    spec = worker.session.outputs[output]
    if -1 in settings.row_shape:
        rows = class_rows.decide(spec, ending, [])
        return Probe(2 if rows.single else max(0, *spec.shape[1:], 0), rows)
    sizes = selftest.batch_sizes(worker.buckets, settings.max_batch_size)
    return selftest.probe(
        runs.of(worker), settings.row_shape, settings.input.datatype, output, spec=spec, ending=ending, sizes=sizes
    )


def _placement(workers: Sequence[Worker]) -> dict[str, int]:
    """Returns the number of nodes by provider: of all sessions, the largest."""
    nodes: dict[str, int] = {}
    for worker in workers:
        for provider, count in worker.session.placement.items():
            nodes[provider] = max(count, nodes.get(provider, 0))
    return nodes
