"""Real servers over TLS for pulls: a web site, and a registry that follows the OCI distribution specification."""

import base64
import contextlib
import hashlib
import json
import ssl
import threading
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from certificates import Authority


@dataclass
class Answer:
    """What a site answers. `length`: what Content-Length says, if it is not the truth."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    length: int | None = None


@dataclass
class Request:
    """What a client asked for. The names of the headers are in small letters."""

    path: str
    headers: Mapping[str, str]

    @property
    def authorization(self) -> str:
        """The credentials, "" if there are none."""
        return self.headers.get("authorization", "")


class Site:
    """A web server on `name`, whose `answer` may be replaced. `requests` has what was asked, in order.

    Without an `authority`, it has no TLS.
    """

    def __init__(
        self, authority: Authority | None, answer: Callable[[Request], Answer], name: str = "127.0.0.1"
    ) -> None:
        site = self
        self.answer = answer
        self.requests: list[Request] = []

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                request = Request(self.path, {name.lower(): value for name, value in self.headers.items()})
                site.requests.append(request)
                answer = site.answer(request)
                self.send_response(answer.status)
                for header, value in answer.headers.items():
                    self.send_header(header, value)
                self.send_header("Content-Length", str(len(answer.body) if answer.length is None else answer.length))
                # Otherwise a client would wait for the rest of a body that is too short.
                self.send_header("Connection", "close")
                self.end_headers()
                self.wfile.write(answer.body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if authority is not None:
            files = authority.issue("site")
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(files.certificate, files.key)
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self.host = f"{name}:{self._server.server_address[1]}"
        self.url = f"{'http' if authority is None else 'https'}://{self.host}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        """Stops the server."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class OciRegistry:
    """A registry with the pack of a layout. Without `login` everybody may read it.

    `login`: user and password. With `tokens`, it wants a token from `realm` for them, which it gives itself; otherwise
    it wants them itself. `change` may replace an answer.
    """

    TOKEN = "a-token"

    def __init__(
        self, authority: Authority, layout: Path, *, login: tuple[str, str] | None = None, tokens: bool = True
    ) -> None:
        self.layout = layout
        self.login = login
        self.tokens = tokens
        self.change: Callable[[Request, Answer], Answer] = lambda _, answer: answer
        self.site = Site(authority, lambda request: self.change(request, self._answer(request)))
        self.host = self.site.host
        self.realm = f"{self.site.url}/token"
        self.top = json.loads((layout / "index.json").read_bytes())["manifests"][0]

    @property
    def address(self) -> str:
        """The pack's address."""
        return f"oci://{self.host}/models/lenet5:1"

    def _answer(self, request: Request) -> Answer:
        path = urllib.parse.urlsplit(request.path).path
        if path == "/token":
            return self._token(request)
        if not self._allowed(request):
            kind = f'Bearer realm="{self.realm}",service="registry",scope="repository:models/lenet5:pull"'
            return Answer(401, headers={"WWW-Authenticate": kind if self.tokens else 'Basic realm="registry"'})
        if path.startswith("/v2/models/lenet5/manifests/"):
            return self._manifest(path.rpartition("/")[2])
        digest = path.removeprefix("/v2/models/lenet5/blobs/sha256:")
        file = self.layout / "blobs" / "sha256" / digest
        return Answer(body=file.read_bytes()) if "/" not in digest and file.is_file() else Answer(404)

    def _manifest(self, version: str) -> Answer:
        digest = self.top["digest"] if version == "1" else version
        file = self.layout / "blobs" / "sha256" / digest.partition(":")[2]
        if ":" not in digest or not file.is_file():
            return Answer(404)
        body = file.read_bytes()
        media_type = json.loads(body)["mediaType"]
        found = f"sha256:{hashlib.sha256(body).hexdigest()}"
        return Answer(body=body, headers={"Content-Type": media_type, "Docker-Content-Digest": found})

    def _token(self, request: Request) -> Answer:
        if self.login is not None and request.authorization != basic(*self.login):
            return Answer(401)
        return Answer(body=json.dumps({"token": self.TOKEN}).encode())

    def _allowed(self, request: Request) -> bool:
        if self.tokens:
            return request.authorization == f"Bearer {self.TOKEN}"
        return self.login is None or request.authorization == basic(*self.login)


def basic(user: str, password: str) -> str:
    """The header of a user and a password."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@contextlib.contextmanager
def running(site: Site) -> Iterator[Site]:
    """A site that is stopped at the end."""
    try:
        yield site
    finally:
        site.close()
