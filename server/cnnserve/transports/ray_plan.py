"""What an application on Ray Serve consists of: its arguments, checked. Imports no ray."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cnnserve.config.settings import ConfigError, ServerConfig
from cnnserve.config.sources import setting_of
from cnnserve.config.spelling import guess
from cnnserve.errors import ServingError
from cnnserve.repository import folders

# Settings of a server that have a meaning in a replica, which opens no ports and whose models the plan names.
_SETTINGS = (
    *("max_message_mib", "max_pending_mib", "decode_threads", "engine_cache", "layout_cache", "model_config_name"),
    *("load_timeout_s", "build_timeout_s", "require_manifest", "trusted_keys", "tokens_file", "trusted_proxy"),
    *("client_requests_per_second", "client_images_in_flight", "triton_status_codes", "no_drift_metrics"),
    *("access_log", "access_log_sample", "tracing"),
)
# Those that make replicas refuse clients.
_GUARDING = ("tokens_file", "client_requests_per_second", "client_images_in_flight")


@dataclass(frozen=True)
class Deployment:
    """One deployment: the models of its replicas, and what Serve should know of it.

    `version`: the number of the only version to serve; 0: those that config.pbtxt chooses. `cpus` and `gpus`: the share
    of each replica; a model with a share of a GPU runs on CUDA. `autoscaling` are Serve's own settings; without them
    there are always `replicas`. `max_ongoing_requests`: requests that one replica may hold; for full batches it has to
    exceed instances × maximum batch. `loaded`: the number of models that a replica holds at a time, if it has several.
    """

    version: int = 0
    cpus: float = 1.0
    gpus: float = 0.0
    replicas: int = 1
    autoscaling: Mapping[str, Any] = field(default_factory=dict)
    max_ongoing_requests: int = 512
    loaded: int = 3
    max_constructor_retry_count: int = 3
    models: tuple[str, ...] = ()

    @property
    def threads(self) -> int:
        """The CPU threads for the runs of one model."""
        return max(1, int(self.cpus))

    @property
    def shares(self) -> bool:
        """Whether the replicas load the models that requests ask for."""
        return len(self.models) > 1


@dataclass(frozen=True)
class Plan:
    """An application: its deployments by name, and the settings of each replica beside those of its deployment."""

    repository: str
    deployments: Mapping[str, Deployment]
    settings: Mapping[str, Any] = field(default_factory=dict)
    # Of the ingress, if there are several models.
    ingress_replicas: int = 1
    stream_s: float = 15.0

    @property
    def guarded(self) -> bool:
        """Whether replicas may refuse clients."""
        return any(self.settings.get(name) for name in _GUARDING)

    def config(self, deployment: Deployment) -> ServerConfig:
        """Returns the settings of a replica. Raises `ConfigError` if one is wrong or its node has no such files."""
        root = Path(self.repository)
        if not root.is_dir():
            raise ConfigError(
                f"this node has no folder {self.repository}; mount the model repository at this path on every node, or "
                "keep its replicas on the nodes that have it"
            )
        places = {
            name: root / name / (str(deployment.version) if deployment.version else "") for name in deployment.models
        }
        for name, place in places.items():
            if not place.is_dir():
                raise ConfigError(
                    f"model {name} has no folder {place} on this node; copy it to the model repository of every node"
                )
        return ServerConfig(
            repository=None,
            model=tuple(f"{name}={place}" for name, place in places.items()),
            model_control_mode="explicit" if deployment.shares else "none",
            device="cuda" if deployment.gpus else "cpu",
            cpu_threads=deployment.threads,
            **self.settings,
        )


def read(arguments: Mapping[str, Any]) -> Plan:
    """Returns the plan for the arguments of an application. Raises `ConfigError`.

    Keys: `repository`; `models`, options by name (default: every model of the model repository, without options);
    `shared`, options of one deployment for the many models in its list `models`; `settings` of a server;
    `ingress_replicas`; `stream_s`.
    """
    known = ("repository", "models", "shared", "settings", "ingress_replicas", "stream_s")
    _check_keys("the application", arguments, known)
    repository = arguments.get("repository")
    if not isinstance(repository, str) or not repository.startswith("/"):
        raise ConfigError(
            f"repository is {repository!r}, expected the absolute path of the model repository, the same on all nodes"
        )
    shared = _mapping("shared", arguments.get("shared", {}))
    models = arguments.get("models")
    if models is None:
        models = {} if shared else {name: {} for name in _found(repository)}
    named = {str(name): options for name, options in _mapping("models", models).items()}
    deployments = {name: _deployment(name, options, (name,)) for name, options in named.items()}
    if shared:
        names = shared.get("models")
        if not isinstance(names, Sequence) or isinstance(names, str) or len(set(names)) < 2:
            raise ConfigError(f"shared.models is {names!r}, expected the names of two models or more")
        options = {key: value for key, value in shared.items() if key != "models"}
        # No model's name begins with an underscore.
        name = "_shared" if "shared" in deployments else "shared"
        deployments[name] = _deployment("shared", options, tuple(map(str, names)))
    _check_names(repository, deployments)
    plan = Plan(
        repository,
        deployments,
        _settings(arguments.get("settings", {})),
        _number("ingress_replicas", arguments.get("ingress_replicas", 1), 1),
        _number("stream_s", arguments.get("stream_s", 15.0), 1),
    )
    if Path(repository).is_dir():
        for deployment in deployments.values():
            plan.config(deployment)
    return plan


def _found(repository: str) -> list[str]:
    try:
        found = [folder.name for folder in folders.scan(Path(repository))]
    except (OSError, ServingError) as error:
        raise ConfigError(f"repository {repository} cannot be read: {error}") from error
    if not found:
        raise ConfigError(f"repository {repository} has no model on the node that starts the application")
    return found


def _check_names(repository: str, deployments: Mapping[str, Deployment]) -> None:
    names = [name for deployment in deployments.values() for name in deployment.models]
    if not names:
        raise ConfigError("models is empty, expected the name of at least one model")
    if len({*names}) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigError(f"model {twice} is in two deployments, expected each model once")
    if Path(repository).is_dir():
        found = _found(repository)
        for name in names:
            if name not in found:
                raise ConfigError(
                    f"model {name!r} is not in the model repository {repository}, which has {', '.join(found)}"
                    f"{guess(name, found)}"
                )


def _deployment(name: str, options: Any, models: tuple[str, ...]) -> Deployment:
    options = _mapping(name, options)
    fields = [item.name for item in dataclasses.fields(Deployment) if item.name != "models"]
    _check_keys(f"model {name}", options, fields)
    made = Deployment(models=models, **options)
    for key, least in (("version", 0), ("cpus", 0), ("gpus", 0), ("replicas", 1), ("max_ongoing_requests", 1)):
        _number(f"{name}.{key}", getattr(made, key), least)
    _number(f"{name}.loaded", made.loaded, 1)
    _mapping(f"{name}.autoscaling", made.autoscaling)
    if made.version and made.shares:
        raise ConfigError(f"{name}.version is {made.version}, but several models share it; leave it out")
    return made


def _settings(given: Any) -> dict[str, Any]:
    given = _mapping("settings", given)
    others = {item.name for item in dataclasses.fields(ServerConfig)}.difference(_SETTINGS)
    if useless := next((key for key in given if key in others), None):
        raise ConfigError(f"settings has {useless!r}, which has no effect in a replica on Ray Serve; remove it")
    _check_keys("settings", given, _SETTINGS)
    return {key: setting_of(key, value, f"settings.{key}").value for key, value in given.items()}


def _mapping(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{name} is {value!r}, expected names with values")
    return dict(value)


def _check_keys(owner: str, given: Mapping[str, Any], known: Sequence[str]) -> None:
    for key in given:
        if key not in known:
            raise ConfigError(
                f"{owner} has {key!r}, which is unknown{guess(str(key), known)}; known are {', '.join(known)}"
            )


def _number(name: str, value: Any, least: float) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float) or value < least:
        raise ConfigError(f"{name} is {value!r}, expected a number of at least {least:g}")
    return value
