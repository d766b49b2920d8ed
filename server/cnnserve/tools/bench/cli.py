"""The command `cnnserve bench`.

Exit status: 0 success; 1 no response at some load, or an error, named on standard error; 2 wrong usage; 130 interrupted
with Ctrl-C.
"""

import argparse
from pathlib import Path

from cnnserve_client.commands.flags import client_parser
from cnnserve_client.target import DEFAULT_ADDRESS

_TRANSPORTS = ("grpc", "stream", "http")
_PLOTS = (".svg", ".png", ".html")
_MOST_PROCESSES = 100


def bench(argv: list[str]) -> int:
    """Loads a server and prints what it bears. Returns the exit status."""
    parser = bench_parser()
    # So that a given address is known from the default one.
    args = parser.parse_args(argv, argparse.Namespace(address=""))
    args.starts = args.repository is not None and not args.address
    args.address = args.address or DEFAULT_ADDRESS
    if mistake := _mistake(args):
        parser.error(mistake)
    if args.plot:
        # Before the load rather than after it: matplotlib may be missing.
        from . import plot  # noqa: F401
    from cnnserve_client.commands.console import guard

    from .running import run

    return guard(lambda: run(args))


def _mistake(args: argparse.Namespace) -> str:
    """Returns which flags do not fit together, empty if all do."""
    if args.plot and args.plot.suffix not in _PLOTS:
        return f"--plot {args.plot}: the name must end in {', '.join(_PLOTS)}"
    if args.images and args.batch > 1 and args.transport == "http":
        return "--images over HTTP has one image in each request, not --batch; use --transport grpc"
    if not (args.concurrency or args.rate):
        return "--concurrency 0 and --rate 0 leave no load; give one of them"
    if not args.concurrency and any(rate.endswith("%") for rate in args.rate):
        return "--concurrency 0 leaves no closed loop of which --rate could be a percentage; use requests/s"
    if args.starts and (args.http_address or args.tls or args.root_certificates or args.certificate):
        return "--repository starts a server without TLS on free ports; name a running server with --address"
    return ""


def bench_parser() -> argparse.ArgumentParser:
    """Returns the parser of `cnnserve bench`."""
    parser = client_parser("bench", "Put load on a server and measure throughput and latency.", timeout_s=30.0)
    parser.add_argument(
        "model", metavar="MODEL", nargs="?", default="", help="name of the model (default: the only one)"
    )
    parser.add_argument("--version", default="", help="number or label of the version (default: the newest READY one)")
    parser.add_argument(
        "--repository",
        type=Path,
        metavar="DIR",
        help="start a server of this model repository on this machine for the time of the run; with --address: the "
        "model repository of that server, for the share of plain ONNX Runtime",
    )
    parser.add_argument(
        "--http-address", metavar="HOST:PORT", help="address of the HTTP port (default: port 8000 of the host)"
    )
    parser.add_argument("--transport", choices=_TRANSPORTS, default="grpc", help="how to send (default: %(default)s)")
    parser.add_argument(
        "--images",
        action="append",
        metavar="PATH",
        help="send image files instead of random tensors: a file, a folder or a pattern; may be repeated",
    )
    parser.add_argument(
        "--batch", type=_whole, default=1, metavar="N", help="images of each request (default: %(default)s)"
    )
    parser.add_argument(
        "--concurrency",
        type=_concurrencies,
        default=[1, 4, 16],
        metavar="N,N",
        help="requests in flight of each closed loop; 0 for none (default: 1,4,16)",
    )
    parser.add_argument(
        "--rate",
        type=_rates,
        default=["50%", "80%"],
        metavar="R,R",
        help="requests/s of each open loop, or a percentage of the best closed loop; 0 for none (default: 50%%,80%%)",
    )
    parser.add_argument(
        "--seconds", type=_seconds, default=10.0, metavar="S", help="seconds for each load (default: 10)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of the arrivals of open loops (default: 0)"
    )
    parser.add_argument(
        "--processes",
        type=_processes,
        default=0,
        metavar="N",
        help="number of load processes (default: as many as are needed)",
    )
    parser.add_argument(
        "--connections", type=_whole, default=1, metavar="N", help="gRPC connections of each load process (default: 1)"
    )
    parser.add_argument("--no-plain", action="store_true", help="do not measure plain ONNX Runtime")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw a picture: FILE.svg, FILE.png or FILE.html")
    return parser


def _whole(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) <= 10_000:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 to 10000")
    return int(text)


def _processes(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) <= _MOST_PROCESSES:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 to {_MOST_PROCESSES}")
    return int(text)


def _concurrencies(text: str) -> list[int]:
    return [] if text == "0" else [_whole(part) for part in text.split(",")]


def _rates(text: str) -> list[str]:
    if text == "0":
        return []
    for part in text.split(","):
        try:
            is_rate = 0 < float(part.removesuffix("%")) <= 1e6
        except ValueError:
            is_rate = False
        if not is_rate:
            raise argparse.ArgumentTypeError(
                f"{part!r} is no rate: use requests/s such as 50, or a percentage such as 80%"
            )
    return text.split(",")


def _seconds(text: str) -> float:
    try:
        if 0.1 <= float(text) <= 86400:
            return float(text)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is no time: use seconds from 0.1 to 86400")
