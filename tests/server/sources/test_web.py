"""Pulls from a web server over TLS: layouts, tars, logins, redirects and proxies."""

import contextlib
import select
import socket
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from certificates import Authority
from cnnserve.sources.errors import SourceError
from cnnserve.sources.pull import pull
from cnnserve.sources.room import Room
from pulls import names, pulled
from support import HANG_S
from web_servers import Answer, Request, Site, basic


def files_of(folder: Path) -> Callable[[Request], Answer]:
    """Answers with the files of a folder."""

    def answer(request: Request) -> Answer:
        file = folder / urllib.parse.urlsplit(request.path).path.lstrip("/")
        return Answer(body=file.read_bytes()) if file.is_file() else Answer(404)

    return answer


@pytest.fixture
def site(authority: Authority, made: Path, trusted: Path) -> Iterator[Site]:
    """A web server with the packs."""
    site = Site(authority, files_of(made))
    yield site
    site.close()


def refused(address: str, folder: Path, problem: str, **more: object) -> None:
    with pytest.raises(SourceError, match=problem):
        pull(address, folder, Room(), **more)  # type: ignore[arg-type]
    assert names(folder) == []


@pytest.mark.parametrize("path", ["layout", "layout/", "modelcar", "pack.tar", "pack.tar?signature=x"])
def test_a_pack_on_a_web_server(path: str, site: Site, tmp_path: Path) -> None:
    pulled(f"{site.url}/{path}", tmp_path)


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("nothing", r"/nothing/oci-layout does not exist \(status 404\)"),
        ("nothing.tar?key=secret", r"nothing\.tar does not exist \(status 404\)"),
        ("layout/index.json", r"/layout/index\.json/oci-layout does not exist"),
    ],
)
def test_a_pack_that_is_not_there(path: str, problem: str, site: Site, tmp_path: Path) -> None:
    refused(f"{site.url}/{path}", tmp_path, problem)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_half_a_tar(share: float, site: Site, made: Path, tmp_path: Path) -> None:
    data = (made / "pack.tar").read_bytes()
    for length in (None, len(data)):
        site.answer = lambda _, length=length: Answer(body=data[: int(len(data) * share)], length=length)  # type: ignore[misc]
        refused(f"{site.url}/pack.tar", tmp_path, "damaged|ended after|does not exist")


def test_the_login_of_netrc(site: Site, made: Path, trusted: Path, tmp_path: Path) -> None:
    packs = files_of(made)

    def guarded(request: Request) -> Answer:
        return packs(request) if request.authorization == basic("me", "secret") else Answer(401)

    site.answer = guarded
    address = f"{site.url}/pack.tar"
    refused(address, tmp_path, r"wants a user name and a password \(status 401\); put a login for 127.* into ~/\.netrc")
    netrc = trusted / ".netrc"
    netrc.write_text("machine 127.0.0.1 login me password wrong\n")
    netrc.chmod(0o600)
    refused(address, tmp_path, r"\(status 401\); correct its entry in ~/\.netrc")
    netrc.write_text("machine 127.0.0.1 login me password secret\n")
    pulled(address, tmp_path)


def test_a_login_stays_with_its_host(
    site: Site, authority: Authority, made: Path, trusted: Path, tmp_path: Path
) -> None:
    netrc = trusted / ".netrc"
    netrc.write_text("machine 127.0.0.1 login me password secret\n")
    netrc.chmod(0o600)
    other = Site(authority, files_of(made), "localhost")
    site.answer = lambda request: Answer(302, headers={"Location": f"{other.url}{request.path}"})
    try:
        pulled(f"{site.url}/pack.tar", tmp_path / "one")
        assert site.requests[-1].authorization == basic("me", "secret")
        assert [request.authorization for request in other.requests] == [""]
        pulled(f"{site.url}/pack.tar", tmp_path / "two", credential_hosts=[other.host])
        assert other.requests[-1].authorization == basic("me", "secret")
    finally:
        other.close()


def test_a_redirect_on_the_same_host_keeps_the_login(site: Site, made: Path, trusted: Path, tmp_path: Path) -> None:
    netrc = trusted / ".netrc"
    netrc.write_text("default login me password secret\n")
    netrc.chmod(0o600)
    packs = files_of(made)
    site.answer = lambda request: (
        Answer(308, headers={"Location": "/pack.tar"}) if request.path == "/old.tar" else packs(request)
    )
    pulled(f"{site.url}/old.tar", tmp_path)
    assert [request.authorization for request in site.requests] == [basic("me", "secret")] * 2


@pytest.mark.parametrize(
    ("location", "problem"),
    [
        ("http://127.0.0.1:1/pack.tar", r"redirects to http://127\.0\.0\.1:1/pack\.tar, which is not HTTPS"),
        ("ftp://127.0.0.1/pack.tar", "which is not HTTPS"),
        ("https://me:secret@127.0.0.1/x", "has a user name or a password in it"),
        ("https://127.0.0.1:99999/x", "is no address"),
        ("https://[/x", "is no address"),
    ],
)
def test_a_redirect_that_is_not_followed(location: str, problem: str, site: Site, tmp_path: Path) -> None:
    site.answer = lambda _: Answer(301, headers={"Location": location}, body=b"x" * 100)
    refused(f"{site.url}/pack.tar", tmp_path, problem)


def test_a_damaged_netrc(site: Site, trusted: Path, tmp_path: Path) -> None:
    (trusted / ".netrc").write_text("nonsense\n")
    refused(f"{site.url}/pack.tar", tmp_path, r"\.netrc cannot be read: bad toplevel token")


class Proxy:
    """A proxy for CONNECT. `asked` has the hosts."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._listening.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listening.accept()
                threading.Thread(target=self._one, args=(connection,), daemon=True).start()

    def _one(self, connection: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += connection.recv(1000)
        host, port = head.split()[1].decode().split(":")
        self.asked.append(host)
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        with connection, socket.create_connection((host, int(port)), HANG_S) as server:
            pairs = {connection: server, server: connection}
            while ready := select.select([*pairs], [], [], HANG_S)[0]:
                for one in ready:
                    if not (data := one.recv(1 << 16)):
                        return
                    pairs[one].sendall(data)


def test_a_proxy_of_the_environment(site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    proxy = Proxy()
    monkeypatch.setenv("https_proxy", proxy.address)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    try:
        pulled(f"{site.url}/pack.tar", tmp_path / "one")
        assert proxy.asked == ["127.0.0.1"]
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        pulled(f"{site.url}/pack.tar", tmp_path / "two")
        assert proxy.asked == ["127.0.0.1"]
    finally:
        proxy.close()
