"""A model repository as an application of Ray Serve: replicas on many machines behind Serve's gRPC proxies.

`application` is what a Serve config imports; `register` adds the services to the proxies. Each model is a deployment of
its own, whose replicas hold the inside of a server: registry, batcher, sessions. Serve places, scales and restarts
them.
With one deployment, its replicas are the ingress. With several, an ingress without a model hands calls on.

Serve answers INTERNAL for calls whose replica ends during the call, so the ingress tries another replica, once, and
then answers UNAVAILABLE. Classifying changes nothing on a server, so a second try is safe.
"""

import asyncio
import contextlib
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import Any, NoReturn

import grpc
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request
from starlette.responses import PlainTextResponse

from cnnserve.api import status
from cnnserve.api.methods import CLASSIFIER, INFERENCE, Kind
from cnnserve.assembly.loading import access_control, followed_keys, load_first
from cnnserve.assembly.parts import assemble
from cnnserve.config.settings import ServerConfig
from cnnserve.errors import ModelNotReady, QueueFull, ServingError
from cnnserve.registry.registry import Registry
from cnnserve.transports.ray_calls import RPCS, Calls, Reply, Sent, StreamEnded, is_own_fault
from cnnserve.transports.ray_plan import Deployment, Plan, read
from cnnserve.transports.ray_routing import Routing
from ray import serve

_log = logging.getLogger(__name__)

_CODES = {code.value[0]: code for code in grpc.StatusCode}
_MAKERS: dict[Kind, Callable[..., Any]] = {
    Kind.UNARY: grpc.unary_unary_rpc_method_handler,
    Kind.SERVER_STREAM: grpc.unary_stream_rpc_method_handler,
    Kind.STREAM: grpc.stream_stream_rpc_method_handler,
}
# The RPCs that load their model into a replica which several models share. Others look at what is loaded.
_LOADING = {
    *(f"{CLASSIFIER}/{rpc}" for rpc in ("Classify", "ClassifyStream", "GetModel")),
    *(f"{INFERENCE}/{rpc}" for rpc in ("ModelInfer", "ModelStreamInfer", "ModelMetadata", "ModelConfig")),
}
# Of a replica that ends: streams end before, and requests in flight have the rest.
_GRACE_S = 10.0
_LOOK_S = 0.5
# Serve's own queue does not say when it has room.
_RETRY_MS = 100


def register(_: object, server: Any) -> None:
    """Adds the services to a proxy of Serve, which replaces the handlers: name it in `grpc_servicer_functions`."""
    services: defaultdict[str, dict[str, Any]] = defaultdict(dict)
    for name, kind in RPCS.items():
        service, _, rpc = name.partition("/")
        # Without serialisers, so that bytes travel, and the replica reports what is wrong with them.
        services[service][rpc] = _MAKERS[kind](_unreachable)
    for service, handlers in services.items():
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, handlers)])


def _unreachable(*_: object) -> NoReturn:
    raise NotImplementedError("Ray Serve replaces this handler")


def application(arguments: dict[str, Any]) -> serve.Application:
    """Returns the application for the arguments of a Serve config, see `ray_plan.read`. Raises `ConfigError`."""
    plan = read(arguments)
    bound = {name: _bound(plan, name, deployment) for name, deployment in plan.deployments.items()}
    first = next(iter(plan.deployments.values()))
    if len(bound) == 1 and not first.shares:
        return next(iter(bound.values()))
    options = serve.deployment(
        name="ingress",
        num_replicas=plan.ingress_replicas,
        max_ongoing_requests=sum(deployment.max_ongoing_requests for deployment in plan.deployments.values()),
        ray_actor_options={"num_cpus": 0},
        logging_config={"enable_access_log": False},
        graceful_shutdown_timeout_s=plan.stream_s + _GRACE_S,
        graceful_shutdown_wait_loop_s=_LOOK_S,
    )
    places = {model: name for name, deployment in plan.deployments.items() for model in deployment.models}
    shared = frozenset(name for name, deployment in plan.deployments.items() if deployment.shares)
    return options(Ingress).bind(plan, places, shared, bound)


def _bound(plan: Plan, name: str, deployment: Deployment) -> serve.Application:
    settings: dict[str, Any] = {"num_replicas": deployment.replicas}
    if deployment.autoscaling:
        settings = {"autoscaling_config": dict(deployment.autoscaling)}
    made = serve.deployment(
        name=f"_{name}" if name == "ingress" else name,
        max_ongoing_requests=deployment.max_ongoing_requests,
        ray_actor_options={"num_cpus": deployment.cpus, "num_gpus": deployment.gpus},
        # A line for each request; the server has an access log of its own.
        logging_config={"enable_access_log": False},
        max_constructor_retry_count=deployment.max_constructor_retry_count,
        graceful_shutdown_timeout_s=plan.stream_s + _GRACE_S,
        graceful_shutdown_wait_loop_s=_LOOK_S,
        health_check_period_s=5,
        **settings,
    )
    return made(Replica).bind(plan, deployment)


def _sent(context: Any) -> Sent:
    return Sent(tuple(context.invocation_metadata()), context.peer())


def _unary(rpc: str, name: str) -> Any:
    async def method(self: "_Ingress", data: bytes, grpc_context: Any) -> Reply:
        reply = await self.unary(name, data, _sent(grpc_context))
        if reply.status is not None:
            _tell(grpc_context, reply.status)
            if is_own_fault(reply.status):
                # So that Serve counts it as an error.
                raise RuntimeError(reply.status.message)
        # Serve sends trailing metadata only beside a response, and retry-pushback is there.
        return reply

    method.__name__ = method.__qualname__ = rpc
    return method


def _stream(rpc: str, name: str) -> Any:
    async def method(self: "_Ingress", messages: Any, grpc_context: Any) -> AsyncIterator[Reply]:
        try:
            async for data in self.stream(name, messages, _sent(grpc_context)):
                yield Reply(data)
        except StreamEnded as ended:
            _tell(grpc_context, ended.status)
            raise RuntimeError(ended.status.message) from None

    method.__name__ = method.__qualname__ = rpc
    return method


def _tell(context: Any, told: status.Status) -> None:
    context.set_code(_CODES[told.code])
    context.set_details(told.message.encode(errors="replace").decode())
    context.set_trailing_metadata(list(told.trailers.items()))


class _Ingress:
    """Has a method for each RPC, which Serve calls by the RPC's name."""

    async def unary(self, name: str, data: bytes, sent: Sent) -> Reply:
        """Returns the response of a unary RPC, or the status of its error."""
        raise NotImplementedError

    def stream(self, name: str, messages: AsyncIterator[bytes] | bytes, sent: Sent) -> AsyncIterator[bytes]:
        """Yields the responses of a stream. Raises `StreamEnded`."""
        raise NotImplementedError

    async def __call__(self, _: Request) -> PlainTextResponse:
        """Answers HTTP, which Serve's proxies speak too."""
        return PlainTextResponse("this application speaks gRPC only, on the gRPC port of Ray Serve\n", 404)


for _name, _kind in RPCS.items():
    _rpc = _name.rpartition("/")[2]
    setattr(_Ingress, _rpc, (_unary if _kind is Kind.UNARY else _stream)(_rpc, _name))


class Replica(_Ingress):
    """A replica of one model, or of several of which it holds those that were asked for last."""

    # Serve awaits it, on the event loop that will run the calls.
    async def __init__(self, plan: Plan, deployment: Deployment) -> None:  # type: ignore[misc]
        logging.getLogger("cnnserve").setLevel(logging.INFO)
        config = plan.config(deployment)
        self._deployment = deployment
        self._parts = parts = assemble(config)
        await load_first(config, parts.registry)
        parts.health.started()

        async def load(model: str) -> _Loaded:
            await parts.registry.load(model)
            return _Loaded(parts.registry, model)

        # Not a decorator: the number of models is that of the deployment.
        self._load = serve.multiplexed(load, max_num_models_per_replica=deployment.loaded)
        access = access_control(config)
        self._calls = Calls(parts.methods, parts.max_message_bytes, access.guard, plan.stream_s)
        self._following = asyncio.create_task(access.follow(more=followed_keys(config, parts.registry)))
        if not deployment.shares:
            self._check(deployment.models[0])

    def _check(self, name: str) -> None:
        """Raises the reason if the model is not READY; warns if its batches cannot be full."""
        model = self._parts.registry.get(name)
        rows = model.instances * model.info.settings.max_batch_size
        if self._deployment.max_ongoing_requests <= rows:
            _log.warning(
                "model %s: max_ongoing_requests is %d, but its instances run %d rows at a time; set it higher",
                *(name, self._deployment.max_ongoing_requests, rows),
            )

    async def unary(self, name: str, data: bytes, sent: Sent) -> Reply:
        """Returns the response of a unary RPC, or the status of its error."""
        return await self._calls.unary(name, data, sent)

    def stream(self, name: str, messages: AsyncIterator[bytes] | bytes, sent: Sent) -> AsyncIterator[bytes]:
        """Yields the responses of a stream. Raises `StreamEnded`."""
        return self._calls.stream(name, messages, sent)

    async def forward(self, model: str, name: str, data: bytes, sent: Sent) -> Reply:
        """Answers what the ingress hands on: a unary RPC, or one message of a stream."""
        loads = self._deployment.shares and model and name in _LOADING
        answer = self._calls.unary if RPCS[name] is Kind.UNARY else self._calls.one
        return await answer(name, data, sent, partial(self._loaded, model) if loads else contextlib.nullcontext)

    @contextlib.asynccontextmanager
    async def _loaded(self, model: str) -> AsyncIterator[None]:
        """Holds a model in the replica while inside; if it cannot be loaded, the handler tells why."""
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(ServingError):
                loaded: _Loaded = await self._load(model)
                # Nothing is awaited in between, so no other call can make it give place.
                stack.enter_context(loaded.in_use())
            yield

    async def check_health(self) -> None:
        """Raises a reason if the model has failed its self-test since; Serve then replaces the replica."""
        if not self._deployment.shares:
            self._parts.registry.get(self._deployment.models[0])

    async def __del__(self) -> None:
        """Ends the instances. Serve calls it when no request is in flight any more."""
        if hasattr(self, "_following"):
            self._following.cancel()
        if hasattr(self, "_parts"):
            await self._parts.registry.close()
            self._parts.decoders.close()


class _Loaded:
    """A model that a replica holds; Serve calls `__del__` to make place for another."""

    def __init__(self, registry: Registry, name: str) -> None:
        self._registry = registry
        self._name = name
        self._users = 0
        self._unused = asyncio.Event()
        self._unused.set()

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """While inside, the model stays."""
        self._users += 1
        self._unused.clear()
        try:
            yield
        finally:
            self._users -= 1
            if not self._users:
                self._unused.set()

    async def __del__(self) -> None:
        await self._unused.wait()
        await self._registry.unload(self._name)


class Ingress(_Ingress):
    """Hands each call on to the deployment of the model that it names."""

    def __init__(
        self, plan: Plan, places: dict[str, str], shared: frozenset[str], handles: dict[str, DeploymentHandle]
    ) -> None:
        logging.getLogger("cnnserve").setLevel(logging.INFO)
        self._places = places
        self._shared = shared
        self._handles = handles
        mib = plan.settings.get("max_message_mib", ServerConfig.max_message_mib)
        self._routing = Routing(places, self._forward, mib * 2**20, plan.stream_s, guarded=plan.guarded)

    async def unary(self, name: str, data: bytes, sent: Sent) -> Reply:
        """Returns the response of a unary RPC, or the status of its error."""
        return await self._routing.unary(name, data, sent)

    def stream(self, name: str, messages: AsyncIterator[bytes] | bytes, sent: Sent) -> AsyncIterator[bytes]:
        """Yields the responses of a stream. Raises `StreamEnded`."""
        return self._routing.stream(name, messages, sent)

    async def _forward(self, model: str, name: str, data: bytes, sent: Sent) -> Reply:
        place = self._places[model] if model else next(iter(self._places.values()))
        handle = self._handles[place]
        if model and place in self._shared and name in _LOADING:
            handle = handle.options(multiplexed_model_id=model)
        for left in (1, 0):
            try:
                reply: Reply = await handle.forward.remote(model, name, data, sent)
                return reply
            except BackPressureError as error:
                raise QueueFull(f"model {model!r}: {error}", _RETRY_MS) from None
            except DeploymentUnavailableError as error:
                raise ModelNotReady(f"model {model!r} has no replica: {error}") from None
            except RayActorError as error:
                if not left:
                    raise ModelNotReady(f"model {model!r}: its replica ended; try again later ({error})") from None
        raise AssertionError
