"""Measures layouts of a version with its own instances and batcher, in this process, without clients.

The runs compute zeros, whose time is that of any image, and nobody gets their outputs.
"""

import asyncio
import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from cnnserve.batching.batcher import DynamicBatcher
from cnnserve.batching.inline import InlineRuns
from cnnserve.batching.instance import BatchOutcome, ModelInstance
from cnnserve.batching.percentile import percentile
from cnnserve.batching.policy import BatchPolicy, QueuePolicy
from cnnserve.datatypes import Rows
from cnnserve.errors import ModelLoadFailed, ServingError
from cnnserve.model.layout_search import Measurement
from cnnserve.model.loader import model_file_of, read_manifest
from cnnserve.model_config import execution as executions
from cnnserve.model_config import pbtxt
from cnnserve.model_config.execution import Execution
from cnnserve.model_config.layout import Layout
from cnnserve.model_config.settings import Settings, resolve
from cnnserve.repository import onnx_files
from cnnserve.repository.folders import ModelFolder
from cnnserve.repository.manifest import Manifest
from cnnserve.repository.onnx_files import OnnxFiles
from cnnserve.repository.version_files import VersionFiles
from cnnserve.runtime.session import Session
from cnnserve.runtime.workers import inline_runs, make_workers, open_sessions
from cnnserve.wire import model_config_pb2 as pb

IN_FLIGHT = 16
# Runs that a measurement needs at least, and rounds of runs on all instances.
_RUNS = 4
_ROUNDS = 2


@contextlib.contextmanager
def opened(folder: ModelFolder, version: int, cpu_threads: int) -> Iterator["Layouts"]:
    """Opens the files of a version and gives its layouts. Raises `ModelLoadFailed`, see `Layouts`."""
    with VersionFiles(folder, version) as files:
        manifest, config = read_manifest(files), pbtxt.of(folder, files.shared)
        model = onnx_files.load(files, model_file_of(files, config, manifest), manifest)
        with contextlib.closing(model):
            yield Layouts(f"{folder.name}-{version}", config, manifest, model, cpu_threads)


class Layouts:
    """Makes batchers of one version in any layout. `current` is that of its config. `digest`: of the ONNX files.

    Raises `ModelLoadFailed` if the version cannot be opened, or if it is one without CPU layouts.
    """

    def __init__(
        self, name: str, config: pb.ModelConfig | None, manifest: Manifest | None, model: OnnxFiles, cpu_threads: int
    ) -> None:
        self._name = name
        self._model = model
        self._cpu_threads = cpu_threads
        self._manifest = manifest
        self.config = config
        execution = executions.read(config)
        if execution.gpus or execution.batch_buckets is not None:
            raise ModelLoadFailed(
                "only layouts of models that run on the CPU without batch_buckets are measured; this one "
                + ("runs on a GPU" if execution.gpus else "has cnnserve.batch_buckets")
            )
        self._session = self._open(execution)
        self._key = (self._session.threads, execution.cpu_instances == 1)
        self.settings = self._resolved(config)
        spec = self._session.inputs[0]
        if -1 in spec.shape[1:] or self.settings.fixed_batch is not None:
            raise ModelLoadFailed("only layouts of models with images of one size and a free batch are measured")
        policy = self.settings.policy
        batch = max(policy.preferred_batch_sizes, default=policy.max_batch_size)
        self.current = Layout(execution.cpu_instances, self._session.threads, batch, policy.max_queue_delay_us)
        self.row = spec.zeros(1)

    @property
    def digest(self) -> str:
        """A digest of the ONNX file and its external data, in hexadecimal digits."""
        return self._model.digest

    def prepare(self, layout: Layout) -> "Prepared":
        """Opens the session of a layout and starts its instances. Blocks."""
        config = layout.applied(self.config)
        execution = executions.read(config)
        key = (layout.threads, layout.instances == 1)
        if key != self._key:
            self._session, self._key = self._open(execution), key
        settings = self._resolved(config)
        workers = make_workers(f"{self._name}-layout", execution, [self._session], settings)
        # Nothing is refused.
        policy = replace(settings.policy, target_ms=0.0, queue=QueuePolicy(2 * settings.max_batch_size + IN_FLIGHT))
        return Prepared(policy, [worker.instance for worker in workers], inline_runs(execution, workers, settings))

    def _open(self, execution: Execution) -> Session:
        _, sessions = open_sessions(self._model, execution, self._cpu_threads, Path(), lambda _: None)
        return sessions[0]

    def _resolved(self, config: pb.ModelConfig | None) -> Settings:
        session = self._session
        name = self._name.rpartition("-")[0]
        return resolve(name, config, self._manifest, session.inputs, session.outputs, left_out=session.left_out)


@dataclass(frozen=True)
class Prepared:
    """The instances of a layout, for one measurement."""

    policy: BatchPolicy
    instances: list[ModelInstance]
    inline: InlineRuns | None

    async def measure(self, row: Rows, seconds: float) -> Measurement:
        """Keeps `IN_FLIGHT` requests in flight for `seconds`, or until some runs have ended, and ends the instances.

        Raises `ServingError` if a run fails. If the caller is cancelled, the runs are ended.
        """
        batcher = DynamicBatcher(self.policy, self.instances, inline=self.inline)
        latencies_s: list[float] = []
        began, cpu_s = time.perf_counter(), time.process_time()

        async def client() -> None:
            while (sent := time.perf_counter()) < began + seconds or batcher.statistics.executions < _RUNS:
                await batcher.submit(row, batcher.reserve(1))
                latencies_s.append(time.perf_counter() - sent)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(IN_FLIGHT):
                    group.create_task(client())
        except* ServingError as errors:
            raise errors.exceptions[0] from None
        finally:
            self._end()
        return _measurement(latencies_s, time.perf_counter() - began, time.process_time() - cpu_s)

    async def measure_runs(self, row: Rows, seconds: float) -> Measurement:
        """Runs batches on all instances at the same time for `seconds`, at least twice, and ends the instances.

        No queue has to fill and to drain, so few runs tell the rate; the latencies are those that `IN_FLIGHT` requests
        have on average. Raises `ServingError` if a run fails. If the caller is cancelled, the runs are ended.
        """
        count = len(self.instances)
        limit = max(self.policy.preferred_batch_sizes, default=self.policy.max_batch_size)
        parts = [row] * min(limit, largest_batch(count))
        rounds: list[list[BatchOutcome]] = []
        began, cpu_s = time.perf_counter(), time.process_time()
        try:
            while len(rounds) < _ROUNDS or time.perf_counter() < began + seconds:
                rounds.append(await asyncio.gather(*(_run(instance, parts) for instance in self.instances)))
                for outcome in rounds[-1]:
                    if outcome.error is not None:
                        raise outcome.error
        finally:
            self._end()
        # The first round also allocates memory. Runs of one round end at slightly different times, so they count alone.
        runs_ns = [outcome.finished_ns - outcome.started_ns for each in rounds[1:] for outcome in each]
        rate = count * len(parts) * len(runs_ns) / sum(runs_ns) * 1e9
        latency_ms = 1e3 * IN_FLIGHT / rate
        cpu_ms = (time.process_time() - cpu_s) * 1e3 / (len(rounds) * count * len(parts))
        return Measurement(rate, latency_ms, latency_ms, cpu_ms)

    def _end(self) -> None:
        for instance in self.instances:
            instance.terminate()
            instance.close()


def largest_batch(instances: int) -> int:
    """Returns the largest batch that `IN_FLIGHT` requests give each of the instances all the time.

    While one half of the requests is computed, the clients of the other half get their answers and send again.
    """
    return max(1, IN_FLIGHT // (2 * instances))


async def _run(instance: ModelInstance, parts: list[Rows]) -> BatchOutcome:
    loop = asyncio.get_running_loop()
    future: asyncio.Future[BatchOutcome] = loop.create_future()

    def end(outcome: BatchOutcome) -> None:
        if not future.done():
            future.set_result(outcome)

    def report(outcome: BatchOutcome) -> None:
        # If the event loop is closed, nobody waits for the outcome.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(end, outcome)

    instance.execute(parts, report)
    return await future


def _measurement(latencies_s: list[float], elapsed_s: float, cpu_s: float) -> Measurement:
    latencies = sorted(latencies_s)
    count = len(latencies)
    p50_s, p99_s = percentile(latencies, 50), percentile(latencies, 99)
    return Measurement(count / elapsed_s, p50_s * 1e3, p99_s * 1e3, cpu_s * 1e3 / count)
