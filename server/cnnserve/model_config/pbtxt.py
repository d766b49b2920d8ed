"""`config.pbtxt`: how a model is to be served, and what is derived where it says nothing.

The file is optional. What it leaves out comes from the ONNX file and the manifest. What it says and this server does
not do is refused by name, never ignored: a setting that has no effect would be a lie about what runs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from google.protobuf import json_format, text_format
from google.protobuf.message import Message

from cnnserve.errors import ModelLoadFailed, reason
from cnnserve.repository.folders import ModelFolder
from cnnserve.repository.manifest import Manifest
from cnnserve.wire import model_config_pb2 as pb

CONFIG_FILE = "config.pbtxt"
_JSON_SOURCE = "parameter config"

# Set fields of these names change what a model answers or how, and are not built here.
_UNSUPPORTED = (
    "batch_input",
    "batch_output",
    "cc_model_filenames",
    "ensemble_scheduling",
    "metric_tags",
    "model_metrics",
    "model_operations",
    "model_repository_agents",
    "runtime",
)
# A classifier keeps no state, so its message is not even in our proto.
_SEQUENCES = "sequence_batching"


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


def of(folder: ModelFolder) -> pb.ModelConfig | None:
    """The config of a load: the one it came with, else the folder's. Raises as `read`."""
    return parse_json(folder.config, folder.name) if folder.config else read(folder.path, folder.config_file)


def told(folder: ModelFolder, failure: str) -> str:
    """Why a load failed, with the name of what it read where that is not config.pbtxt."""
    source = CONFIG_FILE
    if folder.config:
        source = _JSON_SOURCE
    elif folder.config_file and (folder.path / folder.config_file).exists():
        source = folder.config_file
    return source + failure.removeprefix(CONFIG_FILE) if failure.startswith(CONFIG_FILE) else failure


def read(model_folder: Path, instead: str = "") -> pb.ModelConfig | None:
    """The model's config, or None where there is none. Raises `ModelLoadFailed` naming line or field.

    It is the file `instead`, relative to the folder, where there is one.
    """
    for name in filter(None, (instead, CONFIG_FILE)):
        try:
            return parse((model_folder / name).read_text(encoding="utf-8"), model_folder.name)
        except FileNotFoundError:
            continue
        except (OSError, UnicodeDecodeError) as error:
            raise ModelLoadFailed(f"{CONFIG_FILE} cannot be read: {reason(error)}") from error
    return None


def parse(text: str, model: str) -> pb.ModelConfig:
    """Reads config.pbtxt's text for the model in folder `model`. Raises `ModelLoadFailed`."""
    try:
        config = text_format.Parse(text, pb.ModelConfig())
    except text_format.ParseError as error:
        if f'"{_SEQUENCES}"' in str(error):
            raise _unsupported(_SEQUENCES) from error
        raise ModelLoadFailed(f"{CONFIG_FILE} line {error}") from error
    return _checked(config, model)


def parse_json(text: str, model: str) -> pb.ModelConfig:
    """Reads a config from the JSON of a load by call, for the model in folder `model`. Raises `ModelLoadFailed`."""
    try:
        config = json_format.Parse(text, pb.ModelConfig(), max_recursion_depth=32)
    except json_format.ParseError as error:
        if any(f'named "{name}"' in str(error) for name in (_SEQUENCES, "sequenceBatching")):
            raise _unsupported(_SEQUENCES) from error
        raise ModelLoadFailed(f"{_JSON_SOURCE}: {error}") from error
    return _checked(config, model)


def _checked(config: pb.ModelConfig, model: str) -> pb.ModelConfig:
    if config.name and config.name != model:
        raise ModelLoadFailed(f'{CONFIG_FILE}: name is "{config.name}", the folder is "{model}"; make them equal')
    _check_enums(config)
    _refuse_unsupported(config)
    return config


def _check_enums(message: Message, where: str = "") -> None:
    """Raises `ModelLoadFailed` for a number that its enum has no name for, which protobuf lets through."""
    for field, value in message.ListFields():
        path = f"{where}{field.name}"
        if hasattr(value, "items"):
            children = [(f"{path}[{key}].", item) for key, item in value.items()]
        else:
            items = value if field.is_repeated else [value]
            children = [(f"{path}.", item) for item in items]
        for prefix, item in children:
            if isinstance(item, Message):
                _check_enums(item, prefix)
            elif field.enum_type is not None and item not in field.enum_type.values_by_number:
                known = ", ".join(field.enum_type.values_by_name)
                raise ModelLoadFailed(f"{CONFIG_FILE}: {path} is {item}, expected one of {known}")


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


def render(manifest: Manifest) -> str:
    """The config.pbtxt an export writes with a model's first version."""
    image = ", ".join(map(str, manifest.input.shape))
    output = "\n".join(
        [
            f"  {_field(pb.ModelOutput(name=manifest.output.name))}",
            f"  data_type: TYPE_{manifest.output.datatype}",
            f"  dims: [ {manifest.class_count} ]",
            *([f"  {_field(pb.ModelOutput(label_filename=manifest.labels))}"] if manifest.labels else []),
        ]
    )
    return (
        f"{_field(pb.ModelConfig(name=manifest.model))}\n"
        'backend: "onnxruntime"\n'
        f"max_batch_size: {manifest.max_batch_size}\n"
        "input {\n"
        f"  {_field(pb.ModelInput(name=manifest.input.name))}\n"
        f"  data_type: TYPE_{manifest.input.datatype}\n"
        f"  dims: [ {image} ]\n"
        "}\n"
        f"output {{\n{output}\n}}\n"
        "dynamic_batching {}\n"
    )


def _field(message: Message) -> str:
    # Names of tensors come from a file that may hold any text: quotes, backslashes, line breaks.
    return str(text_format.MessageToString(message, as_utf8=True, as_one_line=True))


def _refuse_unsupported(config: pb.ModelConfig) -> None:
    present = {descriptor.name for descriptor, _ in config.ListFields()}
    if config.response_cache.enable:
        raise _unsupported("response_cache")
    for name in _UNSUPPORTED:
        if name in present:
            raise _unsupported(name)
    if config.backend not in ("", "onnxruntime"):
        raise ModelLoadFailed(f'{CONFIG_FILE}: backend is "{config.backend}", this server runs "onnxruntime"')
    if config.platform not in ("", "onnxruntime_onnx"):
        raise ModelLoadFailed(f'{CONFIG_FILE}: platform is "{config.platform}", this server runs "onnxruntime_onnx"')
    if config.model_transaction_policy.decoupled:
        raise ModelLoadFailed(f"{CONFIG_FILE}: decoupled models are not supported; a classifier answers once a request")
    if config.max_batch_size < 0:
        raise ModelLoadFailed(f"{CONFIG_FILE}: max_batch_size is {config.max_batch_size}, expected 0 or more")


def _unsupported(name: str) -> ModelLoadFailed:
    return ModelLoadFailed(f"{CONFIG_FILE}: {name} is not supported by this server; remove it")
