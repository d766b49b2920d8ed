"""What access log and traces cost a request, and that they cost nothing when they are off.

It times a handler that does nothing, bare and observed. Targets: when both are off, an observed handler takes at most
0.5 us longer, and requests that are answered by their bytes (see `known_requests`) are not observed at all.

    python bench/observing.py --rounds 10
"""

import argparse
import asyncio
import importlib
import logging
import sys
import time
from typing import Any

import harness
from harness import median

from cnnserve.access.scopes import Scope
from cnnserve.api.methods import CallContext, Method, Unary
from cnnserve.api.observing import Observer
from cnnserve.logs import ACCESS
from cnnserve.wire import open_inference_pb2 as pb

OFF_US = 0.5
CALLS = 5000
NAME = "inference.GRPCInferenceService/ModelInfer"


async def _handler(_: object, __: CallContext) -> pb.ModelInferResponse:
    return _RESPONSE


def _quick(*_: object) -> None:
    """Knows no request."""


_REQUEST, _RESPONSE, _CONTEXT = pb.ModelInferRequest(model_name="m"), pb.ModelInferResponse(), CallContext()


def main() -> int:
    """Runs the benchmark and returns the exit status: 0 if the targets are reached."""
    parser = argparse.ArgumentParser(description="Measure what access log and traces cost.")
    harness.add_rounds(parser, 10)
    options = parser.parse_args()
    handlers = _handlers()
    times: dict[str, list[float]] = {name: [] for name in handlers}
    for number in range(options.rounds):
        for name in harness.in_turn(handlers, number):
            times[name].append(asyncio.run(_microseconds(handlers[name])))
    summary = {name: min(found) for name, found in times.items()}
    rows = [[name, f"{median(times[name]):.2f}", f"{best:.2f}"] for name, best in summary.items()]
    print(harness.table(["handler", "median us", "best us"], rows))
    more = summary["observed, off"] - summary["bare"]
    method = Method(NAME, pb.ModelInferRequest, pb.ModelInferResponse, _handler, Scope.INFER, quick=_quick)
    (observed,) = Observer().methods([method])
    reached = {
        f"off costs at most {OFF_US} us: {more:.2f}": more <= OFF_US,
        "known requests are not observed when both are off": observed.quick is _quick,
    }
    for text, passed in reached.items():
        print(f"  {harness.verdict(passed=passed):<6}  {text}")
    harness.write_result("observing", {"settings": vars(options), "us": summary})
    return 0 if all(reached.values()) else 1


def _handlers() -> dict[str, Unary]:
    # Lines are made, and dropped instead of written.
    logging.getLogger(ACCESS).setLevel(logging.INFO)
    logging.getLogger(ACCESS).addHandler(logging.NullHandler())
    logging.getLogger(ACCESS).propagate = False
    handlers: dict[str, Unary] = {
        "bare": _handler,
        "observed, off": Observer().unary(NAME, _handler),
        "observed, access log": Observer(1.0).unary(NAME, _handler),
        "observed, 1 % access log": Observer(0.01).unary(NAME, _handler),
    }
    try:
        tracing: Any = importlib.import_module("cnnserve.api.tracing")
        export: Any = importlib.import_module("opentelemetry.sdk.trace.export.in_memory_span_exporter")
    except ModuleNotFoundError:
        print("traces are left out, because OpenTelemetry is not installed (extra otel)")
    else:
        tracer = tracing.Tracing(export.InMemorySpanExporter())
        handlers["observed, traces"] = Observer(tracing=tracer).unary(NAME, _handler)
    return handlers


async def _microseconds(handler: Unary) -> float:
    started = time.perf_counter()
    for _ in range(CALLS):
        await handler(_REQUEST, _CONTEXT)
    return (time.perf_counter() - started) / CALLS * 1e6


if __name__ == "__main__":
    sys.exit(main())
