"""Derives the settings of a version from its config.pbtxt, its manifest and its ONNX file.

What config.pbtxt leaves out comes from the ONNX file and the manifest. The three must not contradict each other.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from cnnserve.batching.policy import BatchPolicy, QueuePolicy
from cnnserve.datatypes import TensorSpec
from cnnserve.errors import ModelLoadFailed
from cnnserve.model_config.parameters import TARGET, milliseconds
from cnnserve.model_config.pbtxt import CONFIG_FILE
from cnnserve.repository.manifest import Manifest
from cnnserve.wire import model_config_pb2 as pb

DEFAULT_MAX_BATCH_SIZE = 32
# Far above useful sizes, and far below the limits of memory and of the config's 32-bit fields.
_MAX_BATCH_SIZE = 65536
_MAX_PRIORITY_LEVELS = 1024


@dataclass(frozen=True)
class WireTensor:
    """A tensor as clients see it, without its batch dimension if `Settings.batched` is true."""

    name: str
    datatype: str
    dims: tuple[int, ...]
    # True if the config declares the tensor with `reshape`: the ONNX file has the same values in another shape.
    reshaped: bool = False


@dataclass(frozen=True)
class Settings:
    """The settings of one version. `max_batch_size` is at least 1."""

    name: str
    batched: bool
    # Shape of one input row in the ONNX file if the config declares another shape; otherwise None.
    input_reshape: tuple[int, ...] | None
    max_batch_size: int
    # Batch size if it is fixed in the ONNX file: every run must have exactly this many rows. Otherwise None.
    fixed_batch: int | None
    input: WireTensor
    outputs: tuple[WireTensor, ...]
    policy: BatchPolicy
    label_file: str | None
    # Index of the output that has the values of the classes.
    label_output: int = 0

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of one input row in the ONNX file; -1 for each size that neither the file nor the config fixes."""
        if self.input_reshape is not None:
            return self.input_reshape
        return self.input.dims if self.batched else self.input.dims[1:]


def resolve(
    name: str,
    config: pb.ModelConfig | None,
    manifest: Manifest | None,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    *,
    left_out: Mapping[str, str] = MappingProxyType({}),
) -> Settings:
    """Returns the settings. Raises `ModelLoadFailed` if config, manifest and ONNX file contradict each other.

    `left_out` has the outputs that cannot be served, with their types: the config has to name the others.
    """
    config = config or pb.ModelConfig()
    source = check_input(inputs)
    batched = _is_batched(config)
    maximum = _max_batch_size(config, manifest, source)
    wire_input = _wire_input(config, source, batched)
    known = [spec.name for spec in outputs]
    _check_left_out(config, known, left_out)
    for declared in config.output:
        if declared.name not in known:
            raise ModelLoadFailed(
                f'{CONFIG_FILE}: output "{declared.name}" is not in the ONNX file, which has {", ".join(known)}'
            )
    labelled = next((output for output in config.output if output.label_filename), None)
    return Settings(
        name=name,
        batched=batched,
        input_reshape=_row_shape(config.input[0], source, batched) if wire_input.reshaped else None,
        max_batch_size=maximum,
        fixed_batch=_fixed_batch(source),
        input=wire_input,
        outputs=tuple(_wire_output(config, spec, batched) for spec in outputs),
        policy=_batch_policy(config, maximum),
        label_file=labelled.label_filename if labelled else None,
        label_output=known.index(labelled.name) if labelled else _class_output(config, outputs),
    )


def check_input(inputs: Sequence[TensorSpec]) -> TensorSpec:
    """Returns the only input. Raises `ModelLoadFailed` if there are more or none, or if it takes no batch."""
    if len(inputs) != 1:
        names = ", ".join(spec.name for spec in inputs) or "none"
        raise ModelLoadFailed(f"the model has {len(inputs)} inputs ({names}), expected one: a batch of images")
    (source,) = inputs
    if not source.shape:
        raise ModelLoadFailed(
            f"input {source.name!r} is a scalar or has no shape, expected a batch of images; export the model with the "
            "shape of its input"
        )
    if 0 in source.shape:
        raise ModelLoadFailed(
            f"input {source.name!r} has the shape {list(source.shape)}, which holds no value; export the model with a "
            "free batch dimension"
        )
    return source


def _fixed_batch(source: TensorSpec) -> int | None:
    return source.shape[0] if source.shape[0] > 0 else None


def _check_left_out(config: pb.ModelConfig, known: Sequence[str], left_out: Mapping[str, str]) -> None:
    """Raises `ModelLoadFailed` unless the config leaves out the outputs that cannot be served."""
    names = [output.name for output in config.output]
    for name, kind in left_out.items():
        if names and name not in names:
            continue
        others = ", ".join(f'"{other}"' for other in known)
        raise ModelLoadFailed(
            f"output {name!r} has type {kind}, which cannot be served; "
            + (
                f"list only the other outputs in {CONFIG_FILE} ({others}), each with data_type and dims"
                if known
                else "export the model with an output of floats"
            )
        )


def _class_output(config: pb.ModelConfig, outputs: Sequence[TensorSpec]) -> int:
    """Returns the index of the output with the classes: the first one with floats, of those that the config lists."""
    listed = {output.name for output in config.output}
    floats = [index for index, spec in enumerate(outputs) if spec.datatype.startswith("FP")]
    return next((index for index in floats if outputs[index].name in listed), next(iter(floats), 0))


def _is_batched(config: pb.ModelConfig) -> bool:
    # In Triton's configs, max_batch_size 0 and a declared input mean that `dims` has all dimensions, also the batch.
    return config.max_batch_size > 0 or not config.input


def _max_batch_size(config: pb.ModelConfig, manifest: Manifest | None, source: TensorSpec) -> int:
    fixed = _fixed_batch(source)
    declared = config.max_batch_size or (manifest.max_batch_size if manifest else 0)
    if (largest := max(declared, fixed or 0)) > _MAX_BATCH_SIZE:
        raise ModelLoadFailed(f"max_batch_size is {largest}, the limit is {_MAX_BATCH_SIZE}")
    if fixed is None:
        return declared or DEFAULT_MAX_BATCH_SIZE
    if declared > fixed and source.unbatched:
        raise ModelLoadFailed(
            f"max_batch_size is {declared}, but the ONNX file has no batch dimension; set max_batch_size to 0, or "
            "export the model with a free batch dimension"
        )
    if declared > fixed:
        raise ModelLoadFailed(
            f"max_batch_size is {declared}, but the ONNX file has the fixed batch size {fixed}; "
            f"set max_batch_size to {fixed}, or export the model with a free batch dimension"
        )
    return declared or fixed


def _wire_input(config: pb.ModelConfig, spec: TensorSpec, batched: bool) -> WireTensor:
    if config.input and (len(config.input) != 1 or config.input[0].name != spec.name):
        names = ", ".join(f'"{item.name}"' for item in config.input)
        raise ModelLoadFailed(f'{CONFIG_FILE}: input is {names}, the ONNX file has "{spec.name}"')
    if not config.input:
        return WireTensor(spec.name, spec.datatype, spec.shape[1:] if batched else spec.shape)
    declared = config.input[0]
    _refuse_flags(declared, "input", "is_shape_tensor", "allow_ragged_batch", "optional", "is_non_linear_format_io")
    # If `dims` include the batch, there are four. Three are accepted, too, because Triton's own examples declare
    # [3, 224, 224] with a reshape to [1, 3, 224, 224].
    if declared.format and len(declared.dims) not in ((3,) if batched else (3, 4)):
        raise ModelLoadFailed(
            f'{CONFIG_FILE}: input "{spec.name}" has format {pb.ModelInput.Format.Name(declared.format)} and dims '
            f"{list(declared.dims)}; a format needs three dims{'' if batched else ', or four with the batch'}"
        )
    return _declared("input", spec, declared, batched)


def _wire_output(config: pb.ModelConfig, spec: TensorSpec, batched: bool) -> WireTensor:
    declared = next((item for item in config.output if item.name == spec.name), None)
    if declared is None and spec.unbatched and not batched:
        return WireTensor(spec.name, spec.datatype, spec.shape[1:], reshaped=True)
    if declared is None:
        return WireTensor(spec.name, spec.datatype, spec.shape[1:] if batched else spec.shape)
    _refuse_flags(declared, "output", "is_shape_tensor", "is_non_linear_format_io")
    return _declared("output", spec, declared, batched)


def _refuse_flags(declared: pb.ModelInput | pb.ModelOutput, kind: str, *names: str) -> None:
    for name in names:
        if getattr(declared, name):
            raise ModelLoadFailed(
                f'{CONFIG_FILE}: {kind} "{declared.name}" has {name}, which is not supported; remove it'
            )


def _declared(kind: str, spec: TensorSpec, declared: pb.ModelInput | pb.ModelOutput, batched: bool) -> WireTensor:
    """Returns the declared tensor. Raises `ModelLoadFailed` if it does not fit the file's; `-1` fits any size."""
    datatype = pb.DataType.Name(declared.data_type).removeprefix("TYPE_")
    if datatype != spec.datatype:
        raise ModelLoadFailed(
            f'{CONFIG_FILE}: {kind} "{spec.name}" has data_type TYPE_{datatype}, the ONNX file has TYPE_{spec.datatype}'
        )
    own = spec.shape[1:] if batched else spec.shape
    dims = tuple(declared.dims)
    reshaped = declared.HasField("reshape")
    # With `reshape`, clients see `dims`, and the ONNX file has `reshape.shape`.
    shape = tuple(declared.reshape.shape) if reshaped else dims
    if spec.unbatched and not batched and not reshaped:
        # Clients see the file's own shape; inside there is a batch dimension of 1.
        shape, reshaped = (1, *dims), True
    if not _fits(shape, own) or (reshaped and not _same_count(dims, shape)):
        raise ModelLoadFailed(
            f'{CONFIG_FILE}: {kind} "{spec.name}" has {"reshape.shape" if reshaped else "dims"} {list(shape)}'
            f"{f' for dims {list(dims)}' if reshaped else ''}, the ONNX file has {list(own)}; write dims: {list(own)}"
        )
    return WireTensor(spec.name, spec.datatype, dims, reshaped)


def _row_shape(declared: pb.ModelInput, source: TensorSpec, batched: bool) -> tuple[int, ...]:
    if not declared.HasField("reshape"):
        return source.shape[1:]
    return tuple(declared.reshape.shape)[0 if batched else 1 :]


def _fits(shape: tuple[int, ...], own: tuple[int, ...]) -> bool:
    return len(shape) == len(own) and all(a == b or -1 in (a, b) for a, b in zip(shape, own, strict=True))


def _same_count(dims: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    # A shape with a free size cannot be reshaped, because its number of values is not known.
    return -1 not in dims + shape and math.prod(dims) == math.prod(shape)


def _batch_policy(config: pb.ModelConfig, maximum: int) -> BatchPolicy:
    dynamic = config.dynamic_batching
    levels = max(1, dynamic.priority_levels)
    if levels > _MAX_PRIORITY_LEVELS:
        raise ModelLoadFailed(f"{CONFIG_FILE}: priority_levels is {levels}, expected 1 to {_MAX_PRIORITY_LEVELS}")
    for size in dynamic.preferred_batch_size:
        if not 1 <= size <= maximum:
            raise ModelLoadFailed(f"{CONFIG_FILE}: preferred_batch_size is {size}, expected 1 to {maximum}")
    default = dynamic.default_priority_level
    if dynamic.priority_levels and not 1 <= default <= levels:
        raise ModelLoadFailed(f"{CONFIG_FILE}: default_priority_level is {default}, expected 1 to {levels}")
    for level in dynamic.priority_queue_policy:
        if not 1 <= level <= levels:
            raise ModelLoadFailed(f"{CONFIG_FILE}: priority_queue_policy has level {level}, expected 1 to {levels}")
    return BatchPolicy(
        max_batch_size=maximum,
        preferred_batch_sizes=tuple(sorted(dynamic.preferred_batch_size)),
        max_queue_delay_us=dynamic.max_queue_delay_microseconds,
        queue=_queue_policy(dynamic.default_queue_policy, maximum),
        priority_levels=levels,
        default_priority=max(1, default),
        priority_queues={level: _queue_policy(q, maximum) for level, q in dynamic.priority_queue_policy.items()},
        preserve_ordering=dynamic.preserve_ordering,
        target_ms=_target_ms(config),
    )


def _target_ms(config: pb.ModelConfig) -> float:
    text = config.parameters[TARGET].string_value if TARGET in config.parameters else ""
    return milliseconds("parameter", TARGET, text) if text else 0.0


def _queue_policy(queue: pb.ModelQueuePolicy, maximum: int) -> QueuePolicy:
    return QueuePolicy(
        max_queue_size=queue.max_queue_size or max(16 * maximum, 256),
        default_timeout_us=queue.default_timeout_microseconds,
        delay_expired=queue.timeout_action == pb.ModelQueuePolicy.DELAY,
        timeout_override=queue.allow_timeout_override,
    )
