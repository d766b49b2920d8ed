"""Every setting of the server: flag, variable, key, default, meaning."""

import dataclasses
from pathlib import Path
from typing import Any

from cnnserve.config.settings import ServerConfig

from .tables import code, table

_HEAD = """# Server settings

Every setting of `cnnserve serve` can be given in three ways:

- a flag, for example `--grpc-port 9001`;
- an environment variable, for example `CNNSERVE_GRPC_PORT=9001`;
- a key of a TOML file, for example `grpc_port = 9001`. Name the file with `--config FILE` or `CNNSERVE_CONFIG`.

A flag has priority over a variable, and a variable over the file. The server refuses to start if a value is wrong, if
the file has an unknown key, or if an unknown variable is so like a setting that it is probably a mistake. It warns of
other unknown variables `CNNSERVE_…`, except those that Kubernetes sets for a Service, and of keys that a variable
overrides.

An image may bring defaults of its own: a TOML file that the variable `CNNSERVE_DEFAULTS` names. All three ways override
it. Variables that Kubernetes sets for a Service, such as `CNNSERVE_GRPC_PORT=tcp://10.0.0.1:8001`, have no effect.

`repository` is also `--model-repository`, `CNNSERVE_MODEL_REPOSITORY` and `model_repository`, its older names.
[Serve](../serve.md#settings) shows the three ways.

"""


def page() -> str:
    """The page."""
    rows = [
        (
            "<br>".join(map(code, _names(field.name))),
            _default(field),
            field.metadata["help"],
        )
        for field in dataclasses.fields(ServerConfig)
    ]
    return _HEAD + table(("Flag, variable, key", "Default", "Meaning"), rows)


def _names(key: str) -> tuple[str, str, str]:
    return "--" + key.replace("_", "-"), f"CNNSERVE_{key.upper()}", key


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is dataclasses.MISSING:
        return "required"
    if isinstance(field.default, bool):
        return "off"
    if isinstance(field.default, Path):
        return code(field.default.as_posix())
    return code(str(field.default)) if field.default not in ((), None) else ""
