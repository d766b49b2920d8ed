"""Finds user names and passwords where docker, podman and netrc have put them. Runs no other program."""

import base64
import binascii
import netrc
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cnnserve import json_text
from cnnserve.errors import reason
from cnnserve.sources.errors import SourceError

_LARGEST = 1 << 20


@dataclass(frozen=True)
class Login:
    """A user name and a password, or the `identity_token` of a user who logged in without a password."""

    user: str
    password: str
    identity_token: str = ""

    def __repr__(self) -> str:
        # Tracebacks and logs show it.
        return f"Login({self.user!r})"

    @property
    def basic(self) -> str:
        """The value of the header Authorization."""
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()


def of_registry(host: str, environment: Mapping[str, str] | None = None) -> tuple[Login | None, str]:
    """Returns the login for a registry, and what is worth knowing if there is none.

    `host`: with its port, if it has one. Raises `SourceError` if a file with logins cannot be read.
    """
    advice = f"log in with docker login {host} or podman login {host}"
    for path in _auth_files(os.environ if environment is None else environment):
        config = _read(path)
        if config is None:
            continue
        for key, entry in _objects(config, "auths").items():
            if _host(key) == host and (login := _login(entry, path)):
                return login, ""
        if host in _objects(config, "credHelpers") or config.get("credsStore"):
            advice = (
                f"{path} leaves the login to a credential helper, which is not run; write an entry for {host} into "
                '"auths" there, or log in with podman login'
            )
    return None, advice


def of_web_server(host: str, environment: Mapping[str, str] | None = None) -> Login | None:
    """Returns the login for a web server that netrc names. Raises `SourceError` if the file cannot be read."""
    environment = os.environ if environment is None else environment
    path = Path(environment.get("NETRC") or Path(environment.get("HOME", "~"), ".netrc")).expanduser()
    try:
        entry = netrc.netrc(path).authenticators(host)
    except FileNotFoundError:
        return None
    except (OSError, netrc.NetrcParseError, UnicodeDecodeError) as error:
        text = reason(error) if isinstance(error, OSError) else str(error)
        raise SourceError(f"the file {path} cannot be read: {text}; correct or remove it") from error
    return Login(entry[0], entry[2]) if entry else None


def _auth_files(environment: Mapping[str, str]) -> Iterator[Path]:
    """Yields the files of podman and of docker, in the order in which podman reads them."""
    home = environment.get("HOME", "~")
    if file := environment.get("REGISTRY_AUTH_FILE"):
        yield Path(file)
    elif folder := environment.get("XDG_RUNTIME_DIR"):
        yield Path(folder, "containers", "auth.json")
    yield Path(home, ".config", "containers", "auth.json").expanduser()
    yield Path(environment.get("DOCKER_CONFIG") or Path(home, ".docker"), "config.json").expanduser()


def _read(path: Path) -> dict[str, Any] | None:
    try:
        with path.open("rb") as file:
            config = json_text.loads(file.read(_LARGEST))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise SourceError(f"the file {path} cannot be read: {reason(error)}; get permission to read it") from error
    except ValueError as error:
        raise SourceError(f"the file {path} is not JSON: {error}; log in again") from error
    return config if isinstance(config, dict) else None


def _objects(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = config.get(name)
    return found if isinstance(found, dict) else {}


def _host(key: str) -> str:
    """Returns the host of an entry: old entries are addresses such as https://index.docker.io/v1/."""
    return key.partition("://")[2].partition("/")[0] if "://" in key else key.partition("/")[0]


def _login(entry: object, path: Path) -> Login | None:
    if not isinstance(entry, dict):
        return None
    token = str(entry.get("identitytoken") or "")
    try:
        user, colon, password = base64.b64decode(str(entry.get("auth") or ""), validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError) as error:
        raise SourceError(f"the file {path} has an entry that is not base64; log in again") from error
    return Login(user, password, token) if colon or token else None
