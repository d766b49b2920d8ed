"""Runs one measurement and prints the result as one line of JSON.

For example:

    python -m cnnserve.tools.load 127.0.0.1:8001 --method inference.GRPCInferenceService/ModelInfer --body request.bin
"""

import argparse
import json
import sys
from pathlib import Path

from .generator import run
from .http1 import HttpConnection
from .http2 import Connection


def _connections(options: argparse.Namespace) -> list[Connection] | list[HttpConnection]:
    bodies = [path.read_bytes() for path in options.body]
    if options.http_path:
        headers = "".join(f"{header}\r\n" for header in options.header)
        count = range(options.in_flight)
        return [HttpConnection(options.address, options.http_path, bodies[0], headers) for _ in count]
    count = min(options.connections, options.in_flight)
    shares = [options.in_flight // count + (index < options.in_flight % count) for index in range(count)]
    method, streaming = options.method, options.streaming
    return [Connection(options.address, method, bodies, share, streaming=streaming) for share in shares]


def main() -> int:
    """Runs one measurement and returns the exit status."""
    parser = argparse.ArgumentParser(description="Send gRPC requests over bare sockets and print the result as JSON.")
    parser.add_argument("address", help="HOST:PORT of the server")
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--method", help="method to call: package.Service/Method")
    target.add_argument("--http-path", help="send HTTP/1.1 requests to this path instead, one at a time a connection")
    parser.add_argument("--header", action="append", default=[], help="NAME: VALUE of HTTP requests; may be repeated")
    parser.add_argument("--streaming", action="store_true", help="keep each call open: one message after the other")
    parser.add_argument(
        "--body", type=Path, action="append", required=True, help="file with a serialized request; may be repeated"
    )
    parser.add_argument("--in-flight", type=int, default=1, help="number of open requests (default: %(default)s)")
    parser.add_argument("--connections", type=int, default=1, help="number of connections (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=5.0, help="seconds to measure (default: %(default)s)")
    parser.add_argument("--warm-up-s", type=float, default=1.0, help="seconds before that (default: %(default)s)")
    parser.add_argument("--server-pid", type=int, default=0, help="process whose CPU time to report (default: none)")
    options = parser.parse_args()
    connections = _connections(options)
    print(json.dumps(run(connections, options.warm_up_s, options.seconds, options.server_pid)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
