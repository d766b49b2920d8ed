"""The addresses on which the server listens, and what to do if one of them cannot be had."""

import errno
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

# What Linux allows.
_MAX_UNIX_BYTES = 107


def listen(host: str, port: int, setting: str) -> socket.socket:
    """Returns a socket that listens on the port (0: a free one). Clients that connect wait until somebody accepts.

    Raises `OSError` with the address, `setting` (the name of the port's setting) and what to do.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        raise OSError(f"cannot listen on {joined(host, port)} ({setting}): {_advice(error, setting)}") from error


def check_free(host: str, port: int, setting: str) -> None:
    """Raises as `listen` if the port cannot be had. grpc's own error would name the lines of its source."""
    listen(host, port, setting).close()


def prepare_unix(path: Path) -> str:
    """Removes the socket that a server has left at `path`, and returns grpc's address for it.

    Raises `OSError` if a server listens there, if something else is there, or if the path is too long.
    """
    where = f"cannot listen on {path} (grpc_socket)"
    if (size := len(os.fsencode(path))) > _MAX_UNIX_BYTES:
        raise OSError(f"{where}: the path has {size} bytes, expected at most {_MAX_UNIX_BYTES}; choose a shorter one")
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise OSError(f"{where}: the file is no socket; choose another path")
    except FileNotFoundError:
        if not path.parent.is_dir():
            raise OSError(f"{where}: the folder {path.parent} does not exist") from None
        return f"unix:{path}"
    with socket.socket(socket.AF_UNIX) as client:
        if client.connect_ex(str(path)) == 0:
            raise OSError(f"{where}: another server listens there; stop it, or choose another path")
    path.unlink()
    return f"unix:{path}"


def bind(add: Callable[[str], int], address: str) -> int:
    """Returns the port that grpc's function `add` takes for an address. Raises `OSError`."""
    try:
        port = add(address)
    except RuntimeError as error:
        raise OSError(f"cannot listen on {address}: {error}") from error
    if port == 0:
        raise OSError(f"cannot listen on {address}")
    return port


def url(scheme: str, host: str, port: int) -> str:
    """Returns where a process on this machine reaches a port on which the server listens."""
    return f"{scheme}://{joined({'0.0.0.0': '127.0.0.1', '::': '::1'}.get(host, host), port)}"  # noqa: S104


def joined(host: str, port: int) -> str:
    """Returns host and port as grpc has them in one text."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _advice(error: OSError, setting: str) -> str:
    flag = "--" + setting.replace("_", "-")
    if error.errno == errno.EADDRINUSE:
        return f"another process uses this port; choose another one, or {flag} 0 for a free one"
    if error.errno == errno.EACCES:
        return "this user may not use ports below 1024; choose a larger one"
    if error.errno == errno.EADDRNOTAVAIL or isinstance(error, socket.gaierror):
        return "this machine has no such address; correct --host"
    return error.strerror or str(error)
