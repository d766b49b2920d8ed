"""Opens the sessions and starts the instances of a version, as its execution plan says.

All CPU instances share one session. The threads of the session and of the instances together use the CPU budget. Every
GPU instance has its own session and buffers and, if the config asks for them, its own CUDA graphs.
"""

import logging
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cnnserve.batching import buckets as batch_buckets
from cnnserve.batching.inline import InlineRuns
from cnnserve.batching.instance import ModelInstance, Steps
from cnnserve.datatypes import Rows
from cnnserve.errors import ModelLoadFailed
from cnnserve.model_config.execution import Execution
from cnnserve.model_config.providers import Provider
from cnnserve.model_config.settings import Settings, check_input
from cnnserve.repository.onnx_files import OnnxFiles
from cnnserve.runtime import cuda
from cnnserve.runtime.bound_runner import BoundRunner
from cnnserve.runtime.session import ProviderUnavailable, Session, SessionOptions, require, runtime_version

_log = logging.getLogger(__name__)

OnStage = Callable[[str], None]
# Models in larger files are not timed, because their runs would delay every start.
_SMALL_BYTES = 4 * 2**20
_SMALL_RUN_S = 0.0005
_TIMED_RUNS = 5
# A run on the event loop delays all requests, so a batch may take this long. It is measured with this many rows.
_INLINE_S = 0.001
_INLINE_ROWS = 16
BUILDING = "building TensorRT engines"


@dataclass(frozen=True)
class Worker:
    """An instance and its session. `buckets`: the sizes to which batches are padded; empty: they are not padded."""

    instance: ModelInstance
    session: Session
    buckets: tuple[int, ...]

    def warm(self, limit_s: float) -> None:
        """Runs every bucket once on zeros, so that no request is the first of its shape. Raises `InferenceFailed`.

        A run that takes longer than `limit_s` is ended.
        """
        spec = self.session.inputs[0]
        if -1 in spec.shape[1:]:
            return
        # The largest size comes second, so that TensorRT widens the range of an engine only once.
        for size in (*self.buckets[:1], *self.buckets[:0:-1]):
            self.instance.run([spec.zeros(size)], limit_s)


def open_sessions(
    model: Path | OnnxFiles, execution: Execution, cpu_threads: int, engine_cache: Path, on_stage: OnStage
) -> tuple[Execution, list[Session]]:
    """Returns the plan that is in force, and its sessions. Blocks. Raises `ModelLoadFailed`.

    The first session is that of all CPU instances, if there are any. Then there is one per GPU instance. The plan
    differs from `execution` if the GPU cannot be used and the config allows the CPU.
    """
    try:
        return execution, _open(model, execution, cpu_threads, engine_cache, on_stage)
    except ProviderUnavailable as error:
        if not execution.allow_cpu_fallback:
            raise ModelLoadFailed(str(error)) from error
        _log.warning("%s runs on the CPU, which cnnserve.allow_cpu_fallback allows: %s", model.name, error)
    execution = execution.on_cpu()
    return execution, _open(model, execution, cpu_threads, engine_cache, on_stage)


def make_workers(name: str, execution: Execution, sessions: Sequence[Session], settings: Settings) -> list[Worker]:
    """Returns the instances, each with its own thread. Raises `ModelLoadFailed` for buckets that do not fit."""
    shared = [sessions[0]] * execution.cpu_instances if execution.cpu_instances else []
    of_gpus = sessions[1:] if execution.cpu_instances else sessions
    return [
        _worker(f"{name}-{number}", execution, session, settings) for number, session in enumerate([*shared, *of_gpus])
    ]


def inline_runs(execution: Execution, workers: Sequence[Worker], settings: Settings) -> InlineRuns | None:
    """Returns the runs of a small model on the event loop, or None if the model is not small. Blocks for some runs."""
    session, spec = workers[0].session, workers[0].session.inputs[0]
    alone = len(workers) == 1 and session.provider.kind == "cpu" and not workers[0].buckets
    parallel = session.threads > 1 or execution.runtime.parallel
    if not alone or parallel or session.has_control_flow or -1 in spec.shape[1:]:
        return None
    rows = min(_INLINE_ROWS, settings.max_batch_size)
    one_s, many_s = (_shortest_run_s(session, spec.zeros(count)) for count in (1, rows))
    if one_s > _INLINE_S:
        return None
    at_most = max(1, min(settings.max_batch_size, int(_INLINE_S / (many_s / rows))))
    runs = session.terminable()
    return InlineRuns(Steps(runs, (), None), runs.terminate, at_most)


def _shortest_run_s(session: Session, batch: Rows) -> float:
    times = []
    for _ in range(_TIMED_RUNS):
        started = time.perf_counter()
        session.run(batch)
        times.append(time.perf_counter() - started)
    return min(times)


def _open(
    model: Path | OnnxFiles, execution: Execution, cpu_threads: int, engine_cache: Path, on_stage: OnStage
) -> list[Session]:
    sessions = []
    if execution.cpu_instances:
        # A single instance has the CPU budget for itself and may spin during a run. Several instances share it and must
        # not. The thread of each instance computes, too, so the session adds only the rest of the budget.
        threads = execution.runtime.intra_op_threads or max(1, cpu_threads - execution.cpu_instances + 1)
        options = SessionOptions(threads, execution.cpu_instances == 1, Provider(), runtime=execution.runtime)
        session = Session(model, options)
        # Before the model is run: a run of what cannot be served says less.
        check_input(session.inputs)
        if threads > 1 and not execution.runtime.intra_op_threads and _is_small(model, session):
            session = Session(model, replace(options, threads=1))
        sessions.append(session)
    for gpu in execution.gpus:
        provider = gpu
        if gpu.kind == "tensorrt":
            require(gpu)
            on_stage(BUILDING)
            provider = gpu.with_engines(_engine_folder(engine_cache, gpu.device_id, model))
        options = SessionOptions(
            execution.runtime.intra_op_threads or 1, False, provider, execution.allow_cpu_fallback, execution.runtime
        )
        sessions.append(Session(model, options))
    return sessions


def _is_small(model: Path | OnnxFiles, session: Session) -> bool:
    """Returns whether a run of one row is too short to gain from more threads.

    A run of LeNet-5 takes 0.02 ms and gains nothing from a second thread, which would spin and delay the event loop.
    """
    spec = session.inputs[0]
    # A loop may take any time, even on zeros.
    size = model.size if isinstance(model, OnnxFiles) else model.stat().st_size
    if session.has_control_flow or size > _SMALL_BYTES or -1 in spec.shape[1:]:
        return False
    return _shortest_run_s(session, spec.zeros(max(1, spec.shape[0]))) < _SMALL_RUN_S


def _engine_folder(root: Path, device_id: int, model: Path | OnnxFiles) -> Path:
    """Returns the folder of a model's engines for this kind of GPU and this ONNX Runtime. Creates it.

    They fit no other, and TensorRT would take the engine of a model that differs in its weights only.
    """
    try:
        gpu = re.sub(r"\W+", "-", cuda.device_name(device_id)).strip("-")
        folder = root.expanduser() / f"{gpu}-onnxruntime-{runtime_version()}"
        if isinstance(model, OnnxFiles):
            folder /= model.digest[:32]
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:
        raise ProviderUnavailable(f"TensorRT cannot store its engines: {error}") from error
    return folder


def _worker(name: str, execution: Execution, session: Session, settings: Settings) -> Worker:
    sizes = _buckets(execution, session, settings)
    if session.provider.kind == "cpu" or not session.bindable:
        if session.provider.graphs:
            raise ModelLoadFailed(
                "config.pbtxt: enable_cuda_graph needs tensors with fixed sizes, except for the batch; remove it"
            )
        runs = session.terminable()
        return Worker(ModelInstance(runs, name, sizes, terminate=runs.terminate), session, sizes)
    runner = BoundRunner(session, sizes, pinned=execution.pinned_input)
    return Worker(ModelInstance(runner, name, sizes, runner.buffer, runner.terminate), session, sizes)


def _buckets(execution: Execution, session: Session, settings: Settings) -> tuple[int, ...]:
    if settings.fixed_batch is not None:
        if execution.batch_buckets is not None:
            raise ModelLoadFailed(
                "config.pbtxt: parameter cnnserve.batch_buckets has no effect, because the ONNX file has the fixed "
                f"batch size {settings.fixed_batch}; remove it"
            )
        return (settings.fixed_batch,)
    if execution.batch_buckets is not None:
        return batch_buckets.checked_buckets(execution.batch_buckets, settings.max_batch_size)
    if session.provider.kind == "cpu":
        return ()
    return batch_buckets.default_buckets(settings.max_batch_size, settings.policy.preferred_batch_sizes)
