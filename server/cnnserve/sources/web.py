"""Reads over HTTPS: redirects stay on HTTPS, and credentials go to the hosts for which they are meant."""

import contextlib
import http.client
import os
import re
import socket
import ssl
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Collection, Mapping
from typing import Self

import cnnserve
from cnnserve.sources.errors import NotFound, SourceError
from cnnserve.sources.room import Reads

# Without any byte for so long, a transfer has failed.
_SILENT_S = 60.0
_MOST_REDIRECTS = 5
_REDIRECTS = (301, 302, 303, 307, 308)


class Unauthorized(Exception):
    """The server wants credentials. `challenge`: its header WWW-Authenticate."""

    def __init__(self, challenge: str) -> None:
        super().__init__(challenge)
        self.challenge = challenge


class Web:
    """Reads addresses. `credential_hosts`: hosts to which credentials may go beside the one for which they are meant.

    Proxies are those of the environment (HTTPS_PROXY, NO_PROXY), authorities those of OpenSSL (SSL_CERT_FILE).
    """

    def __init__(self, credential_hosts: Collection[str] = ()) -> None:
        self._credential_hosts = frozenset(name.lower().removesuffix(":443") for name in credential_hosts)
        self._opener = urllib.request.build_opener(
            urllib.request.HTTPSHandler(context=ssl.create_default_context()), _NoRedirects
        )
        self._opener.addheaders = [("User-Agent", f"cnnserve/{cnnserve.__version__}")]

    def may_have_credentials(self, host: str, meant_for: str) -> bool:
        """Returns whether the credentials that are meant for a host may go to another one, each with its port."""
        return host in {meant_for, *self._credential_hosts}

    def get(self, url: str, headers: Mapping[str, str] | None = None, authorization: str = "") -> "Body":
        """Returns the body of an address. Close it.

        Raises `NotFound` for 404, `Unauthorized` for 401, and `SourceError` for everything else.
        """
        meant_for = host(check_url(url))
        for _ in range(_MOST_REDIRECTS):
            request = urllib.request.Request(url, headers=dict(headers or {}))  # noqa: S310  (it is HTTPS)
            if authorization:
                request.add_header("Authorization", authorization)
            try:
                return Body(self._opener.open(request, timeout=_SILENT_S), url)
            except urllib.error.HTTPError as error:
                with error:
                    url = self._elsewhere(url, error)
            except urllib.error.URLError as error:
                raise SourceError(f"{shown(url)} cannot be read: {_explained(error.reason)}") from error
            except (OSError, http.client.HTTPException) as error:
                raise SourceError(f"{shown(url)} cannot be read: {_explained(error)}") from error
            if not self.may_have_credentials(host(url), meant_for):
                # For good: also if the other host sends us back.
                authorization = ""
        raise SourceError(
            f"{shown(url)} is the end of {_MOST_REDIRECTS} redirects; ask its owner for the address itself"
        )

    def _elsewhere(self, url: str, error: urllib.error.HTTPError) -> str:
        """Returns the address to which a server redirects. Raises what `get` raises."""
        if error.code == 401:
            raise Unauthorized(error.headers.get("WWW-Authenticate", ""))
        if error.code == 404:
            raise NotFound(f"{shown(url)} does not exist (status 404); correct the address, or log in if it is private")
        to = error.headers.get("Location")
        if error.code not in _REDIRECTS or not to:
            raise SourceError(f"{shown(url)} cannot be read: the server returned status {error.code}; {_advice(error)}")
        # An address that cannot be split stays as it is, and `check_url` says why.
        with contextlib.suppress(ValueError):
            to = urllib.parse.urljoin(url, to)
        if not to.lower().startswith("https:"):
            raise SourceError(
                f"{shown(url)} redirects to {shown(to)}, which is not HTTPS; ask its owner for an address that stays "
                "on HTTPS"
            )
        return check_url(to)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Leaves redirects to `Web.get`: urllib would take the credentials along, and read the whole body."""

    def http_error_302(self, *_: object) -> None:
        """Does nothing, so that the redirect becomes an `HTTPError`."""

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302  # type: ignore[assignment]


class Body:
    """The body of a response, whose errors name the address. It ends early if the connection does: compare its size."""

    def __init__(self, response: http.client.HTTPResponse, url: str) -> None:
        self._response = response
        self._url = url

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._response.close()

    def header(self, name: str) -> str:
        """Returns a header of the response; "" if it is missing."""
        return self._response.headers.get(name, "")

    def read(self, size: int, /) -> bytes:
        """Returns the next bytes. Raises `SourceError` if the connection fails."""
        try:
            return self._response.read(size)
        except (OSError, http.client.HTTPException) as error:
            raise SourceError(f"{shown(self._url)} broke off: {_explained(error)}; try again") from error


def small(source: Reads, name: str, limit: int) -> bytes:
    """Returns all that `source` has. Raises `SourceError` if that is more than `limit` bytes."""
    parts, left = [], limit + 1
    while left > 0 and (part := source.read(left)):
        parts.append(part)
        left -= len(part)
    if not left:
        raise SourceError(f"{name} has more than {limit} bytes, the limit; nothing of it was used")
    return b"".join(parts)


def check_url(url: str) -> str:
    """Returns an address that may be read. Raises `SourceError` if it has credentials in it, or cannot be one."""
    try:
        parts = urllib.parse.urlsplit(url)
        # Raises for a port that is no number.
        _ = parts.port
    except ValueError as error:
        raise SourceError(f"{shown(url)} is no address: {error}; correct it") from error
    if parts.scheme != "https" or not parts.hostname or not url.isascii() or any(sign <= " " for sign in url):
        raise SourceError(f"{shown(url)} is no address of HTTPS; write https://HOST/PATH, with %-escapes")
    if parts.username is not None or parts.password is not None:
        raise SourceError(
            f"the address of {parts.hostname} has a user name or a password in it, which other programs can see; put "
            "them into ~/.netrc"
        )
    return url


def host(url: str) -> str:
    """Returns the host of an address, with its port if it is not 443."""
    parts = urllib.parse.urlsplit(url)
    name = (parts.hostname or "").lower()
    return name if parts.port in (None, 443) else f"{name}:{parts.port}"


def shown(url: str) -> str:
    """Returns an address as errors show it: without a query, which may be a signature, and without a user."""
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError:
        return "the address"
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _advice(error: urllib.error.HTTPError) -> str:
    if error.code == 403:
        return "log in as somebody who may read it"
    seconds = error.headers.get("Retry-After", "")
    # Or it is a date.
    return f"try again after {int(seconds)} s" if re.fullmatch("[0-9]{1,6}", seconds) else "try again later"


def _explained(error: object) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"its certificate is not trusted ({error.verify_message}); name the file of its authority in SSL_CERT_FILE"
        )
    if isinstance(error, TimeoutError):
        return f"no answer for {_SILENT_S:g} s; try again"
    if isinstance(error, socket.gaierror):
        return f"its name is unknown ({error.strerror}); correct the address, or set HTTPS_PROXY"
    if isinstance(error, http.client.IncompleteRead):
        return "the connection was closed before the end"
    if isinstance(error, OSError):
        return os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
    return str(error) or type(error).__name__
