"""What a good client notices of somebody who guesses tokens beside it, and what a check costs a call.

    python bench/guessing.py --guesses 10000

Target: no call of the good client fails. Its p99 is printed without and with the guesses; both come from one machine
that also runs the clients, so the difference is an upper bound.
"""

import argparse
import hashlib
import multiprocessing
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import harness
import numpy as np

from cnnserve.access.guard import Caller, Guard
from cnnserve.access.lists import Tokens
from cnnserve.access.scopes import Client, Scope
from cnnserve.wire import open_inference_pb2 as pb

INFER = "/inference.GRPCInferenceService/ModelInfer"
TOKEN = "good"
MODEL = "lenet5"
CHECKS = 20_000
IN_FLIGHT = 8


def main() -> int:
    """Runs the benchmark and returns the exit status: 0 if no call of the good client failed."""
    parser = argparse.ArgumentParser(description="Measure a good client beside one that guesses tokens.")
    harness.add_repository(parser)
    parser.add_argument("--guesses", type=int, default=10_000, help="number of guessed tokens (default: 10000)")
    options = parser.parse_args()
    checks = _check_costs()
    print(harness.table(["check", "us"], [[name, f"{cost:.2f}"] for name, cost in checks.items()]))
    repository = options.repository or Path(__file__).parents[1] / "model_repo"
    with tempfile.TemporaryDirectory() as folder:
        tokens = Path(folder) / "tokens"
        tokens.write_text(f"good infer {hashlib.sha256(TOKEN.encode()).hexdigest()}\n")
        with harness.serving(repository, "--tokens-file", str(tokens)) as server:
            quiet_s = _calls(server.address, lambda seconds: seconds > 2.0)
            guesser = multiprocessing.get_context("spawn").Process(
                target=_guess, args=(server.address, options.guesses)
            )
            guesser.start()
            beside_s = _calls(server.address, lambda _: guesser.exitcode is not None)
    rows = [
        [name, len(found), f"{1000 * statistics.median(found):.2f}", f"{1000 * float(np.percentile(found, 99)):.2f}"]
        for name, found in (("quiet", quiet_s), (f"beside {options.guesses} guesses", beside_s))
    ]
    print(harness.table(["good client", "calls", "p50 ms", "p99 ms"], rows))
    refused = guesser.exitcode == 0
    # A call of the good client that fails ends the benchmark.
    print(f"  {harness.verdict(passed=refused):<6}  no call of the good client failed, and every guess was refused")
    measured = {"checks_us": checks, "rows": rows, "settings": {"guesses": options.guesses}}
    harness.write_result("guessing", measured)
    return 0 if refused else 1


def _calls(address: str, ended: Callable[[float], bool]) -> list[float]:
    """Returns the seconds of each call of a good client. A call that fails ends the benchmark."""
    request = pb.ModelInferRequest(model_name=MODEL)
    request.inputs.add(name="image", datatype="UINT8", shape=[1, 28, 28, 1])
    request.raw_input_contents.append(bytes(784))
    data, found = request.SerializeToString(), []
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary(INFER)
        metadata = (("authorization", f"Bearer {TOKEN}"),)
        call(data, metadata=metadata, timeout=60)
        started = time.perf_counter()
        while not ended(time.perf_counter() - started):
            before = time.perf_counter()
            call(data, metadata=metadata, timeout=60)
            found.append(time.perf_counter() - before)
    return found


def _guess(address: str, count: int) -> None:
    """Guesses tokens over a few connections at once. Exits with 1 if one of them is not refused."""
    statuses: set[grpc.StatusCode] = set()

    def guess(number: int) -> None:
        with grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            call = channel.unary_unary(INFER)
            for index in range(number, count, IN_FLIGHT):
                metadata = (("authorization", f"Bearer guess-{index}"),)
                statuses.add(call.future(b"", metadata=metadata, timeout=60).code())

    threads = [threading.Thread(target=guess, args=(number,)) for number in range(IN_FLIGHT)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.exit(statuses != {grpc.StatusCode.UNAUTHENTICATED})


def _check_costs() -> dict[str, float]:
    """Returns the microseconds of a check: of a token that its connection has sent before, and of a new connection."""
    entries = [
        (hashlib.sha256(str(number).encode()).digest(), Client(f"token {number}", frozenset({Scope.INFER})))
        for number in range(100)
    ]
    found = {}
    for name, count, peers in (("known", 100, 1), ("new, 1 token", 1, CHECKS), ("new, 100 tokens", 100, CHECKS)):
        guard = Guard(Tokens(tuple(entries[:count])))
        callers = [Caller(f"ipv4:10.0.0.1:{number % peers}", ("Bearer 0",)) for number in range(CHECKS)]
        started = time.perf_counter()
        for caller in callers:
            guard.admit("x", Scope.INFER, caller)
        found[name] = (time.perf_counter() - started) / CHECKS * 1e6
    return found


if __name__ == "__main__":
    sys.exit(main())
