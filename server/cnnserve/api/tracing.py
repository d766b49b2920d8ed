"""Traces of requests with OpenTelemetry. Only this module imports it, and only if the server traces.

Each request has a span of the kind SERVER, with spans for the queue, for reading its images and for its run. The times
are those of the statistics. A batch has a span of its own, because it belongs to no single request: the spans of the
batch and of its requests have links to each other.
"""

import asyncio
import os
import time
from importlib.metadata import entry_points
from typing import Any
from urllib.parse import unquote

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import Link, Span, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

import cnnserve
from cnnserve.api.methods import CallContext, Record
from cnnserve.api.status import Code
from cnnserve.config.settings import ConfigError

# The names are those of the semantic conventions 1.44. The next version calls this one rpc.status_code.
_STATUS = "rpc.response.status_code"
# Only these codes are errors of the server; the others are errors of its clients.
_ERRORS = frozenset(
    (
        Code.UNKNOWN,
        Code.DEADLINE_EXCEEDED,
        Code.UNIMPLEMENTED,
        Code.INTERNAL,
        Code.UNAVAILABLE,
        Code.DATA_LOSS,
    )
)
# All requests of a batch have ended this many seconds after the first.
_BATCH_S = 1.0
_FLUSH_MS = 2000
_PROTOCOLS = {"grpc": "otlp_proto_grpc", "http/protobuf": "otlp_proto_http"}
_Key = tuple[str, str, int]
_PROPAGATOR = TraceContextTextMapPropagator()


class Trace:
    """The trace of one request. `trace_id` is empty if it is not recorded."""

    def __init__(self, tracing: "Tracing", span: Span) -> None:
        self._tracing = tracing
        self._span = span
        self.trace_id = trace.format_trace_id(span.get_span_context().trace_id) if span.is_recording() else ""

    def end(self, record: Record, client: str, code: Code, error: BaseException | None) -> None:
        """Ends the request's span, with what the handler has recorded and the outcome."""
        if self._span.is_recording():
            self._tracing.describe(self._span, record, client, code, error)
        self._span.end(self._tracing.epoch_ns(time.monotonic_ns()))


class Tracing:
    """Makes spans and hands them to an exporter on a thread. Use on one event loop."""

    def __init__(self, exporter: SpanExporter) -> None:
        named = SERVICE_NAME in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "") or "OTEL_SERVICE_NAME" in os.environ
        resource = Resource.create({} if named else {SERVICE_NAME: "cnnserve"})
        processor = BatchSpanProcessor(exporter)
        self._provider = TracerProvider(resource=resource)
        # The span of a batch is wanted if one of its requests is, so the sampler must not leave it out.
        batches = TracerProvider(ALWAYS_ON, resource)
        for provider in (self._provider, batches):
            provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("cnnserve", cnnserve.__version__)
        self._batch_tracer = batches.get_tracer("cnnserve", cnnserve.__version__)
        # By model, version and start: the span and its end in ns since 1970.
        self._batches: dict[_Key, tuple[Span, int]] = {}
        self._offset_ns = time.time_ns() - time.monotonic_ns()

    def epoch_ns(self, monotonic_ns: int) -> int:
        """Returns a time of the monotonic clock in ns since 1970."""
        return monotonic_ns + self._offset_ns

    def begin(self, method: str, context: CallContext, started_ns: int) -> Trace:
        """Begins the trace of a request, or goes on with that of its client."""
        parent = None
        if context.traceparent:
            carrier = {"traceparent": context.traceparent, "tracestate": context.tracestate}
            parent = _PROPAGATOR.extract(carrier, Context())
        start = self.epoch_ns(started_ns)
        return Trace(self, self._tracer.start_span(method, parent or Context(), SpanKind.SERVER, start_time=start))

    def describe(self, span: Span, record: Record, client: str, code: Code, error: BaseException | None) -> None:
        """Gives a request's span its attributes, its status, its parts, and the links to its batch."""
        span.set_attributes(
            {
                "rpc.system.name": "grpc",
                "rpc.method": getattr(span, "name", ""),
                _STATUS: code.name,
                **_peer(client),
                "cnnserve.model": record.model,
                "cnnserve.version": record.version,
                "cnnserve.images": record.images,
            }
        )
        if error is not None:
            span.set_attribute("error.type", code.name)
        if code in _ERRORS:
            span.set_status(StatusCode.ERROR)
        if record.run_ns:
            self._add_parts(span, record)
            self._link(span, record)

    def close(self) -> None:
        """Hands over what was not exported yet. Blocks for 2 s at most."""
        for key in list(self._batches):
            self._end_batch(key)
        self._provider.force_flush(_FLUSH_MS)

    def _add_parts(self, span: Span, record: Record) -> None:
        inside = trace.set_span_in_context(span, Context())
        queued_ns = record.run_ns - record.queue_ns
        parts = [
            ("decode", queued_ns - record.preprocess_ns, record.preprocess_ns),
            ("queue", queued_ns, record.queue_ns),
            ("run", record.run_ns, record.compute_ns),
        ]
        for name, start_ns, took_ns in parts:
            if took_ns or name != "decode":
                part = self._tracer.start_span(name, inside, start_time=self.epoch_ns(start_ns))
                part.end(self.epoch_ns(start_ns + took_ns))

    def _link(self, span: Span, record: Record) -> None:
        key = (record.model, record.version, record.run_ns)
        if key in self._batches:
            batch, _ = self._batches[key]
            batch.add_link(span.get_span_context())
        else:
            batch = self._batch_tracer.start_span(
                "batch",
                Context(),
                attributes={
                    "cnnserve.model": record.model,
                    "cnnserve.version": record.version,
                    "cnnserve.batch_size": record.batch_size,
                },
                links=[Link(span.get_span_context())],
                start_time=self.epoch_ns(record.run_ns),
            )
            self._batches[key] = batch, self.epoch_ns(record.run_ns + record.compute_ns)
            asyncio.get_running_loop().call_later(_BATCH_S, self._end_batch, key)
        span.add_link(batch.get_span_context())

    def _end_batch(self, key: _Key) -> None:
        batch, end = self._batches.pop(key, (None, 0))
        if batch is not None:
            batch.end(end)


def _peer(client: str) -> dict[str, str | int]:
    kind, _, rest = unquote(client).partition(":")
    address, _, port = rest.rpartition(":")
    if kind not in ("ipv4", "ipv6") or not port.isdecimal():
        return {}
    return {"network.peer.address": address.strip("[]"), "network.peer.port": int(port)}


def start() -> Tracing:
    """Returns the tracing for which OpenTelemetry's variables ask. Raises `ConfigError` for an unknown exporter."""
    wanted = os.environ.get("OTEL_TRACES_EXPORTER", "otlp")
    protocol = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    name = _PROTOCOLS.get(protocol or "http/protobuf", "") if wanted == "otlp" else wanted
    found: Any = {point.name: point for point in entry_points(group="opentelemetry_traces_exporter")}
    if name not in found:
        raise ConfigError(
            f"tracing needs the exporter {name or protocol!r} (OTEL_TRACES_EXPORTER, OTEL_EXPORTER_OTLP_PROTOCOL), but "
            f"installed are {', '.join(sorted(found)) or 'none'}; install its package, or correct the variable"
        )
    return Tracing(found[name].load()())
