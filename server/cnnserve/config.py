"""The server's settings, from command-line flags, environment variables, a TOML file and defaults, in this order.

Every field is one flag (`grpc_port` is `--grpc-port`), one variable (`CNNSERVE_GRPC_PORT`) and one key of the file. If
a value is not valid, the server does not start.
"""

import argparse
import dataclasses
import ipaddress
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_PREFIX = "CNNSERVE_"
# The source of a setting that nobody has set.
DEFAULT = "default"
# The largest length, in MiB, that gRPC's options for message lengths can hold.
_MAX_MESSAGE_MIB = 2047
# A setting of this type holds names with commas between them, and its flag may be repeated.
_NAMES = tuple[str, ...]
_FILE = Path | None
# The name becomes part of a path below each model's folder.
_CONFIG_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
# As browsers send it: scheme, host and port, without a path.
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s]+")
LOAD_TIMEOUT_S, BUILD_TIMEOUT_S = 300.0, 3600.0
DEFAULT_ENGINE_CACHE = Path("~/.cache/cnnserve/tensorrt")


class ConfigError(Exception):
    """A setting is not valid. The text names the setting or its source, the value and what is expected."""


@dataclass(frozen=True)
class Setting:
    """The value of one setting, and where it comes from: a flag, a variable, the config file, or "default"."""

    value: Any
    source: str


def _setting(default: Any, help_text: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": help_text})


@dataclass(frozen=True)
class ServerConfig:
    """All settings of `cnnserve serve`."""

    model_repository: Path = dataclasses.field(
        metadata={"help": "folder with one subfolder per model: MODEL/VERSION/model.onnx"}
    )
    host: str = _setting("127.0.0.1", "address to listen on; 0.0.0.0 or :: for all interfaces")
    grpc_port: int = _setting(8001, "port for gRPC; 0: choose a free port and log its number")
    http_port: int = _setting(8000, "port for HTTP; 0: choose a free port and log its number")
    grpc_transport: str = _setting(
        "auto",
        "gRPC transport: core (less CPU for each call), aio (grpc.aio), or auto: core if it works with the installed "
        "grpcio, else aio",
    )
    grpc_socket: str = _setting(
        "", "path of a Unix socket for gRPC, in addition to the port (default: none); clients use unix:PATH"
    )
    grpc_min_ping_interval_s: float = _setting(
        5.0,
        "time between two keepalive pings of a gRPC client, in seconds; a client that pings more often loses its "
        "connection; 0: any",
    )
    max_metadata_kib: int = _setting(64, "largest metadata of a gRPC call (such as tokens), in KiB")
    max_message_mib: int = _setting(
        64, "largest gRPC message, received or sent, and largest body of an HTTP request, in MiB"
    )
    max_pending_mib: int = _setting(
        0,
        "limit of the memory that requests and images being decoded may hold together, in MiB; requests over the limit "
        "are refused (gRPC RESOURCE_EXHAUSTED, HTTP 429); 0: half of what models leave of the cgroup's memory limit, "
        "1024 without one",
    )
    drain_grace_s: float = _setting(25.0, "time that accepted requests have after SIGTERM or SIGINT, in seconds")
    model_control_mode: str = _setting(
        "none",
        "none: load models at start only; poll: load and unload models as their files change; explicit: load and "
        "unload models when clients ask for it",
    )
    poll_interval_s: float = _setting(
        5.0, "time between two polls of the model repository with --model-control-mode poll, in seconds"
    )
    load_model: tuple[str, ...] = _setting(
        (),
        "model to load at start with --model-control-mode explicit, * for all models; repeat the flag for several "
        "(default: none)",
    )
    model_config_name: str = _setting(
        "", "read a model's configs/NAME.pbtxt, if it exists, instead of config.pbtxt (default: config.pbtxt)"
    )
    allow_model_control: bool = _setting(
        False, "allow clients to load and unload models with --model-control-mode explicit (default: not allowed)"
    )
    allowed_host: tuple[str, ...] = _setting(
        (),
        "name under which clients reach the HTTP port, such as that of a proxy or of a Kubernetes Service, * as a "
        "wildcard; repeat the flag for several. With --allow-model-control, requests for other names and from pages of "
        "other sites are refused; addresses and localhost always pass (default: no further name)",
    )
    cors_origin: tuple[str, ...] = _setting(
        (),
        "origin whose web pages may use the HTTP port, such as https://example.org, * for all; repeat the flag for "
        "several (default: none)",
    )
    shared_memory_prefix: tuple[str, ...] = _setting(
        (),
        "allow clients to register shared memory whose key begins with NAME; repeat the flag for several (default: no "
        "shared memory)",
    )
    triton_status_codes: bool = _setting(
        False,
        "return UNAVAILABLE for full queues and timeouts in the Open Inference Protocol, as Triton does (default: "
        "RESOURCE_EXHAUSTED and DEADLINE_EXCEEDED)",
    )
    load_timeout_s: float = _setting(
        LOAD_TIMEOUT_S, "time that a version may take to load before the server gives the load up, in seconds"
    )
    build_timeout_s: float = _setting(
        BUILD_TIMEOUT_S,
        "time that a version may take once it builds TensorRT engines, instead of --load-timeout-s, in seconds",
    )
    require_manifest: bool = _setting(
        False, "refuse to load versions without manifest.json (default: load them as unverified)"
    )
    strict_readiness: bool = _setting(
        False,
        "report ready only if each model to be served at start has a READY version; models unloaded since then do not "
        "count (default: one READY model is enough)",
    )
    cpu_threads: int = _setting(
        0, "CPU threads for the runs of one model; 0: as many as the CPU affinity and the cgroup quota allow"
    )
    device: str = _setting("cpu", "device for models whose config.pbtxt names none: cpu or cuda")
    engine_cache: Path = dataclasses.field(
        default=DEFAULT_ENGINE_CACHE, metadata={"help": "folder in which TensorRT's engines are kept between starts"}
    )
    decode_threads: int = _setting(0, "threads that decode images; 0: one less than the CPU threads, at least 1")
    no_drift_metrics: bool = _setting(
        False,
        "do not count probabilities, entropies, predicted classes and input values for the metrics (default: counted)",
    )
    tokens_file: Path | None = dataclasses.field(
        default=None,
        metadata={
            "help": "file with a token's name, scopes and SHA-256 on each line, as cnnserve token prints them; clients "
            "then need a token for all but health (default: no tokens)"
        },
    )
    certificate_scopes_file: Path | None = dataclasses.field(
        default=None,
        metadata={
            "help": "file with a name of client certificates and its scopes on each line, such as CN:web infer,read "
            "(default: every certificate that --tls-client-ca trusts may do everything)"
        },
    )
    no_reflection: bool = _setting(False, "switch gRPC's server reflection off (default: on, with scope read)")
    trusted_proxy: tuple[str, ...] = _setting(
        (),
        "address or network (such as 10.0.0.0/8) of proxies whose header X-Forwarded-For names the client; repeat the "
        "flag for several (default: none)",
    )
    log_level: str = _setting("info", "lowest level of the messages to log: debug, info, warning or error")

    def __post_init__(self) -> None:
        if not self.model_repository.is_dir():
            raise ConfigError(f"model_repository {str(self.model_repository)!r} is not a folder")
        for name in ("grpc_port", "http_port"):
            _check_range(name, getattr(self, name), 0, 65535)
        if self.grpc_port == self.http_port != 0:
            raise ConfigError(f"grpc_port and http_port are both {self.grpc_port}; they must differ")
        if self.grpc_transport not in ("auto", "core", "aio"):
            raise ConfigError(f"grpc_transport is {self.grpc_transport!r}, expected auto, core or aio")
        _check_range("grpc_min_ping_interval_s", self.grpc_min_ping_interval_s, 0, 7200)
        _check_range("max_metadata_kib", self.max_metadata_kib, 1, 1024)
        _check_range("max_message_mib", self.max_message_mib, 1, _MAX_MESSAGE_MIB)
        if self.max_pending_mib:
            _check_range("max_pending_mib", self.max_pending_mib, self.max_message_mib, 2**20)
        _check_range("drain_grace_s", self.drain_grace_s, 0, 3600)
        _check_range("load_timeout_s", self.load_timeout_s, 1, 86400)
        _check_range("build_timeout_s", self.build_timeout_s, 1, 86400)
        _check_range("cpu_threads", self.cpu_threads, 0, 1024)
        _check_range("decode_threads", self.decode_threads, 0, 1024)
        if self.device not in ("cpu", "cuda"):
            raise ConfigError(f"device is {self.device!r}, expected cpu or cuda")
        self._check_http()
        self._check_model_control()
        self._check_config_name()
        self._check_access()
        for prefix in self.shared_memory_prefix:
            if "/" in prefix or prefix.startswith("."):
                raise ConfigError(
                    f"shared_memory_prefix is {prefix!r}, expected the first characters of a key, without a slash and "
                    "without a leading dot"
                )
        if self.log_level not in ("debug", "info", "warning", "error"):
            raise ConfigError(f"log_level is {self.log_level!r}, expected debug, info, warning or error")

    def _check_http(self) -> None:
        for name in self.allowed_host:
            if "/" in name or ":" in name:
                raise ConfigError(f"allowed_host is {name!r}, expected a name without scheme and port")
        for origin in self.cors_origin:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise ConfigError(f"cors_origin is {origin!r}, expected * or an origin such as https://example.org")

    def _check_model_control(self) -> None:
        if self.model_control_mode not in ("none", "poll", "explicit"):
            raise ConfigError(f"model_control_mode is {self.model_control_mode!r}, expected none, poll or explicit")
        if self.load_model and self.model_control_mode != "explicit":
            raise ConfigError(
                f"load_model is {','.join(self.load_model)!r}, which has no effect in model_control_mode "
                f"{self.model_control_mode}, because every model is loaded; remove load_model, or set "
                "model_control_mode to explicit"
            )
        _check_range("poll_interval_s", self.poll_interval_s, 0.1, 86400)

    def _check_access(self) -> None:
        for network in self.trusted_proxy:
            try:
                ipaddress.ip_network(network)
            except ValueError as error:
                raise ConfigError(
                    f"trusted_proxy is {network!r}, expected an IP address or a network such as 10.0.0.0/8: {error}"
                ) from error

    def _check_config_name(self) -> None:
        name = self.model_config_name
        if name and (not _CONFIG_NAME.fullmatch(name) or ".." in name or name.endswith(".pbtxt")):
            raise ConfigError(
                f"model_config_name is {name!r}, expected the name of a file in the models' configs folders without "
                ".pbtxt: at most 128 letters, digits, '.', '_' and '-', without '..' and without a leading '.' or '-'"
            )


def from_sources(
    arguments: Sequence[str], environment: Mapping[str, str] | None = None, prog: str = "cnnserve serve"
) -> ServerConfig:
    """Returns the settings from flags, environment variables and file.

    Raises `ConfigError`, or `SystemExit` with status 2 for unknown flags and 0 for `--help`.
    """
    return build(gather(vars(serve_parser(prog).parse_args(arguments)), environment))


def gather(flags: Mapping[str, Any], environment: Mapping[str, str] | None = None) -> dict[str, Setting]:
    """Returns every setting that has a value, by name. `flags`: what the parser of `cnnserve serve` returned.

    Raises `ConfigError` if a value has the wrong type, or if the config file cannot be read.
    """
    environment = os.environ if environment is None else environment
    file = flags.get("config") or environment.get(f"{_PREFIX}CONFIG")
    found = _read_file(Path(file)) if file else {}
    for field in dataclasses.fields(ServerConfig):
        name = field.name
        if variable(name) in environment:
            found[name] = _setting_of(name, environment[variable(name)], variable(name))
        if flags.get(name) is not None:
            found[name] = _setting_of(name, flags[name], _flag(name))
        if field.default is not dataclasses.MISSING:
            found.setdefault(name, Setting(field.default, DEFAULT))
    return found


def build(settings: Mapping[str, Setting]) -> ServerConfig:
    """Returns the settings as one object. Raises `ConfigError` if one is missing or not valid."""
    if "model_repository" not in settings:
        raise ConfigError(
            f"model_repository is missing: set the folder to serve with --model-repository DIR or "
            f"{variable('model_repository')}"
        )
    try:
        return ServerConfig(**{name: setting.value for name, setting in settings.items()})
    except ConfigError as error:
        # Each of these texts begins with the name of the setting.
        setting = settings.get(str(error).partition(" ")[0])
        if setting is None or setting.source == DEFAULT:
            raise
        raise ConfigError(f"{error} (set by {setting.source})") from error


def variable(name: str) -> str:
    """Returns the environment variable of a setting."""
    return f"{_PREFIX}{name.upper()}"


def serve_parser(prog: str = "cnnserve serve") -> argparse.ArgumentParser:
    """Returns the parser of `cnnserve serve`."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Serve the models of a model repository over gRPC and HTTP.",
        epilog=f"Each flag can also be set as an environment variable (such as {_PREFIX}GRPC_PORT) or as a key of the "
        "--config file (such as grpc_port).",
    )
    parser.add_argument("--config", metavar="FILE", help="TOML file with settings (default: none)")
    parser.add_argument(
        "--print-config",
        action="store_true",
        help="print every setting with its value, its source and its variable, as a --config file, and exit (default: "
        "serve)",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="load and self-test the models to be served at start, print the outcome, and exit with status 0 if each "
        "of them is READY, otherwise 1 (default: serve)",
    )
    add_settings(parser)
    return parser


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Adds a flag for each setting."""
    for field in dataclasses.fields(ServerConfig):
        default = "" if field.default in (dataclasses.MISSING, (), "", None) else f" (default: {field.default})"
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


def _setting_of(name: str, value: object, source: str) -> Setting:
    return Setting(_convert(name, value, source), source)


def _read_file(path: Path) -> dict[str, Setting]:
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"config file {str(path)!r} cannot be read: {error}") from error
    known = {field.name for field in dataclasses.fields(ServerConfig)}
    if unknown := sorted(raw.keys() - known):
        raise ConfigError(
            f"config file {str(path)!r} has unknown settings: {', '.join(unknown)}; remove them or correct their names"
        )
    return {name: _setting_of(name, value, f"{path.name}: {name}") for name, value in raw.items()}


def _convert(name: str, value: object, source: str) -> object:
    kind = next(field.type for field in dataclasses.fields(ServerConfig) if field.name == name)
    if kind == _NAMES:
        return _names(value, source)
    if kind == _FILE:
        kind = Path
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
    """Returns the names in a list, in a text with commas, or in a list of such texts."""
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
    names: dict[object, str] = {bool: "true or false", int: "INTEGER", float: "NUMBER", Path: "DIR"}
    return (names | {_FILE: "FILE", _NAMES: "NAME"}).get(kind, "TEXT")
