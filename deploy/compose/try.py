# ruff: noqa: INP001, T201 - a script.
"""What `try.sh` runs: waits until Prometheus has scraped the server and evaluated every alert."""

import http.client
import json
import sys
import time
import urllib.parse
from pathlib import Path
from typing import Any

import yaml

_PROMETHEUS = "127.0.0.1:9090"
# Two scrapes, and the start of the containers.
_WAIT_S = 90.0


def ask(path: str) -> Any:
    """Returns the data of an answer of Prometheus, or None if it does not answer yet."""
    connection = http.client.HTTPConnection(_PROMETHEUS, timeout=10)
    try:
        connection.request("GET", f"/api/v1/{path}")
        response = connection.getresponse()
        data = response.read()
        return json.loads(data)["data"] if response.status == http.HTTPStatus.OK else None
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def query(expression: str) -> list[str]:
    """Returns the values of an expression now."""
    found = ask(f"query?query={urllib.parse.quote(expression)}")
    return [sample["value"][1] for sample in found["result"]] if found else []


def rules() -> dict[str, str]:
    """Returns the health of each alert: `ok`, `unknown` or `err`."""
    found = ask("rules")
    return {rule["name"]: rule["health"] for group in found["groups"] for rule in group["rules"]} if found else {}


def main() -> int:
    """Prints what Prometheus has. Returns 1 if it has not all after a while."""
    alerts = yaml.safe_load(Path(sys.argv[1], "deploy", "observability", "alerts.yaml").read_text())
    wanted = {rule["alert"]: "ok" for group in alerts["groups"] for rule in group["rules"]}
    end = time.monotonic() + _WAIT_S
    while time.monotonic() < end:
        up, ready, found = query("up"), query('cnnserve_model_state{state="READY"}'), rules()
        if up == ["1"] and ready == ["1"] and found == wanted:
            print(f"compose   up == 1, lenet5 READY, {len(found)} alerts evaluated")
            return 0
        time.sleep(0.5)
    print(f"up is {up}, READY {ready}, the alerts {found}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
