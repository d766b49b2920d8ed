"""The server's settings: command-line flag > environment variable > TOML file > default.

Every field is one flag (`grpc_port` is `--grpc-port`), one variable (`CNNSERVE_GRPC_PORT`) and one key of the file. A
value that cannot be meant refuses to start.
"""

import argparse
import dataclasses
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_PREFIX = "CNNSERVE_"
# The largest length that gRPC's message options can say.
_MAX_MESSAGE_MIB = 2047
# A setting of this type may be repeated, and holds names with commas between them.
_NAMES = tuple[str, ...]
# It becomes a path below each model's folder.
_CONFIG_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
DEFAULT_ENGINE_CACHE = Path("~/.cache/cnnserve/tensorrt")


class ConfigError(Exception):
    """A setting that cannot be meant; the text names it, where it came from and what is expected."""


def _setting(default: Any, help_text: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": help_text})


@dataclass(frozen=True)
class ServerConfig:
    """All settings of `cnnserve serve`."""

    model_repository: Path = dataclasses.field(
        metadata={"help": "folder with one subfolder per model: MODEL/VERSION/model.onnx"}
    )
    host: str = _setting("127.0.0.1", "address to listen on; 0.0.0.0 or :: for every interface")
    grpc_port: int = _setting(8001, "gRPC port; 0 picks a free one and prints it")
    http_port: int = _setting(8000, "HTTP port; 0 picks a free one and prints it")
    max_message_mib: int = _setting(64, "largest gRPC message read or sent, and largest HTTP body read, in MiB")
    max_pending_mib: int = _setting(1024, "what all requests at work may hold together, in MiB; more is refused")
    drain_grace_s: float = _setting(30.0, "seconds that accepted requests may still take after SIGTERM")
    model_control_mode: str = _setting(
        "none", "none: models load at start only; poll: they follow their files; explicit: they load and unload by call"
    )
    poll_interval_s: float = _setting(5.0, "poll: seconds between two looks at the model repository")
    load_model: tuple[str, ...] = _setting((), "explicit: a model to load at start, * for all; may be repeated")
    model_config_name: str = _setting(
        "", "a model's configs/NAME.pbtxt is read in place of its config.pbtxt, where it is there"
    )
    allow_model_control: bool = _setting(False, "explicit: clients may load and unload models by call")
    shared_memory_prefix: tuple[str, ...] = _setting(
        (), "clients may register shared memory whose key begins with it; may be repeated; default: none"
    )
    triton_status_codes: bool = _setting(
        False, "Open Inference Protocol: UNAVAILABLE for full queues and timeouts, as Triton has it"
    )
    require_manifest: bool = _setting(False, "load no version without a manifest.json")
    strict_readiness: bool = _setting(False, "ready only when every model found at start is; default: one is enough")
    cpu_threads: int = _setting(0, "threads for one model's runs; 0: what the CPU affinity and the cgroup quota allow")
    device: str = _setting("cpu", "cpu or cuda: where models run whose config.pbtxt leaves it open")
    engine_cache: Path = dataclasses.field(
        default=DEFAULT_ENGINE_CACHE, metadata={"help": "folder that keeps TensorRT's engines"}
    )
    decode_threads: int = _setting(0, "threads that decode images; 0: one less than cpu_threads, at least 1")
    log_level: str = _setting("info", "debug, info, warning or error")

    def __post_init__(self) -> None:
        if not self.model_repository.is_dir():
            raise ConfigError(f"model_repository {str(self.model_repository)!r} is not a folder")
        for name in ("grpc_port", "http_port"):
            _check_range(name, getattr(self, name), 0, 65535)
        if self.grpc_port == self.http_port != 0:
            raise ConfigError(f"grpc_port and http_port are both {self.grpc_port}; they must differ")
        _check_range("max_message_mib", self.max_message_mib, 1, _MAX_MESSAGE_MIB)
        _check_range("max_pending_mib", self.max_pending_mib, self.max_message_mib, 2**20)
        _check_range("drain_grace_s", self.drain_grace_s, 0, 3600)
        _check_range("cpu_threads", self.cpu_threads, 0, 1024)
        _check_range("decode_threads", self.decode_threads, 0, 1024)
        if self.device not in ("cpu", "cuda"):
            raise ConfigError(f"device is {self.device!r}, expected cpu or cuda")
        self._check_model_control()
        self._check_config_name()
        for prefix in self.shared_memory_prefix:
            if "/" in prefix or prefix.startswith("."):
                raise ConfigError(f"shared_memory_prefix is {prefix!r}; expected the begin of a key, without its slash")
        if self.log_level not in ("debug", "info", "warning", "error"):
            raise ConfigError(f"log_level is {self.log_level!r}, expected debug, info, warning or error")

    def _check_model_control(self) -> None:
        if self.model_control_mode not in ("none", "poll", "explicit"):
            raise ConfigError(f"model_control_mode is {self.model_control_mode!r}, expected none, poll or explicit")
        if self.load_model and self.model_control_mode != "explicit":
            raise ConfigError(
                f"load_model is {','.join(self.load_model)!r}, which has no effect in model_control_mode "
                f"{self.model_control_mode}: every model is loaded; remove it, or set the mode to explicit"
            )
        _check_range("poll_interval_s", self.poll_interval_s, 0.1, 86400)

    def _check_config_name(self) -> None:
        name = self.model_config_name
        if name and (not _CONFIG_NAME.fullmatch(name) or ".." in name or name.endswith(".pbtxt")):
            raise ConfigError(
                f"model_config_name is {name!r}, expected the name of a file in the models' configs folders, without "
                ".pbtxt: letters, digits, '.', '_' and '-'"
            )


def from_sources(
    arguments: Sequence[str], environment: Mapping[str, str] | None = None, prog: str = "cnnserve serve"
) -> ServerConfig:
    """Settings from flags, environment and file. Raises `ConfigError`; flags unknown to argparse exit with 2."""
    flags = vars(_parser(prog).parse_args(arguments))
    environment = os.environ if environment is None else environment
    file = flags.pop("config") or environment.get(f"{_PREFIX}CONFIG")
    values = _read_file(Path(file)) if file else {}
    for field in dataclasses.fields(ServerConfig):
        variable = f"{_PREFIX}{field.name.upper()}"
        if variable in environment:
            values[field.name] = _convert(field.name, environment[variable], variable)
    values |= {name: _convert(name, text, _flag(name)) for name, text in flags.items() if text is not None}
    if "model_repository" not in values:
        raise ConfigError(f"say which model repository to serve: --model-repository DIR or {_PREFIX}MODEL_REPOSITORY")
    return ServerConfig(**values)


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Serve the models of a repository over gRPC.",
        epilog=f"Each flag can also be a variable ({_PREFIX}GRPC_PORT) or a key of the --config file (grpc_port).",
    )
    parser.add_argument("--config", metavar="FILE", help="TOML file with these settings")
    for field in dataclasses.fields(ServerConfig):
        default = "" if field.default in (dataclasses.MISSING, ()) else f" (default: {field.default})"
        if field.type is bool:
            parser.add_argument(
                _flag(field.name), action="store_const", const="true", default=None, help=field.metadata["help"]
            )
        else:
            action = "append" if field.type == _NAMES else "store"
            parser.add_argument(
                _flag(field.name),
                action=action,
                metavar=_metavar(field.type),
                default=None,
                help=field.metadata["help"] + default,
            )
    return parser


def _read_file(path: Path) -> dict[str, Any]:
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"config file {str(path)!r} cannot be read: {error}") from error
    known = {field.name for field in dataclasses.fields(ServerConfig)}
    if unknown := sorted(raw.keys() - known):
        raise ConfigError(f"config file {str(path)!r} has unknown settings: {', '.join(unknown)}")
    return {name: _convert(name, value, f"{path.name}: {name}") for name, value in raw.items()}


def _convert(name: str, value: object, source: str) -> object:
    kind = next(field.type for field in dataclasses.fields(ServerConfig) if field.name == name)
    if kind == _NAMES:
        return _names(value, source)
    text = str(value).strip() if not isinstance(value, bool) else str(value).lower()
    try:
        if kind is bool:
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        if isinstance(value, bool):
            raise ValueError
        return kind(text)  # type: ignore[operator]
    except (KeyError, ValueError) as error:
        raise ConfigError(f"{source} is {value!r}, expected {_metavar(kind)}") from error


def _names(value: object, source: str) -> tuple[str, ...]:
    """From a list, or from text with commas, or from both."""
    parts = value if isinstance(value, list) else [value]
    names = [name.strip() for part in parts if isinstance(part, str) for name in part.split(",")]
    if not all(names) or not all(isinstance(part, str) for part in parts):
        raise ConfigError(f"{source} is {value!r}, expected NAME,NAME,...")
    return tuple(names)


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{name} is {value}, expected {low} to {high}")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _metavar(kind: object) -> str:
    return {bool: "true or false", int: "INTEGER", float: "NUMBER", Path: "DIR", _NAMES: "NAME"}.get(kind, "TEXT")  # type: ignore[call-overload,no-any-return]
