"""The page's files and routes on a real server; `test_page_browser` drives the page itself."""

import asyncio
import hashlib
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from cnnserve.registry.snapshot import Snapshot
from cnnserve.transports.http.page import live
from support import CLASSES, HANG_S, RunningServer, picture, serving, write_version

WEB = Path(live.__file__).parent / "web"
VERSION = "/page/api/models/tiny/versions/1"
LEFT = picture("left")


@pytest.fixture(scope="module")
def http(tiny_server: RunningServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://127.0.0.1:{tiny_server.http_port}", timeout=HANG_S) as client:
        yield client


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A server with one token for each scope, whose name is the token."""
    folder = tmp_path_factory.mktemp("page")
    write_version(folder / "models" / "tiny" / "1")
    with (folder / "tokens").open("w") as tokens:
        for scope in ("infer", "read", "metrics", "admin"):
            tokens.write(f"{scope} {scope} {hashlib.sha256(scope.encode()).hexdigest()}\n")
    with (
        serving(folder / "log", folder / "models", "--tokens-file", folder / "tokens") as server,
        httpx.Client(base_url=f"http://127.0.0.1:{server.http_port}", timeout=HANG_S) as client,
    ):
        yield client


FILES = ["/", *(f"/page/{path.relative_to(WEB)}" for path in sorted(WEB.rglob("*")) if path.suffix not in ("", ".md"))]


@pytest.mark.parametrize("path", FILES)
def test_files_come_with_a_strict_policy_and_are_cached_by_their_content(http: httpx.Client, path: str) -> None:
    response = http.get(path)
    assert response.status_code == 200
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http:" not in policy
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["cache-control"] == "no-cache"
    again = http.get(path, headers={"If-None-Match": response.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["content-security-policy"] == policy


def test_the_page_is_small_and_asks_no_other_host() -> None:
    code = [path for path in WEB.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in code) < 100_000
    assert sum(path.stat().st_size for path in WEB.rglob("*") if path.is_file()) < 150_000
    for path in code:
        found = set(re.findall(r"\w+://[^\s\"'`)]+", path.read_text()))
        assert found <= {"http://www.w3.org/2000/svg"}, path


def test_text_never_becomes_html() -> None:
    for path in WEB.glob("*.js"):
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", path.read_text()), path


@pytest.mark.parametrize("path", ["/page/none.js", "/page/samples/none.jpg", "/page/..%2ffiles.py", "/page/SOURCES.md"])
def test_other_files_do_not_exist(http: httpx.Client, path: str) -> None:
    assert http.get(path).status_code == 404


def test_every_sample_exists_and_has_a_source(http: httpx.Client) -> None:
    samples = http.get("/page/samples/index.json").json()
    files = {path.name for path in (WEB / "samples").iterdir() if path.suffix in (".jpg", ".png")}
    assert {sample["file"] for sample in samples} == files
    assert len(files) == 12
    sources = (WEB / "samples" / "SOURCES.md").read_text()
    for name in files:
        assert name in sources or f"{name.partition('-')[0]}-*.png" in sources, name
        assert http.get(f"/page/samples/{name}").headers["content-type"].startswith("image/")


def test_the_list_is_that_of_the_rpc(http: httpx.Client) -> None:
    models = {model["name"]: model for model in http.get("/page/api/models").json()["models"]}
    (version,) = models["tiny"]["versions"]
    assert (version["state"], version["verified"], version["class_count"]) == ("MODEL_STATE_READY", True, len(CLASSES))
    assert version["placement"]["CPUExecutionProvider"] > 0


def test_a_version_tells_its_manifest_and_its_self_test(http: httpx.Client) -> None:
    found = http.get(VERSION).json()
    assert found["manifest"]["golden"]["images"] == ["golden.png"]
    assert found["size_bytes"] == sum(file["bytes"] for file in found["manifest"]["files"].values())
    assert 0 <= found["self_test"]["golden_difference"] <= found["self_test"]["tolerance"]
    assert (found["instances"], found["label_count"]) == (1, len(CLASSES))
    assert http.get(f"{VERSION}/labels").json() == list(CLASSES)


def test_the_golden_image_is_the_file(http: httpx.Client, tiny_repository: Path) -> None:
    response = http.get(f"{VERSION}/golden")
    assert response.headers["content-type"] == "image/png"
    assert response.content == (tiny_repository / "tiny" / "1" / "golden.png").read_bytes()
    assert http.get(f"{VERSION}/golden?index=1").status_code == 400
    assert http.get(f"{VERSION}/golden?index=x").status_code == 400


def test_a_golden_image_that_has_changed_is_not_shown(tmp_path: Path) -> None:
    folder = write_version(tmp_path / "models" / "tiny" / "1")
    with serving(tmp_path / "log", tmp_path / "models") as server:
        (folder / "golden.png").write_bytes(picture("bright"))
        response = httpx.get(f"http://127.0.0.1:{server.http_port}{VERSION}/golden", timeout=HANG_S)
    assert response.status_code == 409
    assert "golden.png" in response.json()["error"]


def test_the_pixels_that_the_network_gets(http: httpx.Client) -> None:
    response = http.post(f"{VERSION}/input", content=LEFT)
    assert response.headers["content-type"] == "image/png"
    expected = np.asarray(Image.open(io.BytesIO(LEFT)))
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(response.content))), expected)


def test_an_occlusion_map(http: httpx.Client) -> None:
    found = http.post(f"{VERSION}/occlusion?cells=4", content=LEFT).json()
    assert (found["label"], found["runs"], np.shape(found["drops"])) == ("left", 17, (4, 4))
    bright = http.post(f"{VERSION}/occlusion?cells=2&class=2", content=LEFT).json()
    assert bright["label"] == "bright"


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("input?a=1", 400, "unknown"),
        ("occlusion?cells=99", 400, "2 to 16"),
        ("occlusion?class=-1", 400, "whole number"),
        ("occlusion?class=3", 400, "class 3 does not exist"),
    ],
)
def test_bad_questions(http: httpx.Client, path: str, status: int, said: str) -> None:
    response = http.post(f"{VERSION}/{path}", content=LEFT)
    assert response.status_code == status
    assert said in response.json()["error"]


@pytest.mark.parametrize("path", ["input", "occlusion"])
def test_bad_images_and_unknown_models(http: httpx.Client, path: str) -> None:
    response = http.post(f"{VERSION}/{path}", content=b"no image")
    assert response.status_code == 400
    assert "image" in response.json()["error"]
    assert http.post(f"/page/api/models/none/versions/1/{path}", content=LEFT).status_code == 404
    assert http.post(f"/page/api/models/tiny/versions/9/{path}", content=LEFT).status_code == 404


ROUTES = {
    "GET /page/api/models": "read",
    f"GET {VERSION}": "read",
    f"GET {VERSION}/labels": "read",
    f"GET {VERSION}/golden": "read",
    f"POST {VERSION}/input": "infer",
    f"POST {VERSION}/occlusion": "infer",
    "GET /page/api/live": "metrics",
}


@pytest.mark.parametrize("route", ROUTES)
def test_data_needs_its_scope(locked: httpx.Client, route: str) -> None:
    method, _, path = route.partition(" ")
    body = LEFT if method == "POST" else None
    assert locked.request(method, path, content=body).status_code == 401
    for scope in ("infer", "read", "metrics", "admin"):
        headers = {"Authorization": f"Bearer {scope}"}
        with locked.stream(method, path, content=body, headers=headers) as response:
            assert response.status_code == (200 if scope == ROUTES[route] else 403), scope


def test_files_need_no_token(locked: httpx.Client) -> None:
    assert locked.get("/").status_code == locked.get("/page/app.js").status_code == 200


def test_the_stream_tells_what_happened_and_remembers_it(http: httpx.Client) -> None:
    def busy(lines: Iterator[str]) -> dict[str, object]:
        for line in lines:
            if line.startswith("data: ") and (models := json.loads(line[6:])["models"]):
                assert isinstance(models, dict)
                return dict(models["tiny/1"])
        raise AssertionError("the stream ended")

    with http.stream("GET", "/page/api/live") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = response.iter_lines()
        next(line for line in lines if line.startswith("data: "))
        for _ in range(3):
            assert http.post("/v1/models/tiny:classify", content=LEFT).status_code == 200
        seen = busy(lines)
    assert seen["instances"] == 1
    assert isinstance(seen["requests"], float)
    assert seen["requests"] > 0
    assert isinstance(seen["batches"], dict)
    assert set(seen["batches"]) == {"1"}
    with http.stream("GET", "/page/api/live") as response:
        assert busy(response.iter_lines()) == seen


def test_the_stream_ends_with_the_server(tmp_path: Path) -> None:
    write_version(tmp_path / "models" / "tiny" / "1")
    with (
        serving(tmp_path / "log", tmp_path / "models") as server,
        httpx.stream("GET", f"http://127.0.0.1:{server.http_port}/page/api/live", timeout=HANG_S) as response,
    ):
        lines = response.iter_lines()
        next(lines)
        server.process.terminate()
        for _ in lines:
            pass
        assert server.process.wait(HANG_S) == 0
    assert "ERROR" not in (tmp_path / "log").read_text()


def test_without_the_page_its_routes_do_not_exist(tmp_path: Path) -> None:
    write_version(tmp_path / "models" / "tiny" / "1")
    with (
        serving(tmp_path / "log", tmp_path / "models", "--no-page") as server,
        httpx.Client(base_url=f"http://127.0.0.1:{server.http_port}", timeout=HANG_S) as client,
    ):
        for path in ("/", "/page/app.js", "/page/api/models", "/page/api/live"):
            assert client.get(path).status_code == 404
        assert client.get("/v2").status_code == 200


async def test_the_stream_of_a_client_that_does_not_read_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "_EVERY_S", 0.0)
    monkeypatch.setattr(live, "_MOST_UNREAD", 2)
    now = Snapshot((), 0, 0, 0, 0, 0, "", "")
    ending = asyncio.Event()
    looked = live.Live(lambda: now, ending)
    slow, quick = looked._events(), looked._events()
    await anext(slow)
    await anext(quick)
    async with asyncio.timeout(HANG_S):
        # The slow one is behind by more than it may be.
        while len(looked._viewers) == 2:
            assert b'"models":{}' in await anext(quick)
        assert [event async for event in slow] == []
        ending.set()
        async for _ in quick:
            pass
    assert looked._viewers == set()


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "_MOST_BYTES", 100)
    monkeypatch.setattr(live, "_HISTORY", 6)
    looked = live.Live(lambda: Snapshot((), 0, 0, 0, 0, 0, "", ""), asyncio.Event())
    for number in range(10):
        looked._remember(b"%d" % number)
    assert [*looked._history] == [b"4", b"5", b"6", b"7", b"8", b"9"]
    for _ in range(10):
        looked._remember(bytes(30))
    assert [*looked._history] == [bytes(30)] * 3


def test_nothing_is_measured_if_nobody_looks() -> None:
    def snapshot() -> Snapshot:
        raise AssertionError("measured")

    live.Live(snapshot, asyncio.Event())
    assert live._quantile_ms([0] * 16, 0.5) is None
    assert live._quantile_ms([4, *[0] * 15], 0.5) == 0.125
    assert live._quantile_ms([*[0] * 15, 2], 0.99) == 10_000
