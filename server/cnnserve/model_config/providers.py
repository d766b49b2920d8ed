"""Execution providers and their options: what config.pbtxt may say of them, in ONNX Runtime's and in Triton's words.

A name or a value that the provider would not understand is refused here, with the known ones, before a library that is
loaded with it answers with a line of C++.
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

# An option's kind: a flag, a whole number of at least the given value, one of some words, or any text.
_Rule = tuple[str, ...] | int | None
_FLAG: _Rule = ("0", "1")
_TEXT: _Rule = None

# The arena grows by what a run asks for instead of doubling: buckets give it a known top. A heuristic choice of the
# convolution costs milliseconds a shape where the exhaustive one costs most of a second and its workspaces.
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
# Triton's words for some of them.
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
    """Where one session runs. `options` are the provider's own; `cuda_options` those of CUDA beneath TensorRT."""

    kind: Kind = "cpu"
    device_id: int = 0
    options: Mapping[str, str] = field(default_factory=dict)
    cuda_options: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """ONNX Runtime's name of it."""
        return {"cpu": CPU, "cuda": CUDA, "tensorrt": TENSORRT}[self.kind]

    @property
    def chain(self) -> list[tuple[str, dict[str, str]]]:
        """Providers with their options, first choice first, as ONNX Runtime takes them."""
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
        """Whether products may be rounded to fewer bits than the model's own type has (TF32, TensorRT's modes)."""
        return self.kind == "tensorrt" or (self.kind == "cuda" and self.options.get("use_tf32") == "1")

    def on_device(self, device_id: int) -> "Provider":
        """The same on another GPU."""
        return Provider(self.kind, device_id, self.options, self.cuda_options)

    def with_engines(self, cache: Path) -> "Provider":
        """TensorRT only: the folder that keeps its engines from one start to the next."""
        paths = {"trt_engine_cache_path": str(cache), "trt_timing_cache_path": str(cache)}
        return Provider(self.kind, self.device_id, {**self.options, **paths}, self.cuda_options)


@dataclass(frozen=True)
class RuntimeOptions:
    """ONNX Runtime's own switches. Thread counts of 0 leave the choice to the server."""

    graph_level: Literal["basic", "extended", "off", "all"] = "all"
    intra_op_threads: int = 0
    inter_op_threads: int = 0
    parallel: bool = False
    memory_arena: bool = True
    memory_pattern: bool = True
    # Devices whose arenas shrink after every run, as "cpu:0;gpu:0".
    arena_shrinkage: str = ""
    device_allocator_for_initializers: bool = False


def cuda_options(parameters: Mapping[str, str]) -> dict[str, str]:
    """Checked options over the defaults. Raises `ModelLoadFailed` for an unknown name or a bad value."""
    return _CUDA_DEFAULTS | {name: _checked("cuda", _CUDA_RULES, name, text) for name, text in parameters.items()}


def tensorrt_options(parameters: Mapping[str, str]) -> dict[str, str]:
    """The same for TensorRT; Triton's names become ONNX Runtime's."""
    options = dict(_TENSORRT_DEFAULTS)
    for name, text in parameters.items():
        if name == "precision_mode":
            if text not in _PRECISIONS:
                raise bad_value("tensorrt", name, text, ", ".join(_PRECISIONS))
            options |= _PRECISIONS[text]
        elif name in ("trt_engine_cache_path", "trt_timing_cache_path"):
            # A model's files do not choose where the server writes.
            raise ModelLoadFailed(f"config.pbtxt: {name} is the server's: start it with --engine-cache DIR")
        else:
            known = _TENSORRT_ALIASES.get(name, name)
            options[known] = _checked("tensorrt", _TENSORRT_RULES, known, text)
    return options


def _checked(source: str, rules: Mapping[str, _Rule], name: str, text: str) -> str:
    if name not in rules:
        raise unknown(f"execution accelerator {source}", name, list(rules))
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
