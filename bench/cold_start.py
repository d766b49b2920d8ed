"""Compares the server's time from process start to READY with a bare script that does only what every start must do.

Both start in turns, with their files in the page cache; the results are medians. The benchmark also shows where the
server spends its time: when it logged each line, and how long each import took.

    python bench/cold_start.py --rounds 9
"""

import argparse
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import harness
import machine
from grpc_health.v1 import health_pb2
from harness import median

TARGET = 1.5
SHOWN = 25
_IMPORT = re.compile(r"import time:\s+(\d+) \|\s+(\d+) \|(\s+)(\S+)")


def main() -> int:
    """Runs the benchmark and returns the exit status: 0 if the target was reached."""
    parser = argparse.ArgumentParser(description="Compare process start to READY with a bare script.")
    harness.add_models(parser, ["lenet5", "resnet50"])
    harness.add_rounds(parser, 7)
    harness.add_repository(parser)
    options = parser.parse_args()
    with harness.exported(options.models, options.repository) as root, harness.only(options.models, root) as repository:
        # One start of each before the measurement, so that byte code exists and files are in the page cache.
        _server_s(repository), _bare_s(repository, options.models)
        pairs = [(_server_s(repository), _bare_s(repository, options.models)) for _ in range(options.rounds)]
        imports = _imports(repository)
    servers, bare = [server for (server, _), _ in pairs], [seconds for _, seconds in pairs]
    ratio = median([server / seconds for server, seconds in zip(servers, bare, strict=True)])
    _print(servers, bare, pairs[-1][0][1], imports)
    verdict = harness.verdict(passed=ratio <= TARGET)
    print(f"\n  {verdict:<6}  READY after at most {TARGET} times the bare script's time: {ratio:.2f} times")
    harness.write_result("cold_start", {"models": options.models, "server_s": servers, "bare_s": bare, "ratio": ratio})
    return 0 if ratio <= TARGET else 1


def _server_s(repository: Path) -> tuple[float, list[tuple[float, str]]]:
    """Returns the seconds to READY, and for each line of the log when it was logged."""
    with harness.serving(repository) as server:
        seconds, _ = server.wait_for(r"cnnserve\.app: ready\b")
        answer = server.call(
            "grpc.health.v1.Health/Check", health_pb2.HealthCheckRequest(), health_pb2.HealthCheckResponse
        )
        if answer.status != health_pb2.HealthCheckResponse.SERVING:
            raise SystemExit("the server logged that it is ready, but its health is not SERVING")
        return seconds, [(at - server.started, line) for at, line in server.lines]


def _bare_s(repository: Path, models: Sequence[str]) -> float:
    folders = [str(repository / model / "1") for model in models]
    command = [sys.executable, str(harness.BENCH / "bare_start.py"), str(machine.cores()), *folders]
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        line = process.stdout.readline() if process.stdout else b""
        seconds = time.perf_counter() - started
    if line != b"ready\n":
        raise SystemExit(f"the bare script printed {line!r}, expected 'ready'")
    return seconds


def _imports(repository: Path) -> list[tuple[int, int, int, str]]:
    """Returns own and total microseconds, depth and name of every module that a start imports."""
    with harness.serving(repository, python=["-X", "importtime"]) as server:
        lines = [line for _, line in server.lines]
    found = [_IMPORT.match(line) for line in lines]
    return [(int(m[1]), int(m[2]), len(m[3]) // 2, m[4]) for m in found if m]


def _print(
    servers: list[float], bare: list[float], log: list[tuple[float, str]], imports: list[tuple[int, int, int, str]]
) -> None:
    rows = [[name, f"{median(times):.3f}", f"{min(times):.3f}", f"{max(times):.3f}"] for name, times in
            (("server to READY", servers), ("bare script", bare))]  # fmt: skip
    print(harness.table(["", "median s", "min s", "max s"], rows))
    print("\nthe server's log, in seconds since the process started")
    for at, line in log:
        print(f"  {at:6.3f}  {line.partition(': ')[2][:110]}")
    packages: Counter[str] = Counter()
    for own, _, _, name in imports:
        packages[name.partition(".")[0]] += own
    print(f"\nimports by package, own time (total: {packages.total() / 1e3:.0f} ms; tracing makes imports slower)")
    for name, own in packages.most_common(SHOWN):
        print(f"  {own / 1e3:7.1f} ms  {name}")
    print("\nthe slowest modules, own time")
    for own, _, _, name in sorted(imports, key=lambda item: -item[0])[:SHOWN]:
        print(f"  {own / 1e3:7.1f} ms  {name}")
    print("\nthe slowest modules, with all that they import")
    for _, whole, depth, name in sorted(imports, key=lambda item: -item[1])[:SHOWN]:
        print(f"  {whole / 1e3:7.1f} ms  {'  ' * min(depth, 12)}{name}")


if __name__ == "__main__":
    sys.exit(main())
