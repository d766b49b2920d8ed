"""Which model's deployment answers a call, and how answers of several become one. Imports neither ray nor grpc.

The ingress of an application with several deployments uses it. It holds no model. A call that names a model goes to the
deployment of this model; calls about the server go to all deployments, or to any.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError, Message
from grpc_health.v1 import health_pb2

from cnnserve.api import answer_size, status, streams
from cnnserve.api.field_count import check_fields
from cnnserve.api.health import SERVICE as HEALTH
from cnnserve.api.methods import CLASSIFIER, INFERENCE
from cnnserve.api.open_inference import STREAM_ERRORS
from cnnserve.errors import InvalidInput, ModelNotFound, ModelNotReady, ServingError
from cnnserve.transports.ray_calls import Reply, Sent, StreamEnded, limited, reply_to, timeout_s, with_timeout
from cnnserve.wire import classifier_pb2 as c
from cnnserve.wire import open_inference_pb2 as o

CLASSIFY_STREAM, INFER_STREAM = f"{CLASSIFIER}/ClassifyStream", f"{INFERENCE}/ModelStreamInfer"
_WATCH_S = 1.0
# Statuses of clients that may not call.
_REFUSED = (status.Code.UNAUTHENTICATED, status.Code.PERMISSION_DENIED, status.Code.RESOURCE_EXHAUSTED)
_LISTED = 10

# Sends the bytes of a request to the deployment of a model; "": to any.
Forward = Callable[[str, str, bytes, Sent], Awaitable[Reply]]


class _Rule(NamedTuple):
    request: type[Message]
    # The field that names the model; "": there is none.
    field: str
    # The response that those of all deployments merge into, for a request that names no model; None: any one answers.
    merged: type[Message] | None = None


RULES = {
    f"{CLASSIFIER}/Classify": _Rule(c.ClassifyRequest, "model"),
    CLASSIFY_STREAM: _Rule(c.ClassifyStreamRequest, "request.model"),
    f"{CLASSIFIER}/ListModels": _Rule(c.ListModelsRequest, "", c.ListModelsResponse),
    f"{CLASSIFIER}/GetModel": _Rule(c.GetModelRequest, "model"),
    f"{CLASSIFIER}/LoadModel": _Rule(c.LoadModelRequest, "model"),
    f"{CLASSIFIER}/UnloadModel": _Rule(c.UnloadModelRequest, "model"),
    f"{INFERENCE}/ServerLive": _Rule(o.ServerLiveRequest, ""),
    f"{INFERENCE}/ServerReady": _Rule(o.ServerReadyRequest, "", o.ServerReadyResponse),
    f"{INFERENCE}/ModelReady": _Rule(o.ModelReadyRequest, "name"),
    f"{INFERENCE}/ServerMetadata": _Rule(o.ServerMetadataRequest, ""),
    f"{INFERENCE}/ModelMetadata": _Rule(o.ModelMetadataRequest, "name"),
    f"{INFERENCE}/ModelInfer": _Rule(o.ModelInferRequest, "model_name"),
    INFER_STREAM: _Rule(o.ModelInferRequest, "model_name"),
    f"{INFERENCE}/ModelConfig": _Rule(o.ModelConfigRequest, "name"),
    f"{INFERENCE}/ModelStatistics": _Rule(o.ModelStatisticsRequest, "name", o.ModelStatisticsResponse),
    f"{INFERENCE}/RepositoryIndex": _Rule(o.RepositoryIndexRequest, "", o.RepositoryIndexResponse),
    f"{INFERENCE}/RepositoryModelLoad": _Rule(o.RepositoryModelLoadRequest, "model_name"),
    f"{INFERENCE}/RepositoryModelUnload": _Rule(o.RepositoryModelUnloadRequest, "model_name"),
    f"{INFERENCE}/TraceSetting": _Rule(o.TraceSettingRequest, "model_name"),
    f"{INFERENCE}/LogSettings": _Rule(o.LogSettingsRequest, ""),
    f"{HEALTH}/Check": _Rule(health_pb2.HealthCheckRequest, "service", health_pb2.HealthCheckResponse),
    f"{HEALTH}/Watch": _Rule(health_pb2.HealthCheckRequest, "service"),
}
# Clients without a token may call these, so their errors name no models.
_OPEN = {f"{HEALTH}/Check", f"{HEALTH}/Watch", f"{INFERENCE}/ModelReady"}
# Requests of these RPCs that name no model concern the server; those of others are about a model without a name.
_ABOUT_SERVER = {f"{INFERENCE}/TraceSetting", f"{HEALTH}/Watch"}


class Routing:
    """Answers calls by those of the models' deployments. Use on one event loop.

    `places`: each model's deployment. `guarded`: deployments refuse some clients, so clients learn nothing before a
    deployment has let them pass.
    """

    def __init__(
        self,
        places: Mapping[str, str],
        forward: Forward,
        max_message_bytes: int,
        stream_s: float = 15.0,
        *,
        guarded: bool = False,
    ) -> None:
        self._models = tuple(places)
        # One model of each deployment.
        self._first = tuple({place: model for model, place in reversed(list(places.items()))}.values())[::-1]
        self._forward = forward
        self._max_bytes = max_message_bytes
        self._stream_s = stream_s
        self._guarded = guarded
        self._never = asyncio.Event()

    async def unary(self, name: str, data: bytes, sent: Sent) -> Reply:
        """Returns the response of a unary RPC, or the status of its error."""
        rule = RULES.get(name)
        try:
            # A deployment tells what is wrong with the call.
            model = None if rule is None else await self._admitted_model(rule, name, data, sent)
            if model is not None:
                return await self._forward(model, name, data, sent)
            if rule is None or rule.merged is None:
                return await self._forward(self._models[0], name, data, sent)
            replies = await asyncio.gather(*(self._told(model, name, data, sent) for model in self._first))
            return _merged(rule.merged, replies)
        except StreamEnded as refused:
            return Reply(status=refused.status)
        except Exception as error:
            return reply_to(error, name)

    async def _told(self, model: str, name: str, data: bytes, sent: Sent) -> Reply:
        try:
            return await self._forward(model, name, data, sent)
        except Exception as error:
            return reply_to(error, name)

    async def stream(self, name: str, messages: AsyncIterator[bytes] | bytes, sent: Sent) -> AsyncIterator[bytes]:
        """Yields the responses of a stream, whose messages may be for several models. Raises `StreamEnded`."""
        if isinstance(messages, bytes):
            async for state in self._watch(messages, sent):
                yield state
            return
        try:
            ends = timeout_s(sent.metadata)
            began = time.monotonic()
            answer = partial(self._one, name, sent, None if ends is None else began + ends)
            own = limited(messages, self._stream_s)
            async for data in streams.answers(own, answer, self._never, in_order=name == INFER_STREAM):
                yield data
        except StreamEnded:
            raise
        except Exception as error:
            raise StreamEnded(status.of(error, name)) from None

    async def _one(self, name: str, sent: Sent, ends: float | None, data: bytes) -> bytes:
        left_s = None if ends is None else ends - time.monotonic()
        try:
            model = await self._admitted_model(RULES[name], name, data, sent) or self._models[0]
            reply = await self._forward(model, name, data, with_timeout(sent, left_s))
        except (ModelNotFound, ModelNotReady) as error:
            told = status.of(error, name)
            if (STREAM_ERRORS, "true") in sent.metadata:
                raise StreamEnded(told) from None
            return _refused(name, data, told)
        if reply.status is not None:
            raise StreamEnded(reply.status)
        return reply.data

    async def _watch(self, data: bytes, sent: Sent) -> AsyncIterator[bytes]:
        """Yields the health at first, and after each change, of which it learns within a second."""
        last = None
        ends = time.monotonic() + self._stream_s
        while time.monotonic() < ends:
            reply = await self.unary(f"{HEALTH}/Check", data, sent)
            state = _health(reply)
            if state != last:
                last = state
                yield state
            await asyncio.sleep(_WATCH_S)
        raise StreamEnded(
            status.Status(status.Code.UNAVAILABLE, f"a watch ends after {self._stream_s:g} s; watch again")
        )

    async def _admitted_model(self, rule: _Rule, name: str, data: bytes, sent: Sent) -> str | None:
        """Does the same as `_model`. Raises `StreamEnded` in place of an error that the client may not know."""
        try:
            return self._model(rule, name, data)
        except ServingError:
            if self._guarded:
                told = (await self._forward("", name, data, sent)).status
                if told is not None and told.code in _REFUSED:
                    raise StreamEnded(told) from None
            raise

    def _model(self, rule: _Rule, name: str, data: bytes) -> str | None:
        """Returns the model that a request names; None if it is about the server. Raises `ModelNotFound`."""
        if not rule.field:
            return None
        check_fields(data, rule.request.DESCRIPTOR, self._max_bytes)
        try:
            message: Any = rule.request.FromString(data)
        except DecodeError as error:
            raise InvalidInput(
                f"the {len(data)} bytes of the request are no {rule.request.DESCRIPTOR.full_name}: {error}"
            ) from error
        for field in rule.field.split("."):
            message = getattr(message, field)
        model = str(message)
        if model in self._models:
            return model
        if not model and (rule.merged is not None or name in _ABOUT_SERVER):
            return None
        text = f"model {model[:200]!r} is not in the model repository"
        if name not in _OPEN:
            more = f" and {len(self._models) - _LISTED} more" if len(self._models) > _LISTED else ""
            text += f"; it has {', '.join(sorted(self._models)[:_LISTED])}{more}"
        raise ModelNotFound(text)


def _merged(kind: type[Message], replies: Sequence[Reply]) -> Reply:
    """Returns the responses of all deployments as one, or the first error."""
    if kind is o.ServerReadyResponse:
        # All of it is ready, or it is not.
        ready = all(reply.status is None and o.ServerReadyResponse.FromString(reply.data).ready for reply in replies)
        return Reply(o.ServerReadyResponse(ready=ready).SerializeToString())
    if kind is health_pb2.HealthCheckResponse:
        # The states are numbers, of which SERVING is the least of those that a deployment reports.
        return Reply(max(map(_health, replies)))
    failed = next((reply for reply in replies if reply.status is not None), None)
    if failed is not None:
        return failed
    whole = kind()
    for reply in replies:
        whole.MergeFrom(kind.FromString(reply.data))
    return Reply(whole.SerializeToString())


def _health(reply: Reply) -> bytes:
    if reply.status is None:
        return reply.data
    state = health_pb2.HealthCheckResponse
    unknown = reply.status.code is status.Code.NOT_FOUND
    answer = state(status=state.SERVICE_UNKNOWN if unknown else state.NOT_SERVING)
    return bytes(answer.SerializeToString())


def _refused(name: str, data: bytes, told: status.Status) -> bytes:
    """Returns the response of a stream to one message that no deployment has answered."""
    if name == CLASSIFY_STREAM:
        answer = c.ClassifyStreamResponse(error=c.Error(code=told.code, message=told.message))
        if told.retry_after_ms is not None:
            answer.error.retry_after_ms = told.retry_after_ms
        answer.id = _read(c.ClassifyStreamRequest, data).id[: answer_size.ECHOED]
        return answer.SerializeToString()
    request = _read(o.ModelInferRequest, data)
    response = o.ModelStreamInferResponse(error_message=told.message)
    response.infer_response.model_name = request.model_name[: answer_size.ECHOED]
    response.infer_response.id = request.id[: answer_size.ECHOED]
    return response.SerializeToString()


def _read(kind: type[Any], data: bytes) -> Any:
    try:
        return kind.FromString(data)
    except DecodeError:
        return kind()
