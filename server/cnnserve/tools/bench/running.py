"""One run of bench: the server, the messages, the loads in turn, and what is kept of them."""

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import cnnserve
from cnnserve.process.cpu import cpu_budget
from cnnserve.tools import outputs
from cnnserve_client.client import Client
from cnnserve_client.commands.console import complain, say
from cnnserve_client.commands.flags import connect, token_of
from cnnserve_client.errors import InvalidInputError, UnavailableError
from cnnserve_client.limits import newest, ready_versions
from cnnserve_client.results import VersionInfo

from . import messages, plain, report
from .cells import Cell, Load, best
from .engine import Engine, LoadFailed, Plan
from .messages import Messages
from .serving import Running, serving
from .target import Target, checked_address, http_address, is_here

_PLAIN_S = 1.0


def run(args: argparse.Namespace) -> int:
    """Makes one run and returns the exit status: 1 if some load had no successful response, 130 after Ctrl-C."""
    outputs.check(args.plot, "--plot")
    tell: Callable[[str], None] = (lambda text: say(text, sys.stderr)) if args.json else say
    with _server(args) as running:
        target, sent, version = _prepared(args, running)
        limit = _plain(args, target.model, version)
        about = _about(args, target, sent, version)
        tell(f"{about['title']}: {sent.about}")
        cells, status = _loads(args, target, sent, tell)
    for line in report.summary(cells, limit):
        tell(line)
    if args.json:
        say(json.dumps(report.as_json(about, cells, limit), indent=1))
    if args.plot:
        _draw(args.plot, about["title"], cells, limit)
    return status or int(not all(cell.requests for cell in cells))


@contextlib.contextmanager
def _server(args: argparse.Namespace) -> Iterator[Running]:
    if not args.starts:
        yield Running(checked_address(args.address, "--address"), http_address(args), ())
        return
    with serving(args.repository, args.model) as running:
        args.address = running.grpc
        yield running


def _prepared(args: argparse.Namespace, running: Running) -> tuple[Target, Messages, VersionInfo]:
    """Returns the target, the messages and the version. One request is sent first, so that errors have their text."""
    with connect(args, retries=0) as client:
        model = args.model or _only_model(client, args.address)
        version = newest(ready_versions(client.get_model(model), args.version))
        # So that a version that comes during the run does not take its place.
        number = version.version
        if args.images:
            files = messages.readable(client, args.images, model, number, complain)
            if args.batch > 1:
                client.classify([files[place % len(files)] for place in range(args.batch)], model=model, version=number)
            sent = messages.images(files, model, number, args.batch, args.transport)
        else:
            sent = messages.tensors(version, model, number, args.batch, args.transport)
            client.infer(messages.sample(version, args.batch), model=model, version=number)
    files_of_tls = (args.root_certificates, args.certificate, args.key)
    target = Target(running.grpc, running.http, model, number, token_of(args), args.tls, files_of_tls, running.pids)
    if sent.http_path:
        target.check_http(sent, args.timeout_s)
    return target, sent, version


def _only_model(client: Client, address: str) -> str:
    ready = [model.name for model in client.list_models() if model.ready]
    if not ready:
        raise UnavailableError(f"{address} has no READY model: run `cnnserve models` to see why")
    if len(ready) > 1:
        raise InvalidInputError(f"MODEL is missing: {address} serves {', '.join(ready)}; choose one")
    return ready[0]


def _plain(args: argparse.Namespace, model: str, version: VersionInfo) -> Mapping[int, float] | str:
    """Returns images/s of plain ONNX Runtime by batch size, measured before the load, or why they are unknown."""
    if args.no_plain:
        return "--no-plain"
    if args.repository is None:
        return "name the server's model repository with --repository, if both are on this machine"
    if not is_here(args.address):
        return f"{args.address} is another machine"
    if elsewhere := [name for name in version.placement if name != "CPUExecutionProvider"]:
        return f"the server runs it with {', '.join(elsewhere)}"
    file = plain.model_file(args.repository, model, version.version)
    if file is None:
        return f"{args.repository / model / version.version} has no model file"
    return plain.measure(file, _PLAIN_S)


def _about(args: argparse.Namespace, target: Target, sent: Messages, version: VersionInfo) -> dict[str, Any]:
    return {
        "title": f"{target.model} version {version.version} over {args.transport}",
        "model": target.model,
        "version": version.version,
        "transport": args.transport,
        "sent": sent.about,
        "images_per_request": sent.images,
        "seconds": args.seconds,
        "seed": args.seed,
        "cnnserve": cnnserve.__version__,
        "cores": cpu_budget(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _loads(
    args: argparse.Namespace, target: Target, sent: Messages, tell: Callable[[str], None]
) -> tuple[list[Cell], int]:
    """Runs the loads in turn. Returns their cells and the exit status: what was measured is kept."""
    plan = Plan(args.seconds, args.processes, args.connections, args.seed, args.timeout_s)
    cells: list[Cell] = []
    tell(report.head())
    try:
        with Engine(target, sent, plan, cpu_budget()) as engine:
            for text in (*map(str, args.concurrency), *args.rate):
                is_closed = len(cells) < len(args.concurrency)
                load = Load(concurrency=int(text)) if is_closed else Load(rate=_rate(text, cells))
                cells.append(engine.run(load))
                tell(report.row(cells[-1]))
    except LoadFailed as error:
        complain(f"the load ended early: {error}")
        return cells, 1
    except KeyboardInterrupt:
        complain("interrupted: what follows is incomplete")
        return cells, 130
    return cells, 0


def _rate(text: str, cells: list[Cell]) -> float:
    if not text.endswith("%"):
        return float(text)
    top = best([cell for cell in cells if cell.load.concurrency])
    if top is None or not top.requests_per_s:
        raise LoadFailed(f"--rate {text} is a share of the best closed loop, and there is none")
    return max(0.01, top.requests_per_s * float(text[:-1]) / 100)


def _draw(path: Path, title: str, cells: list[Cell], limit: Mapping[int, float] | str) -> None:
    from . import plot  # noqa: PLC0415 - imports matplotlib

    try:
        plot.write(path, title, cells, limit)
    except OSError as error:
        raise InvalidInputError(f"--plot {path}: {error.strerror}") from error
