"""Runs a version before it is READY: its self-test or its probe, on every session, and its warm-up runs."""

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cnnserve.datatypes import Rows
from cnnserve.errors import InferenceFailed, InvalidInput, ModelLoadFailed
from cnnserve.images.preprocessing import Preprocessor
from cnnserve.model import selftest
from cnnserve.model.selftest import Probe, SelfTest
from cnnserve.model_config.settings import Settings
from cnnserve.repository.manifest import Manifest
from cnnserve.runtime.workers import Worker


@dataclass(frozen=True)
class Findings:
    """The result of the runs: a self-test if the version has a manifest, otherwise a probe.

    `placement`: number of nodes by provider.
    """

    self_test: SelfTest | None
    probe: Probe | None
    placement: dict[str, int]


def examine(
    workers: Sequence[Worker],
    settings: Settings,
    *,
    manifest: Manifest | None,
    preprocessor: Preprocessor | None,
    path: Path,
    warmups: Iterable[Rows],
) -> Findings:
    """Tests the version in folder `path`, then runs `warmups` on every worker. Raises `ModelLoadFailed`."""
    # One instance of each session is enough, because instances that share a session compute the same.
    tested = list({id(worker.session): worker for worker in workers}.values())
    test, probe = None, None
    try:
        for worker in tested:
            # The self-test also runs every bucket. But on a GPU, the first run of a size may differ from all others, so
            # the self-test must not measure it.
            if manifest is None or worker.session.provider.kind != "cpu":
                worker.warm()
        if manifest is None or preprocessor is None:
            probe = _probe(tested[0], settings)
        else:
            test = _self_test(tested, manifest, preprocessor, path, settings)
        for rows in warmups:
            for worker in workers:
                worker.instance.run([rows])
    except (InferenceFailed, InvalidInput) as error:
        raise ModelLoadFailed(f"self-test: {error}") from error
    return Findings(test, probe, _placement(tested))


def _self_test(
    workers: Sequence[Worker], manifest: Manifest, preprocessor: Preprocessor, path: Path, settings: Settings
) -> SelfTest:
    tests = []
    for worker in workers:
        sizes = selftest.batch_sizes(worker.buckets, settings.max_batch_size)
        provider = worker.session.provider
        run = worker.instance.run
        tests.append(selftest.run_golden(run, manifest, preprocessor, path, sizes=sizes, provider=provider))
    return selftest.worst(tests)


def _probe(worker: Worker, settings: Settings) -> Probe:
    """Probes a model without a manifest. If an input size is free, nothing can be run."""
    output = settings.label_output
    if -1 in settings.row_shape:
        with contextlib.suppress(IndexError):
            return Probe(max(0, *worker.session.outputs[output].shape[1:]), probabilities=False)
        return Probe(0, probabilities=False)
    sizes = selftest.batch_sizes(worker.buckets, settings.max_batch_size)
    return selftest.probe(worker.instance.run, settings.row_shape, settings.input.datatype, output, sizes=sizes)


def _placement(workers: Sequence[Worker]) -> dict[str, int]:
    """Returns the number of nodes by provider: of all sessions, the largest."""
    nodes: dict[str, int] = {}
    for worker in workers:
        for provider, count in worker.session.placement.items():
            nodes[provider] = max(count, nodes.get(provider, 0))
    return nodes
