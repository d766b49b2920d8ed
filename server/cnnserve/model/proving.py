"""What a version is run for before it is READY: its self-test or probe, on every session that will serve it."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

from cnnserve.images.preprocessing import Preprocessor
from cnnserve.model import selftest
from cnnserve.model.selftest import Probe, SelfTest
from cnnserve.model_config.settings import Settings
from cnnserve.repository.manifest import Manifest
from cnnserve.runtime.workers import Worker


def self_test(
    workers: Sequence[Worker], manifest: Manifest, preprocessor: Preprocessor, path: Path, settings: Settings
) -> SelfTest:
    """Runs the golden image on every worker. Raises `ModelLoadFailed` on a difference."""
    tests = []
    for worker in workers:
        sizes = selftest.batch_sizes(worker.buckets, settings.max_batch_size)
        provider = worker.session.provider
        run = worker.instance.run
        tests.append(selftest.run_golden(run, manifest, preprocessor, path, sizes=sizes, provider=provider))
    return selftest.worst(tests)


def probe(worker: Worker, settings: Settings) -> Probe:
    """What a model without a manifest shows. A size that neither file nor config fixes cannot be tried."""
    output = settings.label_output
    if -1 in settings.row_shape:
        with contextlib.suppress(IndexError):
            return Probe(max(0, *worker.session.outputs[output].shape[1:]), probabilities=False)
        return Probe(0, probabilities=False)
    sizes = selftest.batch_sizes(worker.buckets, settings.max_batch_size)
    return selftest.probe(worker.instance.run, settings.row_shape, settings.input.datatype, output, sizes=sizes)


def placement(workers: Sequence[Worker]) -> dict[str, int]:
    """Nodes by provider; where several sessions have nodes on one, the most."""
    nodes: dict[str, int] = {}
    for worker in workers:
        for provider, count in worker.session.placement.items():
            nodes[provider] = max(count, nodes.get(provider, 0))
    return nodes
