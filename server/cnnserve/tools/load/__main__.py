"""Runs one measurement and prints the result as one line of JSON.

For example:

    python -m cnnserve.tools.load 127.0.0.1:8001 --method inference.GRPCInferenceService/ModelInfer --body request.bin
"""

import argparse
import array
import json
import os
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from . import answers
from .answers import OK
from .arrivals import poisson
from .connecting import Wire, tls_context
from .generator import Generator, Measured, Open, Window
from .http1 import HttpConnection
from .http2 import Connection
from .summary import summary

# The methods whose responses may have an error although their status is OK.
_JUDGES = {
    "cnnserve.v1.Classifier/Classify": answers.classify,
    "cnnserve.v1.Classifier/ClassifyStream": answers.classify_stream,
    "inference.GRPCInferenceService/ModelStreamInfer": answers.infer_stream,
}


def main() -> int:
    """Runs one measurement and returns the exit status."""
    options = _parser().parse_args()
    try:
        generator = Generator(_opens(options), precise=options.rate > 0)
    except OSError as error:
        print(f"cannot connect to {options.address}: {error.strerror or error}", file=sys.stderr)
        return 1
    begin = _begin() if options.wait else time.perf_counter()
    measured = _measure(generator, options, begin)
    if options.samples:
        latencies = array.array("d", (at - due for at, due, status in measured.ended if status == OK))
        options.samples.write_bytes(latencies.tobytes())
    print(json.dumps(summary(measured, options.seconds)))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cnnserve.tools.load",
        description="Send gRPC or HTTP requests over bare sockets and print the result as JSON.",
    )
    parser.add_argument("address", help="HOST:PORT of the server")
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--method", help="method to call: package.Service/Method")
    target.add_argument("--http-path", help="send HTTP/1.1 requests to this path instead, one at a time a connection")
    parser.add_argument("--header", action="append", default=[], help="NAME: VALUE to send; may be repeated")
    parser.add_argument(
        "--token", action="store_true", help="send the token in the environment variable CNNSERVE_TOKEN"
    )
    parser.add_argument("--tls", action="store_true", help="use TLS")
    for name in ("--root-certificates", "--certificate", "--key"):
        parser.add_argument(name, type=Path, help="PEM file for TLS")
    parser.add_argument("--streaming", action="store_true", help="keep each call open: one message after the other")
    parser.add_argument(
        "--body", type=Path, action="append", required=True, help="file with a serialized request; may be repeated"
    )
    parser.add_argument(
        "--in-flight",
        type=int,
        default=1,
        help="number of open requests; with --rate their limit (default: %(default)s)",
    )
    parser.add_argument("--connections", type=int, default=1, help="number of connections (default: %(default)s)")
    parser.add_argument(
        "--rate", type=float, default=0.0, help="open loop: requests/s, Poisson (default: a closed loop)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the arrivals of --rate (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=5.0, help="seconds to measure (default: %(default)s)")
    parser.add_argument("--warm-up-s", type=float, default=1.0, help="seconds before that (default: %(default)s)")
    parser.add_argument(
        "--patience-s", type=float, default=30.0, help="seconds to wait for the last responses (default: %(default)s)"
    )
    parser.add_argument(
        "--server-pid",
        type=int,
        action="append",
        default=[],
        help="process whose CPU time to report; may be repeated (default: none)",
    )
    parser.add_argument("--samples", type=Path, help="file for the latencies in seconds, as doubles")
    parser.add_argument(
        "--wait",
        action="store_true",
        help="print `ready`, then begin at the time (time.perf_counter) on the first line of standard input",
    )
    return parser


def _begin() -> float:
    print("ready", flush=True)
    return float(sys.stdin.readline())


def _measure(generator: Generator, options: argparse.Namespace, begin: float) -> Measured:
    window = Window(begin, options.warm_up_s, options.seconds, options.server_pid)
    if options.rate:
        return generator.open(poisson(options.rate, options.seed), window, options.patience_s)
    return generator.closed(window)


def _opens(options: argparse.Namespace) -> list[Open]:
    bodies = [path.read_bytes() for path in options.body]
    encrypted = options.tls or options.root_certificates or options.certificate
    protocol = "http/1.1" if options.http_path else "h2"
    files = (options.root_certificates, options.certificate, options.key)
    tls = tls_context([protocol], *files) if encrypted else None
    wire = partial(Wire, options.address, tls)
    headers = [*options.header, *_token(options)]
    if options.http_path:
        http = partial(_http, wire, options.address, options.http_path, bodies, headers)
        return [http] * options.in_flight
    pairs = [(name.strip().lower(), value.strip()) for name, _, value in (line.partition(":") for line in headers)]
    count = min(options.connections, options.in_flight)
    shares = [options.in_flight // count + (index < options.in_flight % count) for index in range(count)]
    return [partial(_grpc, wire, options, bodies, share, pairs) for share in shares]


def _token(options: argparse.Namespace) -> list[str]:
    return [f"Authorization: Bearer {os.environ['CNNSERVE_TOKEN']}"] if options.token else []


def _http(wire: partial[Wire], address: str, path: str, bodies: Sequence[bytes], headers: list[str]) -> HttpConnection:
    return HttpConnection(wire(), address, path, bodies, headers)


def _grpc(
    wire: partial[Wire],
    options: argparse.Namespace,
    bodies: Sequence[bytes],
    in_flight: int,
    headers: list[tuple[str, str]],
) -> Connection:
    judge = _JUDGES.get(options.method)
    streaming = options.streaming
    return Connection(
        wire(), options.address, options.method, bodies, in_flight, streaming=streaming, judge=judge, headers=headers
    )


if __name__ == "__main__":
    sys.exit(main())
