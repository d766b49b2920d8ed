"""Pages of foreign sites: which may use the HTTP port, and which may not change models."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from starlette.datastructures import Headers

from cnnserve.config.settings import ConfigError
from cnnserve.config.sources import from_sources
from cnnserve.errors import PermissionDenied
from cnnserve.transports.http.hosts import HostCheck
from support import HANG_S, RunningServer, picture, serving, write_version

NAMES = ["0.0.0.0", "models.example.org", "*.svc.cluster.local"]


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "localhost:8000"},
        {"host": "127.0.0.1:8000"},
        {"host": "[::1]:8000"},
        {"host": "10.1.2.3"},
        {"host": "MODELS.example.org:443"},
        {"host": "cnnserve.default.svc.cluster.local"},
        {},
        {"host": "localhost:8000", "origin": "http://localhost:8000"},
        {"host": "10.1.2.3:8000", "origin": "http://10.1.2.3:8000"},
        {"host": "models.example.org", "origin": "https://models.example.org"},
        {"host": "10.1.2.3", "origin": "http://models.example.org"},
    ],
)
def test_known_names_and_addresses_pass(headers: dict[str, str]) -> None:
    HostCheck(NAMES).check(Headers(headers), changes=True)


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ({"host": "evil.example"}, "--allowed-host evil.example"),
        ({"host": "models.example.org.evil.example"}, "--allowed-host"),
        ({"host": "svc.cluster.local"}, "--allowed-host"),
        ({"host": "localhost:8000", "origin": "https://evil.example"}, "pages of 'https://evil.example'"),
        ({"host": "127.0.0.1", "origin": "http://6.6.6.6"}, "pages of"),
        ({"host": "127.0.0.1", "origin": "null"}, "pages of 'null'"),
        ({"host": "127.0.0.1", "origin": "http://[::"}, "pages of"),
    ],
)
def test_foreign_names_and_pages_are_refused(headers: dict[str, str], said: str) -> None:
    with pytest.raises(PermissionDenied, match=said):
        HostCheck(NAMES).check(Headers(headers), changes=True)


@pytest.fixture(scope="module")
def controlled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("hosts")
    write_version(folder / "models" / "tiny" / "1")
    flags = ("--model-control-mode", "explicit", "--load-model", "*", "--allow-model-control")
    origins = ("--cors-origin", "https://app.example", "--allowed-host", "models.example")
    with serving(folder / "log", folder / "models", *flags, *origins) as server:
        yield server


def test_a_foreign_page_cannot_unload_a_model(controlled: RunningServer) -> None:
    address = f"http://127.0.0.1:{controlled.http_port}"
    unload = f"{address}/v2/repository/models/tiny/unload"
    for headers in ({"Host": "evil.example"}, {"Origin": "https://evil.example"}):
        response = httpx.post(unload, headers=headers, timeout=HANG_S)
        assert (response.status_code, set(response.json())) == (403, {"error"})
    assert httpx.get(f"{address}/v2/models/tiny/ready").status_code == 200
    for headers in ({}, {"Host": "models.example"}, {"Origin": address}):
        assert httpx.post(unload, headers=headers, timeout=HANG_S).status_code == 200
        assert httpx.post(unload.replace("unload", "load"), headers=headers, timeout=HANG_S).status_code == 200


def test_without_control_every_name_passes(tiny_server: RunningServer) -> None:
    response = httpx.get(f"http://127.0.0.1:{tiny_server.http_port}/v2", headers={"Host": "any.example"})
    assert response.status_code == 200
    assert "access-control-allow-origin" not in response.headers


def test_pages_of_a_permitted_origin_may_read(controlled: RunningServer) -> None:
    classify = f"http://127.0.0.1:{controlled.http_port}/v1/models/tiny:classify"
    asked = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
    preflight = httpx.options(classify, headers=asked | {"Access-Control-Request-Headers": "content-type"})
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == "https://app.example"
    assert "POST" in preflight.headers["access-control-allow-methods"]
    assert preflight.headers["access-control-allow-headers"] == "content-type"
    response = httpx.post(classify, content=picture("left"), headers={"Origin": "https://app.example"})
    assert (response.status_code, response.headers["access-control-allow-origin"]) == (200, "https://app.example")
    # The origin of `--cors-origin` may read; only names of `--allowed-host` may change models.
    unload = f"http://127.0.0.1:{controlled.http_port}/v2/repository/models/tiny/unload"
    assert httpx.post(unload, headers={"Origin": "https://app.example"}).status_code == 403


def test_bad_settings_are_named(tmp_path: Path) -> None:
    for flag, value in [("--allowed-host", "http://a"), ("--allowed-host", "a:80"), ("--cors-origin", "example.org")]:
        with pytest.raises(ConfigError, match=value):
            from_sources(["--model-repository", str(tmp_path), flag, value], {})
