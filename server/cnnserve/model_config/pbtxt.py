"""Reads, checks and writes `config.pbtxt`, which says how a model is to be served.

The file is optional. A setting that this server does not support fails the load with its name. If it were ignored, its
author would believe that it has an effect.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from google.protobuf import json_format, text_format
from google.protobuf.message import Message

from cnnserve.errors import ModelLoadFailed, reason
from cnnserve.model_config.parameters import ALLOW_UNVERIFIED, flag
from cnnserve.repository.folders import ModelFolder
from cnnserve.repository.manifest import Manifest
from cnnserve.repository.tree import Tree
from cnnserve.wire import model_config_pb2 as pb

CONFIG_FILE = "config.pbtxt"
_JSON_SOURCE = "parameter config"

# Fields that would change what a model returns, or how it computes. This server does not support them.
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
# A classifier keeps no state, so our model_config.proto leaves this field out. The parsers report it as unknown.
_SEQUENCES = "sequence_batching"


@dataclass(frozen=True)
class VersionPolicy:
    """The versions of a model to serve: the newest `count`, all, or those in `versions`."""

    kind: Literal["latest", "all", "specific"] = "latest"
    count: int = 1
    versions: tuple[int, ...] = ()

    def choose(self, available: Sequence[int]) -> list[int]:
        """Returns the versions to serve, ascending. Versions that do not exist are left out."""
        ordered = sorted(available)
        if self.kind == "all":
            return ordered
        if self.kind == "specific":
            return [version for version in ordered if version in self.versions]
        return ordered[-self.count :]


def of(folder: ModelFolder, tree: Tree | None = None) -> pb.ModelConfig | None:
    """Returns the config of a load, or None if there is none. Raises `ModelLoadFailed` as `read` and `parse_json` do.

    It is the config that a client sent with the load, otherwise that of the model folder. `tree`: the opened folder.
    """
    if folder.config:
        return parse_json(folder.config, folder.name)
    if tree is not None:
        return _read(tree, _stated(folder), folder.config_file)
    with _opened(folder.open) as opened:
        return None if opened is None else _read(opened, _stated(folder), folder.config_file)


def _stated(folder: ModelFolder) -> str:
    """Returns the name that the config file has to state, if it states one; "": any."""
    return "" if folder.alias else folder.name


def allows_unverified(folder: ModelFolder, tree: Tree) -> bool:
    """Returns whether the model's config file, in `tree`, allows versions without a manifest beside verified ones.

    The config of a load call cannot allow it, nor forbid it. Raises `ModelLoadFailed` as `of` does.
    """
    if folder.config:
        parse_json(folder.config, folder.name)
    config = _read(tree, _stated(folder), folder.config_file)
    text = config.parameters[ALLOW_UNVERIFIED].string_value if config and ALLOW_UNVERIFIED in config.parameters else "0"
    return flag("parameter", ALLOW_UNVERIFIED, text)


def told(folder: ModelFolder, failure: str) -> str:
    """Returns why a load failed, with the name of its actual config in place of config.pbtxt."""
    source = CONFIG_FILE
    if folder.config:
        source = _JSON_SOURCE
    elif folder.config_file and (folder.path / folder.config_file).exists():
        source = folder.config_file
    return source + failure.removeprefix(CONFIG_FILE) if failure.startswith(CONFIG_FILE) else failure


def read(model_folder: Path, instead: str = "") -> pb.ModelConfig | None:
    """Returns the model's config, or None if there is none. Raises `ModelLoadFailed`, naming line or field.

    If the file `instead` (relative to the folder) exists, it is read in place of config.pbtxt.
    """
    with _opened(lambda: Tree(model_folder)) as tree:
        return None if tree is None else _read(tree, model_folder.name, instead)


@contextlib.contextmanager
def _opened(open_folder: Callable[[], Tree]) -> Iterator[Tree | None]:
    """Yields the opened folder of a model; None if there is none."""
    try:
        tree = open_folder()
    except FileNotFoundError:
        yield None
        return
    except OSError as error:
        raise ModelLoadFailed(f"{CONFIG_FILE} cannot be read: {reason(error)}") from error
    with tree:
        yield tree


def _read(tree: Tree, model: str, instead: str) -> pb.ModelConfig | None:
    for name in filter(None, (instead, CONFIG_FILE)):
        if tree.has(name):
            try:
                return parse(tree.read(name).decode("utf-8-sig"), model)
            except UnicodeDecodeError as error:
                raise ModelLoadFailed(f"{CONFIG_FILE} cannot be read: {reason(error)}; save it as UTF-8") from error
            except OSError as error:
                raise ModelLoadFailed(f"{CONFIG_FILE} cannot be read: {reason(error)}") from error
    return None


def parse(text: str, model: str) -> pb.ModelConfig:
    """Reads the text of a config.pbtxt in the model folder `model`. Raises `ModelLoadFailed`."""
    try:
        config = text_format.Parse(text, pb.ModelConfig())
    except text_format.ParseError as error:
        if f'"{_SEQUENCES}"' in str(error):
            raise _unsupported(_SEQUENCES) from error
        raise ModelLoadFailed(f"{CONFIG_FILE} line {error}") from error
    return _checked(config, model)


def parse_json(text: str, model: str) -> pb.ModelConfig:
    """Reads the JSON config that a client sent with a load of `model`. Raises `ModelLoadFailed`."""
    try:
        config = json_format.Parse(text, pb.ModelConfig(), max_recursion_depth=32)
    except json_format.ParseError as error:
        if any(f'named "{name}"' in str(error) for name in (_SEQUENCES, "sequenceBatching")):
            raise _unsupported(_SEQUENCES) from error
        raise ModelLoadFailed(f"{_JSON_SOURCE}: {error}") from error
    if ALLOW_UNVERIFIED in config.parameters:
        raise ModelLoadFailed(
            f"{_JSON_SOURCE}: no load call can set {ALLOW_UNVERIFIED}; set it in the model's config.pbtxt"
        )
    return _checked(config, model)


def _checked(config: pb.ModelConfig, model: str) -> pb.ModelConfig:
    if model and config.name and config.name != model:
        raise ModelLoadFailed(f'{CONFIG_FILE}: name is "{config.name}", the folder is "{model}"; make them equal')
    _check_enums(config)
    _refuse_unsupported(config)
    return config


def _check_enums(message: Message, where: str = "") -> None:
    """Raises `ModelLoadFailed` for a number that its enum does not define. Protobuf accepts any number."""
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
    """Returns the config's version policy. Without one, only the newest version is served."""
    choice = None if config is None else config.version_policy.WhichOneof("policy_choice")
    if config is None or choice is None:
        return VersionPolicy()
    if choice == "all":
        return VersionPolicy("all")
    if choice == "specific":
        return VersionPolicy("specific", versions=tuple(config.version_policy.specific.versions))
    return VersionPolicy(count=max(1, config.version_policy.latest.num_versions))


def render(manifest: Manifest) -> str:
    """Returns the text of the config.pbtxt that an export writes with the first version of a model."""
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
    # Protobuf escapes the text: a tensor name in an ONNX file may have quotes, backslashes and line breaks.
    return str(text_format.MessageToString(message, as_utf8=True, as_one_line=True))


def _refuse_unsupported(config: pb.ModelConfig) -> None:
    present = {descriptor.name for descriptor, _ in config.ListFields()}
    if config.response_cache.enable:
        raise _unsupported("response_cache")
    for name in _UNSUPPORTED:
        if name in present:
            raise _unsupported(name)
    if config.backend not in ("", "onnxruntime"):
        raise ModelLoadFailed(f'{CONFIG_FILE}: backend is "{config.backend}", expected "onnxruntime"')
    if config.platform not in ("", "onnxruntime_onnx"):
        raise ModelLoadFailed(f'{CONFIG_FILE}: platform is "{config.platform}", expected "onnxruntime_onnx"')
    if config.model_transaction_policy.decoupled:
        raise ModelLoadFailed(
            f"{CONFIG_FILE}: decoupled models are not supported, because a classifier sends one response per request; "
            "remove model_transaction_policy"
        )
    if config.max_batch_size < 0:
        raise ModelLoadFailed(f"{CONFIG_FILE}: max_batch_size is {config.max_batch_size}, expected 0 or more")


def _unsupported(name: str) -> ModelLoadFailed:
    return ModelLoadFailed(f"{CONFIG_FILE}: {name} is not supported by this server; remove it")
