# ruff: noqa: INP001, S603, T201 - a script, and it runs the command it is given.
"""The Python part of `image-test.sh`: wait for the server, classify digits, keep it loaded while it is stopped.

Runs outside of the container, in the checkout's environment.
"""

import argparse
import http.client
import io
import itertools
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from cnnserve_client import Client
from cnnserve_client.errors import CnnserveError, ConnectionFailedError, UnavailableError
from cnnserve_export.digits import held_out_digits

# Most clients send one digit at a time. Every fourth sends several large ones: these take long enough to be anywhere on
# their way when the server is told to stop.
_LARGE_IMAGES = 4
_START_TIMEOUT_S = 60.0
_REQUEST_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Request:
    """A request that has ended; times are `time.monotonic()`. `error` is None where it was answered."""

    began: float
    ended: float
    right: bool = True
    error: CnnserveError | None = None


def main() -> int:
    """Runs one of the three commands."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    wait = commands.add_parser("wait", help="wait until the server is ready; print the seconds since a time")
    wait.add_argument("http_address", metavar="HOST:PORT")
    wait.add_argument("since", type=float, metavar="UNIX_TIME")
    classify = commands.add_parser("classify", help="classify ten digits with `cnnserve classify` and check the labels")
    classify.add_argument("address", metavar="HOST:PORT")
    classify.add_argument("model")
    stop = commands.add_parser("stop", help="run a command that stops the server while it is under load")
    stop.add_argument("--clients", type=int, default=24, help="clients at once (default: 24)")
    stop.add_argument("--side", type=int, default=2500, help="pixels a side of the large images (default: 2500)")
    stop.add_argument("--load-s", type=float, default=2.0, help="seconds of load before the command (default: 2)")
    stop.add_argument("address", metavar="HOST:PORT")
    stop.add_argument("model")
    stop.add_argument("stop_command", nargs="+", metavar="COMMAND")
    args = parser.parse_args()
    if args.command == "wait":
        return _wait(args.http_address, args.since)
    if args.command == "classify":
        return _classify(args.address, args.model)
    return _stop(args)


def _wait(address: str, since: float) -> int:
    while time.time() - since < _START_TIMEOUT_S:
        # HTTP, because a gRPC channel waits a second after a refused connection before it tries again.
        connection = http.client.HTTPConnection(address, timeout=1)
        try:
            connection.request("GET", "/v2/health/ready")
            if connection.getresponse().status == http.HTTPStatus.OK:
                print(f"{time.time() - since:.2f}")
                return 0
        except (OSError, http.client.HTTPException):
            pass
        finally:
            connection.close()
        time.sleep(0.01)
    print(f"not ready after {_START_TIMEOUT_S:g} s", file=sys.stderr)
    return 1


def _classify(address: str, model: str) -> int:
    program = str(Path(sys.executable).with_name("cnnserve"))
    command = [program, "classify", "--address", address, "--model", model, "--json"]
    with tempfile.TemporaryDirectory() as folder:
        files = {value: Path(folder, f"{value}.png") for value in range(10)}
        for value, png in _digits().items():
            files[value].write_bytes(png)
        done = subprocess.run([*command, *map(str, files.values())], check=True, stdout=subprocess.PIPE)
    images = [json.loads(line) for line in done.stdout.splitlines()]
    found = {image["file"]: image["classes"][0]["label"] for image in images}
    right = sum(found.get(str(file)) == str(value) for value, file in files.items())
    print(f"{right} of {len(files)} digits right")
    return 0 if right == len(files) else 1


def _digits() -> dict[int, bytes]:
    """One digit of each value, of those never trained on; as PNG."""
    return {value: png for png, value in reversed(held_out_digits())}


def _stop(args: argparse.Namespace) -> int:
    load = _Load(args.address, args.model)
    small = [([png], [str(value)]) for value, png in _digits().items()]
    large = [([_enlarge(images[0], args.side)] * _LARGE_IMAGES, labels * _LARGE_IMAGES) for images, labels in small]
    threads = [
        threading.Thread(target=load.run_client, args=(small if number % 4 else large, number))
        for number in range(args.clients)
    ]
    for thread in threads:
        thread.start()
    try:
        time.sleep(args.load_s)
        told = time.monotonic()
        subprocess.run(args.stop_command, check=True, stdout=subprocess.DEVNULL)
        stopped = time.monotonic()
    finally:
        load.finished.set()
        for thread in threads:
            thread.join()
    return _judge(load.requests, told, stopped)


class _Load:
    """Clients in closed loops, and what became of their requests."""

    def __init__(self, address: str, model: str) -> None:
        self.requests: list[Request] = []
        self.finished = threading.Event()
        self._address = address
        self._model = model

    def run_client(self, work: Sequence[tuple[list[bytes], list[str]]], number: int) -> None:
        """Sends the next request when the last has ended, until `finished`."""
        # gRPC shares one connection between channels of the same options; other limits make one for each client.
        # A call that is tried again would hide that the server had accepted it and lost it.
        with Client(self._address, timeout_s=_REQUEST_TIMEOUT_S, max_message_mib=64 + number, retries=0) as client:
            for images, labels in itertools.cycle(work):
                if self.finished.is_set():
                    return
                began = time.monotonic()
                try:
                    answer = client.classify(images, model=self._model, top_k=1)
                except CnnserveError as error:
                    self.requests.append(Request(began, time.monotonic(), error=error))
                    self.finished.wait(0.02)
                else:
                    right = [result.ok and result.top.label for result in answer.results] == labels
                    self.requests.append(Request(began, time.monotonic(), right))


def _judge(requests: list[Request], told: float, stopped: float) -> int:
    answered = [request for request in requests if request.error is None]
    wrong = [request for request in answered if not request.right]
    failed = [request for request in requests if request.error is not None]
    refused = [request for request in failed if _is_refusal(request, told)]
    lost = len(failed) - len(refused)
    in_flight = [request for request in answered if request.began < told <= request.ended]
    later = [request for request in answered if request.began >= told]
    for text, count in Counter(_describe(request, told) for request in failed).most_common(10):
        print(f"  {count} x {text}", file=sys.stderr)
    print(
        f"{len(in_flight)} requests in flight and {len(later)} later ones answered, {lost} lost, {len(wrong)} wrong; "
        f"{len(answered)} answered in all; stopped in {stopped - told:.2f} s"
    )
    return 1 if lost or wrong or not in_flight else 0


def _is_refusal(request: Request, told: float) -> bool:
    """Whether the server was stopping, never took the request, and said so in the way that makes clients try again."""
    if request.ended < told:
        return False
    if isinstance(request.error, ConnectionFailedError):
        return True
    # A connection that broke may have had the request already.
    broken = any(words in str(request.error).lower() for words in ("socket closed", "connection reset", "broken pipe"))
    return isinstance(request.error, UnavailableError) and not broken


def _describe(request: Request, told: float) -> str:
    when = "begun before the stop" if request.began < told else "begun after the stop"
    return f"{when}: {type(request.error).__name__} {request.error}"


def _enlarge(png: bytes, side: int) -> bytes:
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(png)) as image:
        image.resize((side, side), Image.Resampling.BILINEAR).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


if __name__ == "__main__":
    sys.exit(main())
