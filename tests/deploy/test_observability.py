"""The dashboard, the alerts and a real Prometheus that scrapes a real server: each name in them is one of a metric."""

import contextlib
import json
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from cnnserve_client import Client, NotFoundError
from oip import Oip, rows, tensor
from support import HANG_S, RunningServer, picture, serving, wait_until, write_version

FOLDER = Path(__file__).resolve().parents[2] / "deploy" / "observability"
DASHBOARD: dict[str, Any] = json.loads((FOLDER / "dashboard.json").read_text())
PANELS: list[dict[str, Any]] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
ALERTS: list[dict[str, Any]] = yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"][0]["rules"]
ALERT_TESTS = sorted(path.name for path in FOLDER.glob("alerts*.test.yaml"))
EXPRESSIONS = [target["expr"] for panel in PANELS for target in panel["targets"]] + [rule["expr"] for rule in ALERTS]
# What Prometheus adds to every scrape.
_SCRAPE = {"up"}
_METRIC = re.compile(r"\b(?:cnnserve_|nv_|process_|up\b)[a-z0-9_]*")
_SUFFIXES = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("", "_total")}
_SHORT_QUEUE = "max_batch_size: 8 dynamic_batching { default_queue_policy { max_queue_size: 4 } }"
# Panels without data on a machine without a GPU, and of a server without TLS.
_EMPTY = {"GPU", "GPU memory", "Certificate"}
_promtool = shutil.which("promtool")
_prometheus = shutil.which("prometheus")
needs_promtool = pytest.mark.skipif(_promtool is None, reason="needs promtool (Debian's package prometheus)")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server that has answered and refused requests."""
    root = tmp_path_factory.mktemp("repository")
    write_version(root / "tiny" / "1")
    (root / "tiny" / "config.pbtxt").write_text(_SHORT_QUEUE)
    write_version(root / "broken" / "1").joinpath("manifest.json").write_text("{")
    with serving(tmp_path_factory.mktemp("log") / "log", root) as server:
        work(server)
        yield server


def work(server: RunningServer) -> None:
    with Client(server.address) as client, Oip(server.address) as oip:
        client.classify([picture("left"), picture("dark")], model="tiny")
        with pytest.raises(NotFoundError):
            client.classify(picture("left"), model="unknown")
        # More images than the queue may hold.
        oip.fails("ModelInfer", tensor(rows(5), model="tiny"))


def test_every_metric_exists(server: RunningServer) -> None:
    text = httpx.get(f"http://127.0.0.1:{server.http_port}/metrics", timeout=HANG_S).text
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    known = {name + suffix for name, kind in kinds.items() for suffix in _SUFFIXES.get(kind, ("",))} | _SCRAPE
    used = {name for expression in EXPRESSIONS for name in _METRIC.findall(expression)}
    queries = [variable["query"] for variable in DASHBOARD["templating"]["list"][1:]]
    used |= {name for query in queries for name in _METRIC.findall(query["query"])}
    assert len(used) > 25
    assert used - known == set()


def test_the_dashboard_can_be_imported_anywhere() -> None:
    assert DASHBOARD["id"] is None
    assert DASHBOARD["uid"] == "cnnserve"
    first, *variables = DASHBOARD["templating"]["list"]
    assert (first["type"], first["query"]) == ("datasource", "prometheus")
    source = {"type": "prometheus", "uid": "${datasource}"}
    assert all(variable["datasource"] == source and variable["multi"] for variable in variables)
    for panel in PANELS:
        assert panel["datasource"] == source
        assert panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        for target in panel["targets"]:
            assert target["datasource"] == source
            assert not re.search(r"rate\([^\[]*\[(?!\$__rate_interval\])", target["expr"])
            assert set(re.findall(r"\$(\w+)", target["expr"])) <= {
                "__rate_interval",
                *(variable["name"] for variable in variables),
            }


def test_panels_do_not_overlap() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for place in (panel["gridPos"] for panel in panels):
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken
        assert place["x"] + place["w"] <= 24
        taken |= cells


def test_each_alert_is_tested_firing_and_silent() -> None:
    tests = [test for file in ALERT_TESTS for test in yaml.safe_load((FOLDER / file).read_text())["tests"]]
    cases = [case for test in tests for case in test["alert_rule_test"]]
    for kind in (True, False):
        assert {case["alertname"] for case in cases if bool(case["exp_alerts"]) is kind} == {
            rule["alert"] for rule in ALERTS
        }


@needs_promtool
@pytest.mark.parametrize(("check", "file"), [("check", "alerts.yaml"), *(("test", file) for file in ALERT_TESTS)])
def test_promtool_accepts_the_alerts(check: str, file: str) -> None:
    command = [str(_promtool), check, "rules", file]
    ended = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, timeout=HANG_S, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "SUCCESS" in ended.stdout + ended.stderr


@needs_promtool
def test_promtool_accepts_the_exposition(server: RunningServer) -> None:
    text = httpx.get(f"http://127.0.0.1:{server.http_port}/metrics", timeout=HANG_S).content
    command = [str(_promtool), "check", "metrics"]
    ended = subprocess.run(command, input=text, capture_output=True, timeout=HANG_S, check=False)
    complaints = (ended.stdout + ended.stderr).decode().splitlines()
    # Triton's names are Triton's choice.
    assert [line for line in complaints if not line.startswith("nv_")] == []


@contextlib.contextmanager
def prometheus(folder: Path, target: str) -> Iterator[httpx.Client]:
    """A Prometheus on 127.0.0.1 that scrapes `target` every second with the alerts of the folder."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    config = yaml.safe_load((FOLDER / "prometheus.yaml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(FOLDER / "alerts.yaml")]
    config["scrape_configs"][0]["static_configs"][0]["targets"] = [target]
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    flags = [f"--config.file={folder / 'prometheus.yaml'}", f"--storage.tsdb.path={folder / 'data'}"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [str(_prometheus), *flags, f"--web.listen-address={address}"], stdout=log, stderr=log, cwd=folder
        )
    try:
        with httpx.Client(base_url=f"http://{address}", timeout=HANG_S) as client:
            yield client
    finally:
        process.terminate()
        process.wait(HANG_S)


def query(client: httpx.Client, expression: str) -> list[dict[str, Any]]:
    for variable in ("job", "instance", "model", "version"):
        expression = expression.replace(f"${variable}", ".*")
    expression = expression.replace("$__rate_interval", "1m")
    try:
        answer = client.get("/api/v1/query", params={"query": expression})
    except httpx.TransportError:
        return []
    assert answer.status_code in (200, 503), f"{expression}: {answer.text}"
    found: list[dict[str, Any]] = answer.json()["data"]["result"] if answer.status_code == 200 else []
    return found


@pytest.mark.skipif(_prometheus is None, reason="needs prometheus (Debian's package)")
def test_a_real_prometheus_fills_every_panel(server: RunningServer, tmp_path: Path) -> None:
    wanted = {
        f"{panel['title']}: {target['expr']}": target["expr"]
        for panel in PANELS
        if panel["title"] not in _EMPTY
        for target in panel["targets"]
    }
    missing = dict(wanted)

    def is_filled() -> bool:
        work(server)
        for title, expression in list(missing.items()):
            if query(client, expression):
                del missing[title]
        return not missing

    with prometheus(tmp_path, f"127.0.0.1:{server.http_port}") as client:
        wait_until(is_filled, lambda: missing)
        rules = client.get("/api/v1/rules").json()["data"]["groups"][0]["rules"]
        (target,) = client.get("/api/v1/targets").json()["data"]["activeTargets"]
    assert (target["health"], target["lastError"]) == ("up", "")
    assert {rule["name"]: rule["lastError"] for rule in rules if "lastError" in rule} == {}
    assert {rule["name"] for rule in rules} == {rule["alert"] for rule in ALERTS}
