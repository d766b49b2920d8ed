"""Finds the server that runs on this machine, or in this container, and asks whether it is ready.

A server keeps the URL at which it answers health checks in a file in memory. Linux shows it among the server's open
files to processes of the same user.
"""

import http.client
import ssl
from pathlib import Path
from urllib.parse import urlsplit

from cnnserve_client.errors import InvalidInputError, UnavailableError

# What `cnnserve.process.listening` calls the file; Linux adds " (deleted)".
_FILE = "/memfd:cnnserve-listening"
_MOST_BYTES = 1024


def server_url(processes: Path = Path("/proc")) -> str:
    """Returns the URL of the only server here: grpc://, http:// or https:// with host and port.

    Raises `UnavailableError` if there is none yet, and `InvalidInputError` if there are several.
    """
    found = sorted({url for process in processes.glob("[0-9]*") for url in _urls(process)})
    if not found:
        raise UnavailableError("no server of this user listens here, or it does not serve yet")
    if len(found) > 1:
        raise InvalidInputError(f"several servers listen here: {', '.join(found)}; choose one with --address")
    return found[0]


def _urls(process: Path) -> list[str]:
    urls = []
    try:
        for file in (process / "fd").iterdir():
            if str(file.readlink()).startswith(_FILE):
                with file.open(encoding="utf-8") as opened:
                    urls.append(opened.read(_MOST_BYTES))
    except OSError:
        # Another user's process, or one that has ended.
        return []
    return [url for url in urls if url]


def is_ready(url: str, timeout_s: float) -> bool:
    """Returns whether the server at an HTTP URL is ready. Raises `UnavailableError` if it does not answer."""
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port
    if parts.scheme == "https":
        # This process has just read the address from the server itself, so no certificate has to prove it.
        context = ssl._create_unverified_context()  # noqa: S323, SLF001
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(
            host, port, timeout=timeout_s, context=context
        )
    else:
        connection = http.client.HTTPConnection(host, port, timeout=timeout_s)
    try:
        connection.request("GET", "/v2/health/ready")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException) as error:
        advice = (
            "; if clients need a certificate, give the server --health-http-port" if parts.scheme == "https" else ""
        )
        raise UnavailableError(f"{url} does not answer: {error}{advice}") from error
    finally:
        connection.close()
