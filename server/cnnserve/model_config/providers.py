"""Execution providers and their options: the names and values that config.pbtxt may have, of ONNX Runtime and Triton.

An unknown name or a bad value fails the load here, and the error has the known ones. Otherwise the provider's library
would fail later, with an error from its C++ code.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cnnserve.errors import ModelLoadFailed
from cnnserve.model_config.parameters import bad_value, flag, unknown, whole

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"

Kind = Literal["cpu", "cuda", "tensorrt"]

# The rule for the value of an option: a flag, a whole number of at least the given value, one of some words, any text.
_Rule = tuple[str, ...] | int | None
_FLAG: _Rule = ("0", "1")
_TEXT: _Rule = None

# Buckets limit the memory of runs, so the arena grows by the size of each allocation instead of doubling. The heuristic
# choice of a convolution algorithm takes milliseconds per shape. The exhaustive one takes most of a second, and memory
# for its workspaces.
_CUDA_DEFAULTS = {
    "arena_extend_strategy": "kSameAsRequested",
    "cudnn_conv_algo_search": "HEURISTIC",
    "use_tf32": "1",
}
_CUDA_RULES: dict[str, _Rule] = {
    "arena_extend_strategy": ("kNextPowerOfTwo", "kSameAsRequested"),
    "cudnn_conv1d_pad_to_nc1d": _FLAG,
    "cudnn_conv_algo_search": ("EXHAUSTIVE", "HEURISTIC", "DEFAULT"),
    "cudnn_conv_use_max_workspace": _FLAG,
    "device_id": 0,
    "do_copy_in_default_stream": _FLAG,
    "enable_cuda_graph": _FLAG,
    "enable_skip_layer_norm_strict_mode": _FLAG,
    "fuse_conv_bias": _FLAG,
    "gpu_mem_limit": 1,
    "prefer_nhwc": _FLAG,
    "sdpa_kernel": 0,
    "tunable_op_enable": _FLAG,
    "tunable_op_max_tuning_duration_ms": 0,
    "tunable_op_tuning_enable": _FLAG,
    "use_ep_level_unified_stream": _FLAG,
    "use_tf32": _FLAG,
}
_TENSORRT_DEFAULTS = {"trt_engine_cache_enable": "1", "trt_timing_cache_enable": "1"}
_TENSORRT_RULES: dict[str, _Rule] = {
    "device_id": 0,
    "trt_auxiliary_streams": 0,
    "trt_bf16_enable": _FLAG,
    "trt_build_heuristics_enable": _FLAG,
    "trt_builder_optimization_level": 0,
    "trt_context_memory_sharing_enable": _FLAG,
    "trt_cuda_graph_enable": _FLAG,
    "trt_detailed_build_log": _FLAG,
    "trt_dla_core": 0,
    "trt_dla_enable": _FLAG,
    "trt_engine_cache_enable": _FLAG,
    "trt_force_sequential_engine_build": _FLAG,
    "trt_force_timing_cache": _FLAG,
    "trt_fp16_enable": _FLAG,
    "trt_int8_calibration_table_name": _TEXT,
    "trt_int8_enable": _FLAG,
    "trt_int8_use_native_calibration_table": _FLAG,
    "trt_layer_norm_fp32_fallback": _FLAG,
    "trt_max_partition_iterations": 1,
    "trt_max_workspace_size": 1,
    "trt_min_subgraph_size": 1,
    "trt_op_types_to_exclude": _TEXT,
    "trt_profile_max_shapes": _TEXT,
    "trt_profile_min_shapes": _TEXT,
    "trt_profile_opt_shapes": _TEXT,
    "trt_sparsity_enable": _FLAG,
    "trt_tactic_sources": _TEXT,
    "trt_timing_cache_enable": _FLAG,
}
# Triton's names of some options.
_TENSORRT_ALIASES = {
    "int8_calibration_table_name": "trt_int8_calibration_table_name",
    "int8_use_native_calibration_table": "trt_int8_use_native_calibration_table",
    "max_workspace_size_bytes": "trt_max_workspace_size",
}
_PRECISIONS: dict[str, dict[str, str]] = {
    "FP32": {},
    "FP16": {"trt_fp16_enable": "1"},
    "BF16": {"trt_bf16_enable": "1"},
    "INT8": {"trt_int8_enable": "1"},
}


@dataclass(frozen=True)
class Provider:
    """The execution provider of one session. `cuda_options`: options of CUDA beside TensorRT."""

    kind: Kind = "cpu"
    device_id: int = 0
    options: Mapping[str, str] = field(default_factory=dict)
    cuda_options: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of the provider in ONNX Runtime."""
        return {"cpu": CPU, "cuda": CUDA, "tensorrt": TENSORRT}[self.kind]

    @property
    def chain(self) -> list[tuple[str, dict[str, str]]]:
        """Providers with their options in order of preference, as ONNX Runtime takes them."""
        if self.kind == "cpu":
            return [(CPU, {})]
        device = {"device_id": str(self.device_id)}
        first = (self.name, {**self.options, **device})
        return [first, (CUDA, {**self.cuda_options, **device})] if self.kind == "tensorrt" else [first]

    @property
    def graphs(self) -> bool:
        """Whether runs are captured as CUDA graphs, one per batch size."""
        return self.kind == "cuda" and self.options.get("enable_cuda_graph") == "1"

    @property
    def reduced_precision(self) -> bool:
        """Whether products may have fewer bits than the model's own type: with TF32, and always with TensorRT."""
        return self.kind == "tensorrt" or (self.kind == "cuda" and self.options.get("use_tf32") == "1")

    def on_device(self, device_id: int) -> "Provider":
        """Returns the same provider on another GPU."""
        return Provider(self.kind, device_id, self.options, self.cuda_options)

    def with_engines(self, cache: Path) -> "Provider":
        """Returns the provider with `cache` as the folder where TensorRT keeps its engines between starts."""
        paths = {"trt_engine_cache_path": str(cache), "trt_timing_cache_path": str(cache)}
        return Provider(self.kind, self.device_id, {**self.options, **paths}, self.cuda_options)


@dataclass(frozen=True)
class RuntimeOptions:
    """Options of ONNX Runtime itself. If a number of threads is 0, the server chooses it."""

    graph_level: Literal["basic", "extended", "off", "all"] = "all"
    intra_op_threads: int = 0
    inter_op_threads: int = 0
    parallel: bool = False
    memory_arena: bool = True
    memory_pattern: bool = True
    # Devices whose memory arenas shrink after every run, for example "cpu:0;gpu:0".
    arena_shrinkage: str = ""
    device_allocator_for_initializers: bool = False


def cuda_options(parameters: Mapping[str, str]) -> dict[str, str]:
    """Returns the defaults with the given options, checked. Raises `ModelLoadFailed` for a bad name or value."""
    return _CUDA_DEFAULTS | {name: _checked("cuda", _CUDA_RULES, name, text) for name, text in parameters.items()}


def tensorrt_options(parameters: Mapping[str, str]) -> dict[str, str]:
    """Does the same for TensorRT, and replaces Triton's names by ONNX Runtime's."""
    options = dict(_TENSORRT_DEFAULTS)
    for name, text in parameters.items():
        if name == "precision_mode":
            if text not in _PRECISIONS:
                raise bad_value("tensorrt", name, text, ", ".join(_PRECISIONS))
            options |= _PRECISIONS[text]
        elif name in ("trt_engine_cache_path", "trt_timing_cache_path"):
            # A model must not choose where the server writes.
            raise ModelLoadFailed(
                f"config.pbtxt: tensorrt {name} is a setting of the server; remove it, and start the server with "
                "--engine-cache DIR"
            )
        else:
            known = _TENSORRT_ALIASES.get(name, name)
            options[known] = _checked("tensorrt", _TENSORRT_RULES, known, text)
    return options


def _checked(source: str, rules: Mapping[str, _Rule], name: str, text: str) -> str:
    if name not in rules:
        raise unknown(f"{source} option", name, list(rules))
    rule = rules[name]
    if rule is None:
        return text
    if isinstance(rule, int):
        return str(whole(source, name, text, rule))
    if rule == _FLAG:
        return "1" if flag(source, name, text) else "0"
    if text not in rule:
        raise bad_value(source, name, text, " or ".join(rule))
    return text
