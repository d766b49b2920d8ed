"""Loads and runs a model with ONNX Runtime. Only this module imports onnxruntime.

It also replaces ONNX Runtime's exceptions: a model that cannot be loaded raises `ModelLoadFailed`, a provider that
cannot be used `ProviderUnavailable`, a run that fails `InferenceFailed`.
"""

import contextlib
import functools
import io
import logging
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cnnserve.datatypes import NUMPY_TYPES, Rows, TensorSpec, is_servable, tensor_spec
from cnnserve.errors import InferenceFailed, ModelLoadFailed
from cnnserve.model_config.providers import Provider, RuntimeOptions
from cnnserve.repository import onnx_header
from cnnserve.repository.onnx_files import OnnxFiles
from cnnserve.runtime import batchless, cuda, diagnosis
from cnnserve.runtime.placement import Node, misplaced, nodes_per_provider

# Since 1.29, the Linux wheels send data about models to their maker unless this is set before the library is loaded.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import onnxruntime as ort

ort.disable_telemetry_events()
# Errors are raised as exceptions. Log lines of ONNX Runtime would repeat them.
ort.set_default_logger_severity(4)

_log = logging.getLogger(__name__)
# ONNX Runtime creates its allocator of device buffers at the first use, without a lock.
_allocating = threading.Lock()

_GRAPH_LEVELS = {
    "off": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
# Nodes whose run time depends on values.
_CONTROL_FLOW = frozenset(("If", "Loop", "Scan"))
_BUFFER_DEVICES = {"cpu": "cpu", "cuda": "cuda", "tensorrt": "cuda"}


class ProviderUnavailable(Exception):
    """The provider cannot be used on this machine. The text says what is missing and what to install."""


@dataclass(frozen=True)
class SessionOptions:
    """Options of a session.

    `threads`: number of threads of one run. `spin`: whether they may wait actively during a run; after a run they never
    do. If `provider` does not run all nodes, the load fails unless `allow_cpu_nodes` is true.
    """

    threads: int = 1
    spin: bool = True
    provider: Provider = field(default_factory=Provider)
    allow_cpu_nodes: bool = False
    runtime: RuntimeOptions = field(default_factory=RuntimeOptions)


class Binding:
    """The buffers of one batch size, allocated and bound once. Use on one thread at a time."""

    def __init__(
        self, session: Any, bound: Any, *, source: Any, results: Sequence[Any], options: Any, host: Rows
    ) -> None:
        self._session = session
        self._bound = bound
        self._source = source
        self._results = results
        self._options = options
        self.host = host

    def run(self, batch: Rows) -> list[Rows]:
        """Returns all outputs, in new memory. `batch` may be `host`. Raises `InferenceFailed`."""
        try:
            self._source.update_inplace(batch)
            self._session.run_with_iobinding(self._bound, self._options)
            # On the CPU, `numpy()` returns a view of the buffer, which the next run overwrites.
            return [result.numpy().copy() for result in self._results]
        except Exception as error:
            raise _run_failed(error) from error

    def terminate(self) -> None:
        """Makes the run that goes on, and all later ones, fail as soon as the current node has ended. Thread-safe."""
        self._options.terminate = True


class Session:
    """One loaded ONNX model. Thread-safe: runs may overlap. Private copies of its files can be closed then.

    Raises `ModelLoadFailed` if the model cannot be loaded, `ProviderUnavailable` if this machine lacks the provider.
    """

    def __init__(self, model: Path | OnnxFiles, options: SessionOptions | None = None) -> None:
        options = options or SessionOptions()
        self.provider = options.provider
        self.threads = options.threads
        self._session = _open(model, options)
        self._runtime = options.runtime
        self._options = self._run_options(None)
        inputs = [tensor_spec(value) for value in self._session.get_inputs()]
        # Outputs that clients cannot get, each with its type: strings, sequences and maps.
        self.left_out = {value.name: value.type for value in self._session.get_outputs() if not is_servable(value)}
        outputs = [tensor_spec(value) for value in self._session.get_outputs() if is_servable(value)]
        self._batchless = batchless.of(inputs, outputs)
        self.inputs = self._batchless.specs(inputs, [0] if self._batchless.input else [])
        self.outputs = self._batchless.specs(outputs, [*self._batchless.outputs])
        self._output_names = [output.name for output in self.outputs]
        nodes = [
            Node(subgraph.ep_name, node.op_type)
            for subgraph in self._session.get_provider_graph_assignment_info()
            for node in subgraph.get_nodes()
        ]
        self.placement = nodes_per_provider(nodes)
        self.has_control_flow = any(node.operator in _CONTROL_FLOW for node in nodes)
        problem = misplaced(nodes, options.provider)
        if problem and not options.allow_cpu_nodes:
            raise ModelLoadFailed(f"{problem}; set the parameter cnnserve.allow_cpu_fallback to true to allow this")

    def run(self, batch: Rows, options: Any = None) -> list[Rows]:
        """Returns all outputs for one batch of the input. Raises `InferenceFailed`."""
        try:
            feed = {self.inputs[0].name: self._batchless.fed(batch)}
            outputs = self._session.run(self._output_names, feed, options or self._options)
            return self._batchless.returned(outputs)
        except Exception as error:
            raise _run_failed(error) from error

    def terminable(self) -> "TerminableRuns":
        """Returns a way to run batches that another thread can end."""
        return TerminableRuns(self, lambda: self._run_options(None) or ort.RunOptions())

    @property
    def bindable(self) -> bool:
        """Whether the batch size alone determines the size of every tensor."""
        sizes = [size for spec in (*self.inputs, *self.outputs) for size in spec.shape[1:]]
        return self._batchless.is_plain and all(size > 0 for size in sizes)

    def bind(self, rows: int, *, pinned: bool = False) -> Binding:
        """Returns buffers for batches of exactly `rows` rows, on the provider's device. `pinned`: see `cuda.pin`."""
        spec = self.inputs[0]
        host = np.zeros((rows, *spec.shape[1:]), NUMPY_TYPES[spec.datatype])
        if pinned:
            try:
                cuda.pin(host, ort.cuda_version)
            except OSError as error:
                raise ModelLoadFailed(f"config.pbtxt: optimization.input_pinned_memory: {error}") from error
        bound = self._session.io_binding()
        source = self._device_buffer(spec, rows)
        results = [self._device_buffer(output, rows) for output in self.outputs]
        bound.bind_ortvalue_input(spec.name, source)
        for name, result in zip(self._output_names, results, strict=True):
            bound.bind_ortvalue_output(name, result)
        options = self._run_options(rows) or ort.RunOptions()
        return Binding(self._session, bound, source=source, results=results, options=options, host=host)

    def _device_buffer(self, spec: TensorSpec, rows: int) -> Any:
        device = _BUFFER_DEVICES[self.provider.kind]
        shape = [rows, *spec.shape[1:]]
        with _allocating:
            return ort.OrtValue.ortvalue_from_shape_and_type(
                shape, NUMPY_TYPES[spec.datatype].type, device, self.provider.device_id
            )

    def _run_options(self, rows: int | None) -> ort.RunOptions | None:
        """Returns the options of runs in the buffers for `rows`; if `rows` is None, of all other runs."""
        entries = {}
        if self.provider.graphs:
            # Each batch size has its own captured graph. With -1, a run uses none.
            entries["gpu_graph_id"] = str(rows or -1)
        if self._runtime.arena_shrinkage:
            entries["memory.enable_memory_arena_shrinkage"] = self._runtime.arena_shrinkage
        if not entries:
            return None
        options = ort.RunOptions()
        for key, value in entries.items():
            options.add_run_config_entry(key, value)
        return options


class TerminableRuns:
    """Runs batches of one caller on a session; `terminate` ends the run that goes on. One run at a time."""

    def __init__(self, session: Session, new_options: Callable[[], Any]) -> None:
        self._session = session
        self._new_options = new_options
        self._options = new_options()

    def run(self, batch: Rows) -> list[Rows]:
        """Returns all outputs for one batch. Raises `InferenceFailed`, also if another thread ended the run."""
        if self._options.terminate:
            self._options = self._new_options()
        return self._session.run(batch, self._options)

    def terminate(self) -> None:
        """Makes the run fail as soon as its current node has ended. Thread-safe."""
        self._options.terminate = True


def runtime_version() -> str:
    """Returns the version of ONNX Runtime."""
    return str(ort.__version__)


def cuda_version() -> str:
    """Returns the version of CUDA for which ONNX Runtime was built; "" if it was built without CUDA."""
    return str(getattr(ort, "cuda_version", ""))


def require(provider: Provider) -> None:
    """Raises `ProviderUnavailable` if the wheel lacks the provider or this machine lacks one of its libraries."""
    for name, _ in provider.chain:
        if name not in ort.get_available_providers():
            raise ProviderUnavailable(diagnosis.not_built_in(name, _distributions()))
    if provider.kind == "cpu":
        return
    _preload()
    folder = Path(ort.__file__).parent / "capi"
    for kind in ("cuda", "tensorrt") if provider.kind == "tensorrt" else ("cuda",):
        if missing := cuda.missing_library(folder / f"libonnxruntime_providers_{kind}.so"):
            raise ProviderUnavailable(diagnosis.missing_library(missing, provider.name))


def _open(model: Path | OnnxFiles, options: SessionOptions) -> ort.InferenceSession:
    provider = options.provider
    require(provider)
    settings, source = _ort_options(options), _source(model, provider)
    # ONNX Runtime copies what it needs of these views, so they must live until the session is made.
    views = {path: copy.view() for path, copy in model.external.items()} if isinstance(model, OnnxFiles) else {}
    try:
        if views:
            settings.add_external_initializers_from_files_in_memory(
                [*views], [*views.values()], [view.nbytes for view in views.values()]
            )
        session = ort.InferenceSession(source, settings, providers=provider.chain, enable_fallback=0)
    except Exception as error:
        # Clients see the reason, but must not see the server's folders.
        text = str(error).replace(source, model.name) if isinstance(source, str) else str(error)
        reason = diagnosis.reason(text)
        # cuDNN is loaded only when the first node needs it, so `require` cannot see that it is missing.
        if missing := diagnosis.library_in(str(error)):
            raise ProviderUnavailable(diagnosis.missing_library(missing, provider.name)) from error
        if diagnosis.is_device_failure(str(error)):
            raise ProviderUnavailable(f"{provider.name} cannot use GPU {provider.device_id}: {reason}") from error
        if new := diagnosis.too_new(str(error), _header(model), _distribution(), ort.__version__):
            raise ModelLoadFailed(f"{model.name} cannot be loaded: {new}") from error
        if isinstance(model, OnnxFiles) and diagnosis.is_cut_off(str(error)):
            sizes = ", ".join(f"{name} has {copy.size} bytes" for name, copy in sorted(model.external.items()))
            reason = f"its external data is cut off: {sizes}; copy the files of the version again"
        raise ModelLoadFailed(f"{model.name} cannot be loaded: {reason}") from error
    session.disable_fallback()
    # If a provider cannot be started, ONNX Runtime leaves it out and raises nothing.
    started = session.get_providers()
    if absent := [name for name, _ in provider.chain if name not in started]:
        raise ProviderUnavailable(f"{', '.join(absent)} could not be started on GPU {provider.device_id}")
    return session


def _source(model: Path | OnnxFiles, provider: Provider) -> str | bytes:
    """Returns what ONNX Runtime takes for a model: a path, or bytes, of which it makes two more copies."""
    if not isinstance(model, OnnxFiles):
        return str(model)
    # TensorRT gives its engines names that depend on the name of the file. That of a copy is a number that changes.
    if model.model.path is None or provider.kind == "tensorrt":
        return model.model.data()
    return model.model.path


def _header(model: Path | OnnxFiles) -> onnx_header.OnnxHeader | None:
    if not isinstance(model, OnnxFiles):
        return onnx_header.read(model)
    with model.model.open() as file:
        return onnx_header.read_from(file)


def _ort_options(options: SessionOptions) -> ort.SessionOptions:
    runtime = options.runtime
    result = ort.SessionOptions()
    # With 0, ONNX Runtime would use every core of the host and pin its threads to them.
    result.intra_op_num_threads = options.threads
    result.inter_op_num_threads = runtime.inter_op_threads or 1
    result.log_severity_level = 4
    result.graph_optimization_level = _GRAPH_LEVELS[runtime.graph_level]
    result.enable_cpu_mem_arena = runtime.memory_arena
    result.enable_mem_pattern = runtime.memory_pattern
    if runtime.parallel:
        result.execution_mode = ort.ExecutionMode.ORT_PARALLEL
    result.add_session_config_entry("session.intra_op.allow_spinning", "1" if options.spin else "0")
    result.add_session_config_entry("session.force_spinning_stop", "1")
    # session.disable_cpu_ep_fallback would also refuse arithmetic on shapes, so `placement` checks the nodes.
    result.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if runtime.device_allocator_for_initializers:
        result.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    return result


@functools.cache
def _preload() -> None:
    """Loads NVIDIA's libraries from their wheels. A missing one is only logged: a later error says more about it."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        ort.preload_dlls()
    if text := printed.getvalue().strip():
        _log.debug("onnxruntime.preload_dlls: %s", text)


def _distributions() -> list[str]:
    from importlib import metadata  # noqa: PLC0415  (only failed loads need it)

    found = []
    for name in ("onnxruntime", "onnxruntime-gpu"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found.append(metadata.distribution(name).name)
    return found


def _distribution() -> str:
    """Returns the installed wheel. If both are installed, nobody can know which is in use; then the first."""
    return next(iter(_distributions()), "onnxruntime")


def _run_failed(error: Exception) -> InferenceFailed:
    return InferenceFailed(f"ONNX Runtime: {diagnosis.reason(str(error))}")
