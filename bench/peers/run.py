"""cnnserve beside plain ONNX Runtime, a server that runs no model, and the servers that a user may choose instead.

All get the same models, inputs, threads and load. Each round starts every server, waits for its first right response
(plain ONNX Runtime says what is right), loads it and ends it; every second round goes the other way round. The results
are medians over the rounds. Peers live in environments of their own in `.venv-peers`, which `--install` makes.

    python bench/peers/run.py --install
    python bench/peers/run.py --models lenet5,resnet18 --peers mosec,litserve --rounds 2 --seconds 3 --in-flight 1,16

`make bench` runs it with every peer, in a network that has no interface but loopback.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import harness
import machine

import cnnserve
from peers import environments, summary
from peers.catalogue import PEERS
from peers.inputs import Inputs, prepare
from peers.measuring import Loads, measure_empty, measure_own, measure_peer, measure_plain
from peers.processes import NotRun
from peers.report import HEAD, cells
from peers.summary import EMPTY, OWN, PLAIN

MODELS = ("lenet5", "resnet18")
# A run of LeNet-5 takes microseconds: too few for a second thread.
THREADS = {"lenet5": 1}


def main() -> int:
    """Runs the benchmark and returns the exit status: 0 if cnnserve was measured."""
    options = _options()
    if options.install:
        return _install(options.peers)
    results: dict[str, dict[str, list[Any]]] = {}
    not_run: dict[str, dict[str, str]] = {}
    about: dict[str, Any] = {}
    with harness.exported(options.models, options.repository and options.repository.resolve()) as repository:
        for model in options.models:
            threads = THREADS.get(model, machine.cores())
            inputs = prepare(repository, model, threads)
            loads = Loads(options.in_flight, options.seconds, threads)
            about[model] = {"threads": threads, "decode_ms": inputs.decode_ms, "images": len(inputs.images)}
            results[model], not_run[model] = _rounds(_sides(options, inputs, loads, repository), options.rounds)
            _print(model, results[model], not_run[model], options.in_flight)
    data = {
        "settings": {"rounds": options.rounds, "seconds": options.seconds, "in_flight": options.in_flight},
        "servers": {OWN: {"cnnserve": cnnserve.__version__}} | _versions(options.peers),
        "models": {
            model: {"about": about[model], "not_run": not_run[model], "results": results[model]} for model in results
        },
    }
    harness.write_result("peers", data)
    return 0 if all(results[model].get(OWN) for model in results) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare cnnserve with other servers.")
    harness.add_models(parser, MODELS)
    names = ",".join(PEERS)
    text = f"peers to measure, separated by commas; empty for none (default: {names})"
    parser.add_argument("--peers", type=_names, default=list(PEERS), help=text)
    harness.add_rounds(parser, 2, 3.0)
    text = "requests in flight of each load, separated by commas (default: 1,16)"
    parser.add_argument("--in-flight", type=lambda value: [*map(int, value.split(","))], default=[1, 16], help=text)
    harness.add_repository(parser)
    parser.add_argument("--install", action="store_true", help="only make the environments of the peers")
    return parser.parse_args()


def _names(value: str) -> list[str]:
    names = [name for name in value.split(",") if name]
    if unknown := [name for name in names if name not in PEERS]:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: the peers are {', '.join(PEERS)}")
    return names


def _install(names: Sequence[str]) -> int:
    for name in names:
        print(f"{name}: {environments.install(PEERS[name]) or 'installed'}", flush=True)
    return 0


def _sides(
    options: argparse.Namespace, inputs: Inputs, loads: Loads, repository: Path
) -> dict[str, Callable[[], dict[str, Any]]]:
    """Returns for each server the function that measures it once."""
    peers = [PEERS[name] for name in options.peers]
    return {
        PLAIN: partial(measure_plain, inputs, loads),
        OWN: partial(measure_own, inputs, loads, repository),
        **{peer.title: partial(measure_peer, peer, inputs, loads) for peer in peers},
        EMPTY: partial(measure_empty, inputs, loads),
    }


def _rounds(
    sides: Mapping[str, Callable[[], dict[str, Any]]], count: int
) -> tuple[dict[str, list[Any]], dict[str, str]]:
    """Returns the results of each server in each round, and why the other servers have none."""
    results: dict[str, list[Any]] = {name: [] for name in sides}
    not_run: dict[str, str] = {}
    for number in range(count):
        for name in harness.in_turn(sides, number):
            if name in not_run:
                continue
            print(f"round {number + 1}: {name} ...", file=sys.stderr, flush=True)
            try:
                results[name].append(sides[name]())
            except NotRun as reason:
                not_run[name] = str(reason)
    return {name: rounds for name, rounds in results.items() if rounds and name not in not_run}, not_run


def _versions(names: Sequence[str]) -> dict[str, dict[str, str]]:
    peers = [PEERS[name] for name in names]
    return {peer.title: environments.versions(peer) for peer in peers if not environments.missing(peer)}


def _print(
    model: str, results: Mapping[str, Sequence[Any]], not_run: Mapping[str, str], in_flight: Sequence[int]
) -> None:
    for kind in ("tensor", "image"):
        for count in in_flight:
            if found := summary.rows(results, kind, count):
                print(f"\n{model}, {kind}s, {count} in flight")
                print(harness.table(HEAD, [cells(row) for row in found]))
    for server, numbers in summary.servers(results).items():
        start = f"{numbers['start_s']:.2f} s to the first right response, " if "start_s" in numbers else ""
        print(f"{server}: {start}{numbers['memory_mib']:.0f} MiB in {numbers['processes']:.0f} processes")
    for server, reason in not_run.items():
        print(f"{server}: not run: {reason}")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
