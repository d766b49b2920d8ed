"""Reads the server's settings from command-line flags, environment variables, a TOML file and defaults, in this order.

An image may bring a TOML file with other defaults, which the variable `CNNSERVE_DEFAULTS` names.

Every field of `ServerConfig` is one flag (`grpc_port` is `--grpc-port`), one variable (`CNNSERVE_GRPC_PORT`) and one
key of the file. If a value is not valid, the server does not start.
"""

import argparse
import dataclasses
import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cnnserve.config import spelling
from cnnserve.config.settings import (
    DEFAULT,
    FILE,
    NAMES,
    PLACE,
    PORT,
    Address,
    ConfigError,
    ServerConfig,
    Setting,
    flag,
    keys,
    variable,
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
    for wrong, meant in spelling.mistaken_variables(environment, _variables()):
        if meant:
            raise ConfigError(f"unknown environment variable {wrong}; did you mean {meant}? Correct or remove it")
    if flags.get("model") and flags.get("repository"):
        raise ConfigError("--model and --repository exclude each other; omit --model to serve the whole repository")
    found = _replaced(environment) | _from_file(flags, environment)
    for field in dataclasses.fields(ServerConfig):
        name = field.name
        found |= _one(name, [setting_of(name, text, at) for at, text in _set(name, environment)])
        if flags.get(name) is not None:
            found[name] = setting_of(name, flags[name], flag(name))
        if field.default is not dataclasses.MISSING:
            found.setdefault(name, Setting(field.default, DEFAULT))
    return found


def doubts(flags: Mapping[str, Any], environment: Mapping[str, str] | None = None) -> list[str]:
    """Returns what may be a mistake in settings that `gather` accepts: unknown variables, and keys without effect."""
    environment = os.environ if environment is None else environment
    strange = spelling.mistaken_variables(environment, _variables())
    found = [f"environment variable {name} is unknown and has no effect; remove it" for name, _ in strange]
    found += [_link_text(name, environment[name]) for name in _variables() if _is_link(name, environment)]
    for name, setting in _from_file(flags, environment).items():
        for at, text in _set(name, environment):
            if flags.get(name) is None and setting_of(name, text, at).value != setting.value:
                found.append(f"{setting.source} has no effect, because {at} is {text!r}; remove one of the two")
    settings = gather(flags, environment)
    model, repository = settings["model"], settings["repository"]
    # A flag is given on purpose.
    given = repository != _replaced(environment).get("repository")
    if model.value and repository.value and given and not flags.get("model"):
        found.append(
            f"{repository.source} has no effect, because {model.source} names single models; remove one of the two"
        )
    return found


def _replaced(environment: Mapping[str, str]) -> dict[str, Setting]:
    """Returns the defaults that an image has instead of ours."""
    file = environment.get(variable("defaults"))
    return _read_file(Path(file)) if file else {}


def _from_file(flags: Mapping[str, Any], environment: Mapping[str, str]) -> dict[str, Setting]:
    file = flags.get("config") or environment.get(variable("config"))
    return _read_file(Path(file)) if file else {}


def _one(name: str, settings: Sequence[Setting]) -> dict[str, Setting]:
    """Returns the setting that several sources of the same kind give. Raises `ConfigError` if they differ."""
    for other in settings[1:]:
        if other.value != settings[0].value:
            raise ConfigError(
                f"{settings[0].source} is {str(settings[0].value)!r} and {other.source} is {str(other.value)!r}, but "
                f"both set {name}; remove one of them"
            )
    return {name: settings[0]} if settings else {}


def _set(name: str, environment: Mapping[str, str]) -> list[tuple[str, str]]:
    """Returns the variables of a setting that are set, with their texts."""
    names = [variable(key) for key in keys(name)]
    return [(at, environment[at]) for at in names if at in environment and not _is_link(at, environment)]


def _is_link(name: str, environment: Mapping[str, str]) -> bool:
    return name in environment and spelling.is_service_link(name, environment[name])


def _link_text(name: str, text: str) -> str:
    return (
        f"environment variable {name} is {text!r}, which Kubernetes sets for a Service of this name; it has no effect. "
        "Set enableServiceLinks: false in the spec of the pod, or rename the Service"
    )


def _variables() -> list[str]:
    return [variable(key) for field in dataclasses.fields(ServerConfig) for key in keys(field.name)]


def build(settings: Mapping[str, Setting]) -> ServerConfig:
    """Returns the settings as one object. Raises `ConfigError` if one is missing or not valid."""
    try:
        return ServerConfig(**{name: setting.value for name, setting in settings.items()})
    except ConfigError as error:
        # Each of these texts begins with the name of the setting.
        setting = settings.get(str(error).partition(" ")[0])
        if setting is None or setting.source == DEFAULT:
            raise
        raise ConfigError(f"{error} (set by {setting.source})") from error


def serve_parser(prog: str = "cnnserve serve") -> argparse.ArgumentParser:
    """Returns the parser of `cnnserve serve`."""
    parser = spelling.Parser(
        prog=prog,
        description="Serve the models of a model repository over gRPC and HTTP.",
        epilog=f"Each flag can also be set as an environment variable (such as {variable('grpc_port')}) or as a key of "
        "the --config file (such as grpc_port).",
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
                flag(field.name), action="store_const", const="true", default=None, help=field.metadata["help"]
            )
        else:
            old_names = keys(field.name)[1:]
            action: Any = "append" if field.type == NAMES else spelling.Once if old_names else "store"
            parser.add_argument(
                flag(field.name),
                action=action,
                metavar=_word(field),
                default=None,
                help=field.metadata["help"] + default,
            )
            for old in old_names:
                spelling.add_old_name(parser, flag(old), field.name)


def setting_of(name: str, value: object, source: str) -> Setting:
    """Returns the setting `name` with a value of its type. Raises `ConfigError` if `value` cannot be one."""
    return Setting(_convert(name, value, source), source)


def _read_file(path: Path) -> dict[str, Setting]:
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"config file {str(path)!r} cannot be read: {error}") from error
    known = {key: field.name for field in dataclasses.fields(ServerConfig) for key in keys(field.name)}
    if unknown := sorted(raw.keys() - known.keys()):
        raise ConfigError(
            f"config file {str(path)!r} has unknown settings: {', '.join(unknown)}; remove them or correct their names"
            + spelling.guess(unknown[0], known)
        )
    found: dict[str, Setting] = {}
    for name in dict.fromkeys(known[key] for key in raw):
        found |= _one(name, [setting_of(name, raw[key], f"{path.name}: {key}") for key in keys(name) if key in raw])
    return found


def _convert(name: str, value: object, source: str) -> object:
    field = next(field for field in dataclasses.fields(ServerConfig) if field.name == name)
    kind = field.type
    if kind == NAMES:
        return _names(value, source)
    if kind == PORT:
        kind = int
    text = str(value).strip() if not isinstance(value, bool) else str(value).lower()
    if kind == PLACE:
        kind = Address if "://" in text else Path
    if kind == FILE:
        kind = Path
    try:
        if kind is bool:
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        # An empty path would be the current folder.
        if isinstance(value, bool) or (kind is Path and not text):
            raise ValueError
        return kind(text)  # type: ignore[operator]
    except (KeyError, ValueError) as error:
        raise ConfigError(f"{source} is {value!r}, expected {_word(field)}") from error


def _names(value: object, source: str) -> tuple[str, ...]:
    """Returns the names in a list, in a text with commas, or in a list of such texts."""
    parts = value if isinstance(value, list) else [value]
    names = [name.strip() for part in parts if isinstance(part, str) for name in part.split(",")]
    if not all(names) or not all(isinstance(part, str) for part in parts):
        raise ConfigError(f"{source} is {value!r}, expected NAME,NAME,...")
    return tuple(names)


def _word(field: "dataclasses.Field[Any]") -> str:
    """Returns what help and errors call a value of the setting."""
    return field.metadata.get("metavar") or _metavar(field.type)


def _metavar(kind: object) -> str:
    names: dict[object, str] = {bool: "true or false", int: "INTEGER", float: "NUMBER", Path: "DIR"}
    return (names | {FILE: "FILE", PORT: "INTEGER", NAMES: "NAME"}).get(kind, "TEXT")
