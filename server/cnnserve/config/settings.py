"""The server's settings: their names, defaults and limits. `sources` reads them."""

import dataclasses
import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cnnserve.config import spelling

# The source of a setting that nobody has set.
DEFAULT = "default"
# The values of grpc_response_compression, weakest first.
COMPRESSION_LEVELS = ("none", "low", "medium", "high")
# The largest length, in MiB, that gRPC's options for message lengths can hold.
_MAX_MESSAGE_MIB = 2047
# A setting of this type holds names with commas between them, and its flag may be repeated.
NAMES = tuple[str, ...]
FILE = Path | None
PORT = int | None
# The name becomes part of a path below each model's folder.
_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_CONFIG_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
# As browsers send it: scheme, host and port, without a path.
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s]+")
LOAD_TIMEOUT_S, BUILD_TIMEOUT_S = 300.0, 3600.0
DEFAULT_LAYOUT_CACHE = Path("~/.cache/cnnserve/layouts")
DEFAULT_ENGINE_CACHE = Path("~/.cache/cnnserve/tensorrt")
DEFAULT_PULL_CACHE = Path("~/.cache/cnnserve/models")


class ConfigError(Exception):
    """A setting is not valid. The text names the setting or its source, the value and what is expected."""


class Address(str):
    """An address in place of a folder, such as s3://bucket/models: its models are pulled at the start."""

    __slots__ = ()


PLACE = Path | Address | None


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

    repository: Path | Address | None = dataclasses.field(
        default=None,
        metadata={
            "help": "model repository: folder with one subfolder per model, MODEL/VERSION/model.onnx; or an address, "
            "as cnnserve pull takes it (s3://, oci://, ...), which is pulled once at the start",
            "alias": "model_repository",
            "metavar": "DIR",
        },
    )
    model: tuple[str, ...] = dataclasses.field(
        default=(),
        metadata={
            "help": "serve this model in place of a model repository: an ONNX file, or the folder of a version or a "
            "model; repeat the flag for several (default: the models of --repository)",
            "metavar": "NAME=PATH",
        },
    )
    pull_cache: Path = dataclasses.field(
        default=DEFAULT_PULL_CACHE,
        metadata={"help": "folder in which the models of a repository that is an address are kept between starts"},
    )
    max_pull_gib: int = _setting(16, "largest size of the files of a repository that is an address, in GiB")
    single_model_name: str = dataclasses.field(
        default="",
        metadata={
            "help": "name of the model if --repository is the folder of one model or of one version, as KServe may "
            "mount it (default: such a folder is refused)",
            "metavar": "NAME",
        },
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
    grpc_response_compression: str = _setting(
        "none",
        "compression of gRPC responses: none, low, medium or high; a client gets an algorithm that it accepts, or none",
    )
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
    trusted_keys: Path | None = dataclasses.field(
        default=None,
        metadata={
            "help": "folder of public keys and certificates (PEM): serve only versions that one of them has signed "
            "with cnnserve sign, and use only signed files beside them; implies --require-manifest (default: "
            "signatures are not checked)",
            "metavar": "DIR",
        },
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
    auto_layout: bool = _setting(
        False,
        "find the best instances, threads and batches of each model whose config.pbtxt states none, while the server "
        "has nothing else to do (default: only of models with cnnserve.layout auto)",
    )
    layout_cache: Path = dataclasses.field(
        default=DEFAULT_LAYOUT_CACHE,
        metadata={"help": "folder in which layouts that were found are kept between starts"},
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
    tls_certificate: Path | None = dataclasses.field(
        default=None,
        metadata={"help": "PEM file with the server's certificate chain for both ports (default: plain text)"},
    )
    tls_key: Path | None = dataclasses.field(
        default=None, metadata={"help": "PEM file with the private key of --tls-certificate (default: none)"}
    )
    tls_client_ca: Path | None = dataclasses.field(
        default=None,
        metadata={
            "help": "PEM file with the certificates of the authorities that issue client certificates; clients then "
            "need one (default: no client certificates)"
        },
    )
    insecure: bool = _setting(
        False, "do not warn if other machines reach the server without TLS or without tokens (default: one warning)"
    )
    client_requests_per_second: float = _setting(
        0.0,
        "requests per second of one client (token, certificate, else address); as many may come at once, more are "
        "refused (RESOURCE_EXHAUSTED, HTTP 429), and streams are read more slowly; 0: no limit",
    )
    client_images_in_flight: int = _setting(
        0, "images of one client that may be in flight, more are refused (RESOURCE_EXHAUSTED, HTTP 429); 0: no limit"
    )
    max_connections: int = _setting(1000, "connections of each port")
    max_connections_per_address: int = _setting(
        0, "connections of one address (IPv6: /64) to the HTTP port; 0: no limit, as behind a proxy"
    )
    max_streams_per_connection: int = _setting(
        0, "gRPC calls at the same time on one connection, further ones wait at the client; 0: no limit"
    )
    max_connection_age_s: float = _setting(
        0.0, "time after which clients have to connect anew, so that new servers get their share, in seconds; 0: never"
    )
    max_connection_age_grace_s: float = _setting(
        30.0, "time that calls have to end on a connection of --max-connection-age-s, in seconds"
    )
    health_grpc_port: int | None = _setting(
        None, "port for grpc.health.v1 alone, without TLS and tokens, for probes (default: none)"
    )
    health_http_port: int | None = _setting(
        None,
        "port for /v2/health/live and /v2/health/ready alone, without TLS and tokens, for probes (default: none)",
    )
    no_reflection: bool = _setting(False, "switch gRPC's server reflection off (default: on, with scope read)")
    no_page: bool = _setting(False, "switch the page at / of the HTTP port off (default: on)")
    trusted_proxy: tuple[str, ...] = _setting(
        (),
        "address or network (such as 10.0.0.0/8) of proxies whose header X-Forwarded-For names the client; repeat the "
        "flag for several (default: none)",
    )
    log_level: str = _setting("info", "lowest level of the messages to log: debug, info, warning or error")
    log_format: str = _setting("text", "form of the log: text, or json for one object on each line")
    tracing: bool = _setting(
        False,
        "trace requests with OpenTelemetry (extra otel), whose OTEL_ variables choose exporter and sampler "
        "(default: no traces)",
    )
    access_log: bool = _setting(False, "log one line for each request (default: none)")
    access_log_sample: float = _setting(1.0, "share of the requests that --access-log logs, from above 0 to 1")

    def __post_init__(self) -> None:
        self._check_models()
        if not self.host:
            raise ConfigError("host is empty, expected an address; 0.0.0.0 or :: for all interfaces")
        for name in ("grpc_port", "http_port", "health_grpc_port", "health_http_port"):
            _check_range(name, getattr(self, name) or 0, 0, 65535)
        if self.grpc_port == self.http_port != 0:
            raise ConfigError(f"grpc_port and http_port are both {self.grpc_port}; they must differ")
        self._check_grpc()
        _check_range("max_message_mib", self.max_message_mib, 1, _MAX_MESSAGE_MIB)
        if self.max_pending_mib:
            _check_range("max_pending_mib", self.max_pending_mib, self.max_message_mib, 2**20)
        _check_range("drain_grace_s", self.drain_grace_s, 0, 3600)
        _check_range("load_timeout_s", self.load_timeout_s, 1, 86400)
        _check_range("build_timeout_s", self.build_timeout_s, 1, 86400)
        _check_range("max_pull_gib", self.max_pull_gib, 1, 2**20)
        _check_range("cpu_threads", self.cpu_threads, 0, 1024)
        _check_range("decode_threads", self.decode_threads, 0, 1024)
        if self.device not in ("cpu", "cuda"):
            raise ConfigError(f"device is {self.device!r}, expected cpu or cuda")
        self._check_http()
        self._check_model_control()
        self._check_config_name()
        self._check_access()
        self._check_limits()
        for prefix in self.shared_memory_prefix:
            if "/" in prefix or prefix.startswith("."):
                raise ConfigError(
                    f"shared_memory_prefix is {prefix!r}, expected the first characters of a key, without a slash and "
                    "without a leading dot"
                )
        self._check_log()

    def _check_grpc(self) -> None:
        if self.grpc_transport not in ("auto", "core", "aio"):
            raise ConfigError(f"grpc_transport is {self.grpc_transport!r}, expected auto, core or aio")
        if self.grpc_response_compression not in COMPRESSION_LEVELS:
            raise ConfigError(
                f"grpc_response_compression is {self.grpc_response_compression!r}, expected none, low, medium or high"
            )
        _check_range("grpc_min_ping_interval_s", self.grpc_min_ping_interval_s, 0, 7200)
        _check_range("max_metadata_kib", self.max_metadata_kib, 1, 1024)

    @property
    def models(self) -> dict[str, Path]:
        """The paths of single models by name; empty if there is a model repository."""
        return {name: Path(path) for name, _, path in (text.partition("=") for text in self.model)}

    def _check_models(self) -> None:
        if not self.model:
            if self.repository is None:
                raise ConfigError(
                    "repository is missing: set the folder to serve with --repository DIR or "
                    f"{variable('repository')}, or serve single models with --model NAME=PATH"
                )
            self._check_repository(self.repository)
        if self.single_model_name and not _MODEL_NAME.fullmatch(self.single_model_name):
            raise ConfigError(
                f"single_model_name is {self.single_model_name!r}, expected at most 128 letters, digits, '.', '_' and "
                "'-' that begin with a letter or a digit"
            )
        for text in self.model:
            name, _, path = text.partition("=")
            if not _MODEL_NAME.fullmatch(name) or not path:
                raise ConfigError(
                    f"model is {text!r}, expected NAME=PATH; a name has letters, digits, '.', '_' and '-' and begins "
                    "with a letter or a digit"
                )
            if not Path(path).exists():
                raise ConfigError(f"model is {text!r}, but {path!r} does not exist")
        if len(self.models) < len(self.model):
            raise ConfigError(f"model is {','.join(self.model)!r}, expected each name once")

    def _check_repository(self, repository: Path | Address) -> None:
        if isinstance(repository, Path):
            if not repository.is_dir():
                raise ConfigError(f"repository {str(repository)!r} is not a folder")
        elif self.model_control_mode == "poll":
            raise ConfigError(
                f"repository is {str(repository)!r}, pulled once at the start, but model_control_mode is poll; "
                "use none or explicit, or poll a folder and put versions there with cnnserve pull"
            )

    def _check_http(self) -> None:
        for name in self.allowed_host:
            if "/" in name or ":" in name:
                raise ConfigError(f"allowed_host is {name!r}, expected a name without scheme and port")
        for origin in self.cors_origin:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise ConfigError(f"cors_origin is {origin!r}, expected * or an origin such as https://example.org")

    def _check_log(self) -> None:
        if self.log_format not in ("text", "json"):
            raise ConfigError(f"log_format is {self.log_format!r}, expected text or json")
        if not 0 < self.access_log_sample <= 1:
            raise ConfigError(f"access_log_sample is {self.access_log_sample:g}, expected more than 0 and at most 1")
        if self.access_log_sample < 1 and not self.access_log:
            raise ConfigError(
                f"access_log_sample is {self.access_log_sample:g}, which has no effect without "
                "access_log; set access_log"
            )
        if self.log_level not in ("debug", "info", "warning", "error"):
            raise ConfigError(f"log_level is {self.log_level!r}, expected debug, info, warning or error")

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

    def _check_limits(self) -> None:
        _check_range("client_requests_per_second", self.client_requests_per_second, 0, 1e6)
        for name in ("client_images_in_flight", "max_connections_per_address", "max_streams_per_connection"):
            _check_range(name, getattr(self, name), 0, 2**20)
        _check_range("max_connections", self.max_connections, 1, 2**20)
        _check_range("max_connection_age_s", self.max_connection_age_s, 0, 86400 * 365)
        _check_range("max_connection_age_grace_s", self.max_connection_age_grace_s, 0, 86400)

    def _check_access(self) -> None:
        if (self.tls_certificate is None) != (self.tls_key is None):
            missing = "tls_key" if self.tls_key is None else "tls_certificate"
            raise ConfigError(f"{missing} is missing; set tls_certificate and tls_key together, or none of them")
        if self.tls_client_ca and not self.tls_certificate:
            raise ConfigError("tls_client_ca has no effect without tls_certificate and tls_key; set them too")
        if self.certificate_scopes_file and not self.tls_client_ca:
            raise ConfigError("certificate_scopes_file has no effect without tls_client_ca; set it too")
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


def keys(name: str) -> tuple[str, ...]:
    """Returns the names under which a setting may be given: its own, and an older one if there is one."""
    alias = next(field.metadata.get("alias") for field in dataclasses.fields(ServerConfig) if field.name == name)
    return (name, alias) if alias else (name,)


def variable(name: str) -> str:
    """Returns the environment variable of a setting."""
    return f"{spelling.PREFIX}{name.upper()}"


def flag(name: str) -> str:
    """Returns the flag of a setting."""
    return "--" + name.replace("_", "-")


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{name} is {value}, expected {low} to {high}")
