"""What the log says about requests: access lines if they are wanted, audit lines, and the id in lines about an error.

It wraps the handlers of the method table, so that it is the same for every transport.
"""

import asyncio
import logging
import random
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from google.protobuf.message import Message

from cnnserve.access.scopes import Scope
from cnnserve.api import status
from cnnserve.api.methods import CallContext, Kind, Method, Quick, Record, Unary
from cnnserve.api.status import STATUS, Code
from cnnserve.logs import ACCESS, AUDIT, Fields

_access = logging.getLogger(ACCESS)
_audit = logging.getLogger(AUDIT)
# The fields of messages that name what a request is about.
_SUBJECTS = ("model", "model_name", "name")
_LONGEST = 200


class Observer:
    """Wraps handlers. `share`: how many of the requests get an access line, 0 to 1. Use on one event loop."""

    def __init__(self, share: float = 0.0, draw: Callable[[], float] = random.random) -> None:
        self._share = share
        self._draw = draw
        # Choices that were made for requests whose handler has not begun.
        self._made: deque[bool] = deque()

    def methods(self, methods: Iterable[Method]) -> list[Method]:
        """Returns the method table with observed unary handlers."""
        return [self._observed(method) if method.kind is Kind.UNARY else method for method in methods]

    def unary(
        self, name: str, handler: Unary, statuses: Mapping[type[Exception], Code] = STATUS, *, audited: bool = False
    ) -> Unary:
        """Returns a handler that does the same as `handler`, the handler of the method `name`, and is observed."""

        async def observed(request: Any, context: CallContext) -> Message | bytes:
            if not audited and not self._choose():
                try:
                    return await handler(request, context)
                except Exception as error:
                    _mark(error, request, context)
                    raise
            return await self._written(name, handler, statuses, request, context, audited=audited)

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

    def _quick(self, quick: Quick) -> Quick:
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

    async def _written(
        self,
        name: str,
        handler: Unary,
        statuses: Mapping[type[Exception], Code],
        request: Any,
        context: CallContext,
        *,
        audited: bool,
    ) -> Message | bytes:
        record, started_ns = Record(), time.monotonic_ns()
        outcome, size = Code.OK, 0
        try:
            response = await handler(request, replace(context, record=record))
            size = len(response) if isinstance(response, bytes) else response.ByteSize()
            return response
        except asyncio.CancelledError:
            outcome = Code.CANCELLED
            raise
        except Exception as error:
            outcome = statuses.get(type(error), Code.INTERNAL)
            _mark(error, request, context)
            raise
        finally:
            subject = _subject(request)
            if audited:
                what = f"{name} {subject}".rstrip()
                _audit.info("admin: who=%r what=%r from=%s outcome=%s", "-", what, context.client, outcome.name)
            if not audited or self._choose():
                _access.info(
                    Fields(
                        from_=context.client,
                        method=name,
                        model=record.model or subject,
                        version=record.version,
                        images=record.images,
                        status=outcome.name,
                        queue_us=record.queue_ns // 1000,
                        preprocess_us=record.preprocess_ns // 1000,
                        compute_us=record.compute_ns // 1000,
                        total_us=(time.monotonic_ns() - started_ns) // 1000,
                        request_bytes=request.ByteSize(),
                        response_bytes=size,
                        request_id=_request_id(request, context),
                    )
                )


def _mark(error: Exception, request: Any, context: CallContext) -> None:
    """Gives an error the id of its request, which the line about it has. Without one, it gets a random one."""
    status.mark(error, _request_id(request, context) or secrets.token_hex(8))


def _request_id(request: Any, context: CallContext) -> str:
    return str(getattr(request, "id", "") or context.request_id)[:_LONGEST]


def _subject(request: Any) -> str:
    names = (getattr(request, field, "") for field in _SUBJECTS)
    return next((name[:_LONGEST] for name in names if name), "")
