"""What the log says about requests: access lines if they are wanted, audit lines, and the id in lines about an error.

It wraps the handlers of the method table, so that it is the same for every transport.
"""

import asyncio
import contextlib
import logging
import random
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Protocol

from google.protobuf.message import Message

from cnnserve.access.scopes import Scope
from cnnserve.api import status
from cnnserve.api.methods import CallContext, Kind, Method, Quick, Record, Unary
from cnnserve.api.status import STATUS, Code
from cnnserve.logs import ACCESS, AUDIT, Fields
from cnnserve.process.threads import on_thread

_access = logging.getLogger(ACCESS)
_audit = logging.getLogger(AUDIT)
# The fields of messages that name what a request is about.
_SUBJECTS = ("model", "model_name", "name")
_LONGEST = 200
_CLOSE_S = 2.0


class Trace(Protocol):
    """The trace of one request; `trace_id` is empty if it is not recorded."""

    trace_id: str

    def end(self, record: Record, client: str, code: Code, error: BaseException | None) -> None:
        """Ends the trace with what the handler has recorded and the outcome."""


class Tracing(Protocol):
    """What makes traces: `tracing.Tracing`, which is imported only if the server traces."""

    def begin(self, method: str, context: CallContext, started_ns: int) -> Trace:
        """Begins the trace of a request."""

    def close(self) -> None:
        """Hands over what was not exported yet. Blocks."""


class Observer:
    """Wraps handlers. `share`: how many of the requests get an access line, 0 to 1. Use on one event loop."""

    def __init__(
        self, share: float = 0.0, draw: Callable[[], float] = random.random, tracing: Tracing | None = None
    ) -> None:
        self._share = share
        self._draw = draw
        self._tracing = tracing
        # Choices that were made for requests whose handler has not begun.
        self._made: deque[bool] = deque()

    async def close(self) -> None:
        """Hands over the traces that were not exported yet, for 2 s at most."""
        if self._tracing is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(on_thread(self._tracing.close, "traces"), _CLOSE_S)

    def methods(self, methods: Iterable[Method]) -> list[Method]:
        """Returns the method table with observed unary handlers."""
        return [self._observed(method) if method.kind is Kind.UNARY else method for method in methods]

    def unary(
        self, name: str, handler: Unary, statuses: Mapping[type[Exception], Code] = STATUS, *, audited: bool = False
    ) -> Unary:
        """Returns a handler that does the same as `handler`, the handler of the method `name`, and is observed."""

        async def observed(request: Any, context: CallContext) -> Message | bytes:
            chosen = self._choose()
            if not (chosen or audited or self._tracing):
                try:
                    return await handler(request, context)
                except Exception as error:
                    _mark(error, request, context)
                    raise
            seen = _Seen(name, request, context, self._tracing)
            try:
                seen.response = await handler(request, replace(context, record=seen.record))
                return seen.response
            except asyncio.CancelledError as error:
                seen.failed(error, Code.CANCELLED)
                raise
            except Exception as error:
                seen.failed(error, statuses.get(type(error), Code.INTERNAL))
                _mark(error, request, context, seen.trace_id)
                raise
            finally:
                seen.end(chosen=chosen, audited=audited)

        return observed

    def _observed(self, method: Method) -> Method:
        if method.scope is Scope.OPEN:
            # Probes ask for health every few seconds.
            return method
        handler: Any = method.handler
        audited = method.scope is Scope.ADMIN
        return replace(
            method,
            handler=self.unary(method.name, handler, method.statuses, audited=audited),
            quick=method.quick and self._quick(method.quick),
        )

    def _quick(self, quick: Quick) -> Quick | None:
        if self._tracing is not None:
            # The context of a trace is in the call's metadata, which such requests do not look at.
            return None
        if not self._share:
            return quick

        def observed(data: bytes, deadline_ns: int | None, respond: Any) -> Callable[[], None] | None:
            chosen = self._draw() < self._share
            end_early = None if chosen else quick(data, deadline_ns, respond)
            if end_early is None:
                # Its handler comes next, perhaps after that of another request, whose choice was as random.
                self._made.append(chosen)
            return end_early

        return observed

    def _choose(self) -> bool:
        if not self._share:
            return False
        return self._made.popleft() if self._made else self._draw() < self._share


class _Seen:
    """What is known of one request, for its trace and its lines."""

    def __init__(self, name: str, request: Any, context: CallContext, tracing: Tracing | None) -> None:
        self.record = Record()
        self.response: Message | bytes = b""
        self._name = name
        self._request = request
        self._context = context
        self._code = Code.OK
        self._error: BaseException | None = None
        self._started_ns = time.monotonic_ns()
        self._trace = None if tracing is None else tracing.begin(name, context, self._started_ns)

    @property
    def trace_id(self) -> str:
        """The id of the trace, "" if there is none."""
        return "" if self._trace is None else self._trace.trace_id

    def failed(self, error: BaseException, code: Code) -> None:
        """Notes the outcome of a request that has no response."""
        self._error, self._code = error, code

    def end(self, *, chosen: bool, audited: bool) -> None:
        """Ends the trace and writes the lines."""
        client = self._context.client
        if self._trace is not None:
            self._trace.end(self.record, client, self._code, self._error)
        if audited:
            who = self._context.who or "-"
            what = f"{self._name} {_subject(self._request)}".rstrip()
            _audit.info("admin: who=%r what=%r from=%s outcome=%s", who, what, client, self._code.name)
        if chosen:
            _access.info(self._fields())

    def _fields(self) -> Fields:
        record, response = self.record, self.response
        fields = Fields(
            who=self._context.who or "-",
            from_=self._context.client,
            method=self._name,
            model=record.model or _subject(self._request),
            version=record.version,
            images=record.images,
            status=self._code.name,
            queue_us=record.queue_ns // 1000,
            preprocess_us=record.preprocess_ns // 1000,
            compute_us=record.compute_ns // 1000,
            total_us=(time.monotonic_ns() - self._started_ns) // 1000,
            request_bytes=self._request.ByteSize(),
            response_bytes=len(response) if isinstance(response, bytes) else response.ByteSize(),
            request_id=_request_id(self._request, self._context),
        )
        if self.trace_id:
            fields["trace_id"] = self.trace_id
        return fields


def _mark(error: Exception, request: Any, context: CallContext, trace_id: str = "") -> None:
    """Gives an error the ids of its request, which the line about it has. Without an id, it gets a random one."""
    status.mark(error, _request_id(request, context) or secrets.token_hex(8), trace_id)


def _request_id(request: Any, context: CallContext) -> str:
    return str(getattr(request, "id", "") or context.request_id)[:_LONGEST]


def _subject(request: Any) -> str:
    names = (getattr(request, field, "") for field in _SUBJECTS)
    return next((name[:_LONGEST] for name in names if name), "")
