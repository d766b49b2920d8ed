"""Ray Serve on a local cluster of three nodes: spread, a lost node, scaling, a rolling update, and images/s.

Every scenario runs under a load of our client, once without retries, so that each failure counts, and once as people
use it. It prints one JSON object. It needs the extra `ray`, and a network that has no interface but loopback:

    make ray-bench
"""

import argparse
import asyncio
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import harness
from ray_cluster import Local, local_cluster

from cnnserve_client import AsyncClient, CnnserveError

MODEL = "lenet5"
ROOT = Path(__file__).resolve().parents[1]
IN_FLIGHT = 16
_PATIENCE_S = 120.0


class Load:
    """Keeps requests in flight until `stop`, and counts what came of them."""

    def __init__(self, addresses: Sequence[str], image: bytes, *, retries: int | None, batch: int = 1) -> None:
        self._addresses = addresses
        self._images = [image] * batch
        self._retries = retries
        self._ending = asyncio.Event()
        self._times: list[float] = []
        self._began = time.perf_counter()
        self.outcomes: Counter[str] = Counter()
        self.texts: dict[str, str] = {}
        self.versions: Counter[str] = Counter()

    async def run(self) -> None:
        """Sends requests until `stop`."""
        async with AsyncClient(list(self._addresses), timeout_s=30, retries=self._retries) as client:
            self._began = time.perf_counter()
            await asyncio.gather(*(self._worker(client) for _ in range(IN_FLIGHT)))

    def stop(self) -> None:
        """Ends the load after the requests in flight."""
        self._ending.set()

    async def _worker(self, client: AsyncClient) -> None:
        while not self._ending.is_set():
            began = time.perf_counter()
            try:
                result = await client.classify(self._images, model=MODEL)
            except CnnserveError as error:
                self.outcomes[error.code] += 1
                self.texts.setdefault(error.code, str(error)[:300])
                await asyncio.sleep(0.01)
            else:
                self.outcomes["OK"] += 1
                self.versions[result.version] += 1
                self._times.append(time.perf_counter() - began)

    def summary(self) -> dict[str, Any]:
        """Returns counts, rate and latencies."""
        seconds = time.perf_counter() - self._began
        times = sorted(self._times) or [0.0]
        return {
            "outcomes": dict(self.outcomes),
            "errors": self.texts,
            "images_per_s": round(len(self._times) * len(self._images) / seconds, 1),
            "p50_ms": round(1000 * times[len(times) // 2], 2),
            "p99_ms": round(1000 * times[int(len(times) * 0.99)], 2),
        }


async def under_load(
    addresses: Sequence[str], image: bytes, work: Callable[[Load], Any], *, retries: int | None, batch: int = 1
) -> tuple[Any, dict[str, Any]]:
    """Runs `work` on a thread under load. Returns its result, and the summary of the load."""
    load = Load(addresses, image, retries=retries, batch=batch)
    running = asyncio.create_task(load.run())
    result = await asyncio.to_thread(work, load)
    load.stop()
    await running
    return result, load.summary() | {"versions": dict(load.versions)}


def until(holds: Callable[[], bool], what: str) -> float:
    """Waits until a condition holds and returns the seconds. Raises `RuntimeError` if it does not in time."""
    began = time.monotonic()
    while not holds():
        if time.monotonic() - began > _PATIENCE_S:
            raise RuntimeError(f"after {_PATIENCE_S:g} s still not: {what}")
        time.sleep(0.1)
    return round(time.monotonic() - began, 2)


class Scenarios:
    """The scenarios, on one cluster."""

    def __init__(self, local: Local, repository: Path, seconds: float) -> None:
        self._local = local
        self._repository = repository
        self._seconds = seconds
        self._image = (repository / MODEL / "1" / "golden-four.png").read_bytes()

    def _arguments(self, **options: Any) -> dict[str, Any]:
        return {"repository": str(self._repository), "models": {MODEL: {"version": 1} | options}}

    def _deploy(self, **options: Any) -> None:
        self._local.deploy(self._arguments(**options))
        wanted = options.get("replicas", 1)
        until(lambda: len(self._local.replicas(MODEL)) == wanted, f"{wanted} replicas")
        self._settle()

    def _settle(self) -> None:
        """Waits until the proxy of the head answers."""

        async def ask() -> None:
            async with AsyncClient(self._local.head_address, timeout_s=30) as client:
                await client.classify(self._image, model=MODEL)

        asyncio.run(ask())

    def _load(self, work: Callable[[Load], Any], *, retries: int | None, batch: int = 1) -> tuple[Any, dict[str, Any]]:
        # Serve ends the proxy of a node without replicas. Only the head's stays, so only there may no call fail.
        addresses = [self._local.head_address, *(self._local.addresses if retries is None else ())]
        return asyncio.run(under_load(addresses, self._image, work, retries=retries, batch=batch))

    def throughput(self, single: Callable[[Sequence[str], int], dict[str, Any]]) -> dict[str, Any]:
        """Images/s of one, two and three replicas, and of a single server with as many CPU threads."""
        rows = {}
        for count in (1, 2, 3):
            self._deploy(replicas=count)
            row = {}
            for batch in (1, 16):
                row[f"batch_{batch}"] = self._load(lambda _: time.sleep(self._seconds), retries=None, batch=batch)[1]
            row["nodes"] = len(set(self._local.replicas(MODEL).values()))
            rows[f"replicas_{count}"] = row
        for threads in (1, 2):
            rows[f"single_server_{threads}_threads"] = single([self._image], threads)
        return rows

    def rolling_update(self) -> dict[str, Any]:
        """A new version under load, without retries: no request may fail."""
        self._deploy(replicas=2)

        def update(_: Load) -> float:
            time.sleep(1)
            old, began = set(self._local.replicas(MODEL)), time.monotonic()
            self._local.deploy(self._arguments(replicas=2, version=2))
            until(lambda: len(set(self._local.replicas(MODEL)) - old) == 2, "two new replicas")
            until(lambda: not set(self._local.replicas(MODEL)) & old, "no old replica")
            took = time.monotonic() - began
            time.sleep(1)
            return round(took, 2)

        took, load = self._load(update, retries=0)
        return {"seconds": took, "load": load}

    def scaling(self) -> dict[str, Any]:
        """From one replica to three under load, and back to one without."""
        autoscaling = {
            "min_replicas": 1,
            "max_replicas": 3,
            "target_ongoing_requests": 3,
            "upscale_delay_s": 1,
            "downscale_delay_s": 2,
            "look_back_period_s": 2,
        }
        self._deploy(autoscaling=autoscaling)
        up, load = self._load(
            lambda _: until(lambda: len(self._local.replicas(MODEL)) == 3, "three replicas"),
            retries=0,
        )
        down = until(lambda: len(self._local.replicas(MODEL)) == 1, "one replica")
        return {"up_s": up, "down_s": down, "load": load}

    def node_lost(self, retries: int | None) -> dict[str, Any]:
        """A worker node that ends without a word, under load; its address stays among those of the client."""
        self._deploy(replicas=len(self._local.workers))
        nodes = len(set(self._local.replicas(MODEL).values()))

        def kill(_: Load) -> None:
            time.sleep(1)
            self._local.kill(0)
            time.sleep(self._seconds)

        _, load = self._load(kill, retries=retries)
        self._local.ports.pop(0)
        return {"nodes_before": nodes, "load": load}


def single_server(repository: Path, seconds: float) -> Callable[[Sequence[bytes], int], dict[str, Any]]:
    """Returns a function that measures a server without Ray."""

    def measure(images: Sequence[bytes], threads: int) -> dict[str, Any]:
        with harness.serving(repository, "--cpu-threads", str(threads)) as server:
            row = {}
            for batch in (1, 16):
                work = asyncio.run(
                    under_load([server.address], images[0], lambda _: time.sleep(seconds), retries=None, batch=batch)
                )
                row[f"batch_{batch}"] = work[1]
            return row

    return measure


def main() -> int:
    """Runs the scenarios, prints the result as JSON and returns the exit status: 0 if nothing was lost."""
    parser = argparse.ArgumentParser(description="Try a model repository on a local Ray cluster of three nodes.")
    parser.add_argument(
        "--seconds", type=float, default=5.0, help="time of each load in seconds (default: %(default)g)"
    )
    parser.add_argument(
        "--only",
        nargs="*",
        choices=("throughput", "rolling_update", "scaling", "node_lost"),
        help="scenarios to run (default: all)",
    )
    options = parser.parse_args()
    wanted = options.only or ["rolling_update", "scaling", "throughput", "node_lost"]
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder)
        shutil.copytree(ROOT / "model_repo" / MODEL, repository / MODEL)
        copy = [sys.executable, "-m", "cnnserve", "copy", str(repository / MODEL / "1"), str(repository / MODEL / "2")]
        subprocess.run(copy, check=True, stdout=subprocess.DEVNULL)
        with local_cluster((1, 1, 1)) as local:
            scenarios = Scenarios(local, repository, options.seconds)
            if "rolling_update" in wanted:
                results["rolling_update"] = scenarios.rolling_update()
            if "scaling" in wanted:
                results["scaling"] = scenarios.scaling()
            if "throughput" in wanted:
                results["throughput"] = scenarios.throughput(single_server(repository, options.seconds))
            if "node_lost" in wanted:
                results["node_lost_without_retries"] = scenarios.node_lost(retries=0)
                results["node_lost_with_retries"] = scenarios.node_lost(retries=None)
    print(json.dumps(results, indent=1))
    return 1 if _lost(results) else 0


def _lost(results: dict[str, Any]) -> int:
    """Returns the number of requests that failed where none may."""
    loads = [
        results[name]["load"]["outcomes"]
        for name in ("rolling_update", "scaling", "node_lost_with_retries")
        if name in results
    ]
    return sum(count for load in loads for code, count in load.items() if code != "OK")


if __name__ == "__main__":
    sys.exit(main())
