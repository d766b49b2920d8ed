"""Refuses requests that a page of a foreign site makes in the browser of somebody who can reach the server.

Such a page reaches the server under a name of its own, whose address it has changed ("DNS rebinding"): `Host` shows it.
Or it sends requests whose responses it cannot read: `Origin` shows it.
"""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from cnnserve.access.addresses import is_address, is_this_machine
from cnnserve.errors import PermissionDenied


class HostCheck:
    """Knows the names of the server. `names` may hold `*` as a wildcard."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = [name.lower() for name in names]

    def check(self, headers: Headers, *, changes: bool) -> None:
        """Raises `PermissionDenied` if `Host` is a foreign name, or if a request that `changes` something has another
        site as its `Origin`. Of other requests, a browser lets pages of other sites read nothing without CORS.

        An address passes as `Host`, because a browser that sends it was not led astray by a name.
        """
        host = _name(f"//{headers.get('host', '')}")
        if host and not is_address(host) and not self._knows(host):
            raise PermissionDenied(
                f"the server does not serve the host {host[:100]!r}; if this is its name, start it with "
                f"--allowed-host {host[:100]}"
            )
        origin = headers.get("origin")
        if origin is None or not changes:
            return
        site = _name(origin)
        if not site or (site != host and not self._knows(site)):
            raise PermissionDenied(
                f"pages of {origin[:100]!r} may not use this server; if they may, start it with --allowed-host and the "
                "name of their host"
            )

    def _knows(self, host: str) -> bool:
        return is_this_machine(host) or any(fnmatchcase(host, name) for name in self._names)


def _name(url: str) -> str:
    try:
        return (urlsplit(url).hostname or "").rstrip(".")
    except ValueError:
        return ""
