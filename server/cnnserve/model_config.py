"""`config.pbtxt`: how a model is to be served, and what is derived where it says nothing.

The file is optional. What it leaves out comes from the ONNX file and the manifest. What it says and this server does
not do is refused by name, never ignored: a setting that has no effect would be a lie about what runs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from google.protobuf import text_format

from cnnserve.batch_policy import BatchPolicy, QueuePolicy
from cnnserve.errors import ModelLoadFailed
from cnnserve.manifest import Manifest
from cnnserve.session import TensorSpec
from cnnserve.wire import model_config_pb2 as pb

CONFIG_FILE = "config.pbtxt"
DEFAULT_MODEL_FILE = "model.onnx"
DEFAULT_MAX_BATCH_SIZE = 32

# Set fields of these names change what a model answers or how, and are not built here.
_UNSUPPORTED = (
    "batch_input",
    "batch_output",
    "ensemble_scheduling",
    "model_operations",
    "model_repository_agents",
    "runtime",
)


@dataclass(frozen=True)
class WireTensor:
    """A tensor as clients see it, without the batch dimension where `Settings.batched`."""

    name: str
    datatype: str
    dims: tuple[int, ...]


@dataclass(frozen=True)
class Settings:
    """Everything one version needs to be served. `max_batch_size` is at least 1."""

    name: str
    batched: bool
    # Unbatched only: the wire tensor lacks the file's batch dimension of 1.
    add_batch: bool
    max_batch_size: int
    # The file's batch dimension is a number: every run must have exactly this many rows.
    fixed_batch: int | None
    input: WireTensor
    outputs: tuple[WireTensor, ...]
    policy: BatchPolicy
    instances: int
    label_file: str | None


@dataclass(frozen=True)
class VersionPolicy:
    """Which versions of a model are served: the newest `count`, all, or those listed."""

    kind: Literal["latest", "all", "specific"] = "latest"
    count: int = 1
    versions: tuple[int, ...] = ()

    def choose(self, available: Sequence[int]) -> list[int]:
        """The versions to serve, ascending. A specific version that is not there is left out."""
        ordered = sorted(available)
        if self.kind == "all":
            return ordered
        if self.kind == "specific":
            return [version for version in ordered if version in self.versions]
        return ordered[-self.count :]


def read(model_folder: Path) -> pb.ModelConfig | None:
    """The model's config, or None where there is none. Raises `ModelLoadFailed` naming line or field."""
    path = model_folder / CONFIG_FILE
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ModelLoadFailed(f"{CONFIG_FILE} cannot be read: {error}") from error
    return parse(text, model_folder.name)


def parse(text: str, model: str) -> pb.ModelConfig:
    """Reads config.pbtxt's text for the model in folder `model`. Raises `ModelLoadFailed`."""
    try:
        config = text_format.Parse(text, pb.ModelConfig())
    except text_format.ParseError as error:
        raise ModelLoadFailed(f"{CONFIG_FILE} line {error}") from error
    if config.name and config.name != model:
        raise ModelLoadFailed(f'{CONFIG_FILE}: name is "{config.name}", the folder is "{model}"; make them equal')
    _refuse_unsupported(config)
    return config


def version_policy(config: pb.ModelConfig | None) -> VersionPolicy:
    """The config's version policy; the newest one where it says nothing."""
    choice = None if config is None else config.version_policy.WhichOneof("policy_choice")
    if config is None or choice is None:
        return VersionPolicy()
    if choice == "all":
        return VersionPolicy("all")
    if choice == "specific":
        return VersionPolicy("specific", versions=tuple(config.version_policy.specific.versions))
    return VersionPolicy(count=max(1, config.version_policy.latest.num_versions))


def resolve(
    name: str,
    config: pb.ModelConfig | None,
    manifest: Manifest | None,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
) -> Settings:
    """Puts config, manifest and ONNX file together. Raises `ModelLoadFailed` where they contradict each other."""
    config = config or pb.ModelConfig()
    if len(inputs) != 1:
        names = ", ".join(spec.name for spec in inputs)
        raise ModelLoadFailed(f"the model has {len(inputs)} inputs ({names}); this server serves one-input classifiers")
    source = inputs[0]
    if not source.shape:
        raise ModelLoadFailed(f"input {source.name!r} is a scalar; a classifier takes a batch of images")
    batched = _is_batched(config)
    fixed = source.shape[0] if source.shape[0] > 0 else None
    maximum = _max_batch_size(config, manifest, fixed)
    wire_input = _wire_input(config, source, batched)
    return Settings(
        name=name,
        batched=batched,
        add_batch=not batched and len(wire_input.dims) < len(source.shape),
        max_batch_size=maximum,
        fixed_batch=fixed,
        input=wire_input,
        outputs=tuple(_wire_output(config, spec, batched) for spec in outputs),
        policy=_batch_policy(config, maximum),
        instances=instance_count(config),
        label_file=next((output.label_filename for output in config.output if output.label_filename), None),
    )


def instance_count(config: pb.ModelConfig | None) -> int:
    """Instances of all groups; 1 where the config says nothing (Triton's default on CPU is 2)."""
    groups = config.instance_group if config else ()
    for group in groups:
        if group.kind not in (pb.ModelInstanceGroup.KIND_AUTO, pb.ModelInstanceGroup.KIND_CPU):
            kind = pb.ModelInstanceGroup.Kind.Name(group.kind)
            raise ModelLoadFailed(
                f"{CONFIG_FILE}: instance_group kind {kind} is not available; this server runs on CPU"
            )
    return sum(max(1, group.count) for group in groups) or 1


def render(manifest: Manifest) -> str:
    """The config.pbtxt an export writes with a model's first version."""
    image = ", ".join(map(str, manifest.input.shape))
    output = "\n".join(
        [
            f'  name: "{manifest.output.name}"',
            f"  data_type: TYPE_{manifest.output.datatype}",
            f"  dims: [ {manifest.class_count} ]",
            *([f'  label_filename: "{manifest.labels}"'] if manifest.labels else []),
        ]
    )
    return (
        f'name: "{manifest.model}"\n'
        'backend: "onnxruntime"\n'
        f"max_batch_size: {manifest.max_batch_size}\n"
        "input {\n"
        f'  name: "{manifest.input.name}"\n'
        f"  data_type: TYPE_{manifest.input.datatype}\n"
        f"  dims: [ {image} ]\n"
        "}\n"
        f"output {{\n{output}\n}}\n"
        "dynamic_batching {}\n"
    )


def _refuse_unsupported(config: pb.ModelConfig) -> None:
    present = {descriptor.name for descriptor, _ in config.ListFields()}
    for name in _UNSUPPORTED:
        if name in present:
            raise ModelLoadFailed(f"{CONFIG_FILE}: {name} is not supported by this server; remove it")
    if config.backend not in ("", "onnxruntime"):
        raise ModelLoadFailed(f'{CONFIG_FILE}: backend is "{config.backend}", this server runs "onnxruntime"')
    if config.platform not in ("", "onnxruntime_onnx"):
        raise ModelLoadFailed(f'{CONFIG_FILE}: platform is "{config.platform}", this server runs "onnxruntime_onnx"')
    if config.model_transaction_policy.decoupled:
        raise ModelLoadFailed(f"{CONFIG_FILE}: decoupled models are not supported; a classifier answers once a request")
    if config.max_batch_size < 0:
        raise ModelLoadFailed(f"{CONFIG_FILE}: max_batch_size is {config.max_batch_size}, expected 0 or more")


def _is_batched(config: pb.ModelConfig) -> bool:
    # max_batch_size 0 beside declared inputs is Triton's way to say that dims hold every dimension.
    return config.max_batch_size > 0 or not config.input


def _max_batch_size(config: pb.ModelConfig, manifest: Manifest | None, fixed: int | None) -> int:
    declared = config.max_batch_size or (manifest.max_batch_size if manifest else 0)
    if fixed is None:
        return declared or DEFAULT_MAX_BATCH_SIZE
    if declared > fixed:
        raise ModelLoadFailed(
            f"max_batch_size is {declared}, but the ONNX file fixes the batch at {fixed}; "
            f"set max_batch_size: {fixed} or export with a dynamic batch dimension"
        )
    return declared or fixed


def _wire_input(config: pb.ModelConfig, spec: TensorSpec, batched: bool) -> WireTensor:
    tensor = WireTensor(spec.name, spec.datatype, spec.shape[1:] if batched else spec.shape)
    if not config.input:
        return tensor
    if len(config.input) != 1 or config.input[0].name != spec.name:
        names = ", ".join(f'"{item.name}"' for item in config.input)
        raise ModelLoadFailed(f'{CONFIG_FILE}: input is {names}, the ONNX file has "{spec.name}"')
    declared = config.input[0]
    return _merge("input", tensor, declared.data_type, tuple(declared.dims), declared.HasField("reshape"))


def _wire_output(config: pb.ModelConfig, spec: TensorSpec, batched: bool) -> WireTensor:
    tensor = WireTensor(spec.name, spec.datatype, spec.shape[1:] if batched else spec.shape)
    declared = next((item for item in config.output if item.name == spec.name), None)
    if declared is None:
        return tensor
    return _merge("output", tensor, declared.data_type, tuple(declared.dims), declared.HasField("reshape"))


def _merge(kind: str, tensor: WireTensor, data_type: int, dims: tuple[int, ...], reshaped: bool) -> WireTensor:
    """The declared tensor where it fits the file's; a `-1` on either side fits any size."""
    datatype = pb.DataType.Name(data_type).removeprefix("TYPE_")
    if datatype != tensor.datatype:
        raise ModelLoadFailed(
            f'{CONFIG_FILE}: {kind} "{tensor.name}" has data_type TYPE_{datatype}, '
            f"the ONNX file has TYPE_{tensor.datatype}"
        )
    fits = len(dims) == len(tensor.dims) and all(a == b or -1 in (a, b) for a, b in zip(dims, tensor.dims, strict=True))
    if not fits and not reshaped:
        raise ModelLoadFailed(
            f'{CONFIG_FILE}: {kind} "{tensor.name}" has dims {list(dims)}, '
            f"the ONNX file has {list(tensor.dims)}; write dims: {list(tensor.dims)}"
        )
    return WireTensor(tensor.name, tensor.datatype, dims)


def _batch_policy(config: pb.ModelConfig, maximum: int) -> BatchPolicy:
    dynamic = config.dynamic_batching
    levels = max(1, dynamic.priority_levels)
    for size in dynamic.preferred_batch_size:
        if not 1 <= size <= maximum:
            raise ModelLoadFailed(f"{CONFIG_FILE}: preferred_batch_size {size} is not within 1 and {maximum}")
    default = dynamic.default_priority_level
    if dynamic.priority_levels and not 1 <= default <= levels:
        raise ModelLoadFailed(f"{CONFIG_FILE}: default_priority_level is {default}, expected 1 to {levels}")
    for level in dynamic.priority_queue_policy:
        if not 1 <= level <= levels:
            raise ModelLoadFailed(f"{CONFIG_FILE}: priority_queue_policy {level} is not a level from 1 to {levels}")
    return BatchPolicy(
        max_batch_size=maximum,
        preferred_batch_sizes=tuple(sorted(dynamic.preferred_batch_size)),
        max_queue_delay_us=dynamic.max_queue_delay_microseconds,
        queue=_queue_policy(dynamic.default_queue_policy, maximum),
        priority_levels=levels,
        default_priority=max(1, default),
        priority_queues={level: _queue_policy(q, maximum) for level, q in dynamic.priority_queue_policy.items()},
        preserve_ordering=dynamic.preserve_ordering,
    )


def _queue_policy(queue: pb.ModelQueuePolicy, maximum: int) -> QueuePolicy:
    return QueuePolicy(
        max_queue_size=queue.max_queue_size or max(16 * maximum, 256),
        default_timeout_us=queue.default_timeout_microseconds,
        delay_expired=queue.timeout_action == pb.ModelQueuePolicy.DELAY,
        timeout_override=queue.allow_timeout_override,
    )
