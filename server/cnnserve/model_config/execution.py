"""Checks config.pbtxt's `instance_group`, `optimization` and `parameters` and makes an execution plan of them.

| group | device |
|---|---|
| KIND_CPU | CPU |
| KIND_GPU | GPU, or the load fails |
| KIND_AUTO, or no group | the server's `--device` |

A setting that would have no effect fails the load with its name.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from google.protobuf.message import Message

from cnnserve.errors import ModelLoadFailed
from cnnserve.model_config.parameters import check_names, flag, seconds, unknown, whole
from cnnserve.model_config.providers import Provider, RuntimeOptions, cuda_options, tensorrt_options
from cnnserve.wire import model_config_pb2 as pb

Device = Literal["cpu", "cuda"]

_FALLBACK = "cnnserve.allow_cpu_fallback"
_BUCKETS = "cnnserve.batch_buckets"
_RUN_TIMEOUT = "cnnserve.run_timeout_s"
# Each instance is a thread, and each GPU instance has its own session.
_MAX_INSTANCES = 256
_GRAPH_LEVELS: dict[int, Literal["basic", "extended", "off", "all"]] = {-1: "basic", 0: "all", 1: "extended", 2: "off"}


@dataclass(frozen=True)
class Execution:
    """The execution plan of a version: how many instances run on which device, with which options.

    `gpus` has one entry per GPU instance, because each has its own session.
    """

    cpu_instances: int = 1
    gpus: tuple[Provider, ...] = ()
    allow_cpu_fallback: bool = False
    # From the config; None: the provider determines them.
    batch_buckets: tuple[int, ...] | None = None
    pinned_input: bool = False
    # Longest time of a run, from the config; None: the self-test determines it.
    run_timeout_s: float | None = None
    runtime: RuntimeOptions = field(default_factory=RuntimeOptions)

    @property
    def instances(self) -> int:
        """Number of all instances."""
        return self.cpu_instances + len(self.gpus)

    def on_cpu(self) -> "Execution":
        """Returns a plan with as many instances, all on the CPU."""
        return replace(self, cpu_instances=self.instances, gpus=(), pinned_input=False)


def read(config: pb.ModelConfig | None, device: Device = "cpu") -> Execution:
    """Returns the plan of a config. `device`: the server's `--device`. Raises `ModelLoadFailed`."""
    config = config or pb.ModelConfig()
    _refuse(config.optimization, "optimization", "priority", "gather_kernel_buffer_threshold", "eager_batching")
    gpu = _gpu_provider(config.optimization)
    cpu_instances, devices = _instances(config, device, gpu.device_id)
    _check_effect(config, has_gpu=bool(devices))
    parameters = {name: value.string_value for name, value in config.parameters.items()}
    check_names(parameters)
    return Execution(
        cpu_instances=cpu_instances,
        gpus=tuple(gpu.on_device(number) for number in devices),
        allow_cpu_fallback=flag("parameter", _FALLBACK, parameters.get(_FALLBACK, "false")),
        batch_buckets=_batch_buckets(parameters.get(_BUCKETS)),
        pinned_input=config.optimization.input_pinned_memory.enable,
        run_timeout_s=_run_timeout(parameters.get(_RUN_TIMEOUT)),
        runtime=_runtime(config.optimization.graph.level, parameters),
    )


def _instances(config: pb.ModelConfig, device: Device, default_gpu: int) -> tuple[int, list[int]]:
    """Returns the number of CPU instances, and the device number of every GPU instance."""
    cpu, gpus = 0, list[int]()
    for group in config.instance_group or [pb.ModelInstanceGroup()]:
        _check_group(group)
        count = max(1, group.count)
        if (total := cpu + len(gpus) + count * max(1, len(group.gpus))) > _MAX_INSTANCES:
            raise ModelLoadFailed(
                f"config.pbtxt: instance_group count {count} makes {total} instances of this model, "
                f"the limit is {_MAX_INSTANCES}"
            )
        auto = group.kind == pb.ModelInstanceGroup.KIND_AUTO
        if group.kind == pb.ModelInstanceGroup.KIND_GPU or (auto and device == "cuda"):
            gpus += [number for number in group.gpus or [default_gpu] for _ in range(count)]
        else:
            cpu += count
    return cpu, gpus


def _check_group(group: pb.ModelInstanceGroup) -> None:
    _refuse(group, "instance_group", "rate_limiter", "secondary_devices", "profile", "passive", "host_policy")
    kind = pb.ModelInstanceGroup.Kind.Name(group.kind)
    if group.kind == pb.ModelInstanceGroup.KIND_MODEL:
        raise ModelLoadFailed("config.pbtxt: instance_group kind KIND_MODEL is not supported; use KIND_CPU or KIND_GPU")
    if group.count < 0:
        raise ModelLoadFailed(f"config.pbtxt: instance_group count is {group.count}, expected 1 or more")
    if group.gpus and group.kind == pb.ModelInstanceGroup.KIND_CPU:
        raise ModelLoadFailed(
            f"config.pbtxt: instance_group has kind {kind} and gpus {list(group.gpus)}; remove the gpus or use KIND_GPU"
        )
    if len(set(group.gpus)) < len(group.gpus) or any(number < 0 for number in group.gpus):
        raise ModelLoadFailed(
            f"config.pbtxt: instance_group gpus is {list(group.gpus)}, expected different device numbers"
        )


def _gpu_provider(optimization: pb.ModelOptimizationPolicy) -> Provider:
    """Returns CUDA, or TensorRT with CUDA, as the accelerators say: on their device, otherwise on device 0."""
    _refuse(optimization.cuda, "optimization.cuda", "busy_wait_events", "graph_spec", "output_copy_stream")
    accelerators = optimization.execution_accelerators
    if accelerators.cpu_execution_accelerator:
        name = accelerators.cpu_execution_accelerator[0].name
        raise ModelLoadFailed(f'config.pbtxt: cpu_execution_accelerator "{name}" is not supported; remove it')
    parameters: dict[str, dict[str, str]] = {}
    for accelerator in accelerators.gpu_execution_accelerator:
        if accelerator.name not in ("cuda", "tensorrt"):
            raise unknown("gpu_execution_accelerator", accelerator.name, ["cuda", "tensorrt"])
        if accelerator.name in parameters:
            raise ModelLoadFailed(
                f"config.pbtxt: gpu_execution_accelerator {accelerator.name} is given twice; keep one"
            )
        parameters[accelerator.name] = dict(accelerator.parameters)
    cuda = cuda_options(parameters.get("cuda", {}))
    if optimization.cuda.graphs and cuda.setdefault("enable_cuda_graph", "1") == "0":
        raise ModelLoadFailed(
            "config.pbtxt: optimization.cuda.graphs is true, but the accelerator cuda has enable_cuda_graph 0; "
            "remove one of them"
        )
    if "tensorrt" not in parameters:
        return Provider("cuda", int(cuda.pop("device_id", "0")), cuda)
    if "enable_cuda_graph" in cuda:
        raise ModelLoadFailed(
            "config.pbtxt: CUDA graphs and TensorRT exclude each other; use TensorRT's trt_cuda_graph_enable"
        )
    tensorrt = tensorrt_options(parameters["tensorrt"])
    device_ids = {options.pop("device_id") for options in (tensorrt, cuda) if "device_id" in options}
    if len(device_ids) > 1:
        raise ModelLoadFailed(
            "config.pbtxt: the accelerators cuda and tensorrt have different device_id; make them equal"
        )
    return Provider("tensorrt", int(device_ids.pop()) if device_ids else 0, tensorrt, cuda)


def _check_effect(config: pb.ModelConfig, *, has_gpu: bool) -> None:
    """Raises `ModelLoadFailed` for GPU settings of a model that runs on no GPU, whichever server loads it.

    A KIND_AUTO group may run on a GPU on another server.
    """
    optimization = config.optimization
    if optimization.output_pinned_memory.enable:
        raise ModelLoadFailed("config.pbtxt: optimization.output_pinned_memory is not supported; remove it")
    kinds = {group.kind for group in config.instance_group} or {pb.ModelInstanceGroup.KIND_AUTO}
    if has_gpu or kinds != {pb.ModelInstanceGroup.KIND_CPU}:
        groups = [group for group in config.instance_group if group.gpus]
        accelerators = optimization.execution_accelerators.gpu_execution_accelerator
        if groups and any("device_id" in accelerator.parameters for accelerator in accelerators):
            raise ModelLoadFailed(
                "config.pbtxt: instance_group has gpus and an accelerator has device_id; remove the device_id"
            )
        return
    for name, present in (
        ("cuda.graphs", optimization.cuda.graphs),
        ("input_pinned_memory", optimization.input_pinned_memory.enable),
        ("gpu_execution_accelerator", bool(optimization.execution_accelerators.gpu_execution_accelerator)),
    ):
        if present:
            raise ModelLoadFailed(
                f"config.pbtxt: optimization {name} has no effect, because every instance_group is KIND_CPU; remove it"
            )


def _batch_buckets(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    return tuple(whole("parameter", _BUCKETS, size.strip(), 1) for size in text.split(","))


def _run_timeout(text: str | None) -> float | None:
    return None if text is None else seconds("parameter", _RUN_TIMEOUT, text)


def _runtime(graph_level: int, parameters: Mapping[str, str]) -> RuntimeOptions:
    if graph_level not in _GRAPH_LEVELS:
        known = ", ".join(f"{level} ({name})" for level, name in sorted(_GRAPH_LEVELS.items()))
        raise ModelLoadFailed(f"config.pbtxt: optimization.graph.level is {graph_level}, expected {known}")

    def number(name: str, maximum: int) -> int:
        value = whole("parameter", name, parameters.get(name, "0"), 0)
        if value > maximum:
            raise ModelLoadFailed(f"config.pbtxt: parameter {name} is {value}, expected at most {maximum}")
        return value

    def switch(name: str, default: str) -> bool:
        return flag("parameter", name, parameters.get(name, default))

    return RuntimeOptions(
        graph_level=_GRAPH_LEVELS[graph_level],
        intra_op_threads=number("intra_op_thread_count", 1024),
        inter_op_threads=number("inter_op_thread_count", 1024),
        parallel=bool(number("execution_mode", 1)),
        memory_arena=switch("enable_mem_arena", "true"),
        memory_pattern=switch("enable_mem_pattern", "true"),
        arena_shrinkage=parameters.get("memory.enable_memory_arena_shrinkage", ""),
        device_allocator_for_initializers=switch("session.use_device_allocator_for_initializers", "false"),
    )


def _refuse(message: Message, where: str, *names: str) -> None:
    present = {descriptor.name for descriptor, _ in message.ListFields()}
    for name in names:
        if name in present:
            raise ModelLoadFailed(f"config.pbtxt: {where}.{name} is not supported by this server; remove it")
