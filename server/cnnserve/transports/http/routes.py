"""Every route of the HTTP port: its RPC, its handler, and its description in `/openapi.json`.

Only `/metrics` has no RPC.
"""

import re
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

from starlette.responses import Response

from cnnserve.access.scopes import Scope
from cnnserve.api.methods import CLASSIFIER, INFERENCE
from cnnserve.transports.http import handlers
from cnnserve.transports.http.classify import classify
from cnnserve.transports.http.exchange import Exchange
from cnnserve.transports.http.predict import predict

_CLASSIFY = f"{CLASSIFIER}/Classify"
# On every route: malformed headers, no right to it, internal errors, a server that is shutting down, a passed deadline.
_ALWAYS = frozenset({400, 401, 403, 500, 503, 504})
_OWN = frozenset({400, 401, 403, 500})
_BODY = frozenset({408, 413, 415, 429})
_MODEL = frozenset({404})
_CONTROL = frozenset({403, 404, 409, 501})


@dataclass(frozen=True)
class Operation:
    """One HTTP method of one path. `answer` and `body` are names of schemas and bodies in `openapi`.

    If `rpc` is empty, the route has no RPC but a `scope` of its own; the server also serves it while it drains.
    """

    method: str
    path: str
    rpc: str
    handle: Callable[[Exchange], Awaitable[Response]]
    summary: str
    answer: str
    body: str = ""
    errors: frozenset[int] = _ALWAYS
    scope: Scope | None = None
    # Whether it changes models or shared memory, which pages of other sites may not.
    changes: bool = False

    @property
    def name(self) -> str:
        """The operationId of the operation: HTTP method, RPC and path parameters."""
        # One RPC may serve several paths. They differ in their parameters or in the HTTP method.
        parameters = "".join(word.title().replace("_", "") for word in re.findall(r"\{(\w+)\}", self.path))
        what = self.rpc.rpartition("/")[2] or self.path.strip("/").title()
        return f"{self.method.lower()}{what}{parameters and 'By'}{parameters}"


def operations() -> list[Operation]:
    """Returns the table of all routes with an RPC, in the order in which the server tries their paths."""
    return [*_server(), *_models(), *_repository(), *_shared_memory(), *_cuda_shared_memory(), *_settings()]


def scraping(handle: Callable[[Exchange], Awaitable[Response]]) -> Operation:
    """Returns the route of the metrics, with `handle` as its handler."""
    summary = "Metrics in Prometheus' text format, or in OpenMetrics if Accept names it first"
    return Operation("GET", "/metrics", "", handle, summary, "Metrics", errors=_OWN, scope=Scope.METRICS)


def description(handle: Callable[[Exchange], Awaitable[Response]]) -> Operation:
    """Returns the route of the description of all routes."""
    summary = "The routes of this server in OpenAPI 3.1"
    return Operation("GET", "/openapi.json", "", handle, summary, "Object", errors=_OWN, scope=Scope.READ)


def _server() -> Iterator[Operation]:
    yield Operation(
        "GET", "/v2", f"{INFERENCE}/ServerMetadata", handlers.message, "The server's name and extensions", "Server"
    )
    yield Operation(
        "GET", "/v2/health/live", f"{INFERENCE}/ServerLive", handlers.message, "Whether the server is live", "Live"
    )
    yield Operation(
        "GET",
        "/v2/health/ready",
        f"{INFERENCE}/ServerReady",
        handlers.server_ready,
        "Whether the server is ready (status 503 if not)",
        "Ready",
    )


def _models() -> Iterator[Operation]:
    errors = _ALWAYS | _MODEL
    # Before the routes of models: as in Triton, this path means the statistics even if a model has the name "stats".
    statistics = f"{INFERENCE}/ModelStatistics"
    yield Operation("GET", "/v2/models/stats", statistics, handlers.message, "Statistics of all models", "Statistics")
    for path in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
        rows = [
            ("", "ModelMetadata", handlers.message, "A model's versions, inputs and outputs", "Model"),
            ("/ready", "ModelReady", handlers.model_ready, "Whether a model is ready (503 if not)", "ModelReady"),
            ("/config", "ModelConfig", handlers.model_config, "A model's config in force", "Object"),
            ("/stats", "ModelStatistics", handlers.message, "A model's statistics", "Statistics"),
        ]
        for suffix, rpc, handle, summary, answer in rows:
            yield Operation("GET", path + suffix, f"{INFERENCE}/{rpc}", handle, summary, answer, errors=errors)
    errors |= _BODY | {501}
    for path in ("/v2/models/{model_name}/infer", "/v2/models/{model_name}/versions/{model_version}/infer"):
        yield Operation(
            "POST",
            path,
            f"{INFERENCE}/ModelInfer",
            handlers.model_infer,
            "Run a model on a tensor",
            "Inference",
            "Inference",
            errors,
        )
    for path in ("/v1/models/{model}:classify", "/v1/models/{model}/versions/{version}:classify"):
        yield Operation("POST", path, _CLASSIFY, classify, "Classify images", "Classification", "Images", errors)
    for path in ("/v1/models/{model}:predict", "/v1/models/{model}/versions/{version}:predict"):
        summary = "Run a model on rows or images, as TensorFlow Serving does"
        rpc = f"{INFERENCE}/ModelInfer"
        yield Operation("POST", path, rpc, predict, summary, "Predictions", "Instances", errors)


def _repository() -> Iterator[Operation]:
    for path in ("/v2/repository", "/v2/repository/{repository_name}"):
        yield Operation(
            "POST",
            f"{path}/index",
            f"{INFERENCE}/RepositoryIndex",
            handlers.repository_index,
            "All versions of all models, and their states",
            "Index",
            "Index",
            _ALWAYS | _BODY | {501},
        )
        for verb in ("load", "unload"):
            yield Operation(
                "POST",
                f"{path}/models/{{model_name}}/{verb}",
                f"{INFERENCE}/RepositoryModel{verb.title()}",
                handlers.repository_change,
                f"{verb.title()} a model",
                "Empty",
                "Parameters",
                _ALWAYS | _BODY | _CONTROL,
                changes=True,
            )


def _shared_memory() -> Iterator[Operation]:
    base, rpc = "/v2/systemsharedmemory", f"{INFERENCE}/SystemSharedMemory"
    errors = _ALWAYS | _CONTROL
    for path in (base, f"{base}/region/{{name}}"):
        yield Operation(
            "GET",
            f"{path}/status",
            f"{rpc}Status",
            handlers.shared_memory_status,
            "Registered shared memory regions",
            "Regions",
            errors=errors,
        )
        yield Operation(
            "POST",
            f"{path}/unregister",
            f"{rpc}Unregister",
            handlers.empty,
            "Unregister shared memory regions",
            "Empty",
            errors=errors,
            changes=True,
        )
    yield Operation(
        "POST",
        f"{base}/region/{{name}}/register",
        f"{rpc}Register",
        handlers.shared_memory_register,
        "Register a shared memory region",
        "Empty",
        "Region",
        errors | _BODY,
        changes=True,
    )


def _cuda_shared_memory() -> Iterator[Operation]:
    base, rpc = "/v2/cudasharedmemory", f"{INFERENCE}/CudaSharedMemory"
    region = f"{base}/region/{{name}}"
    rows = [
        ("GET", f"{base}/status", "Status"),
        ("GET", f"{region}/status", "Status"),
        ("POST", f"{base}/unregister", "Unregister"),
        ("POST", f"{region}/unregister", "Unregister"),
        ("POST", f"{region}/register", "Register"),
    ]
    for method, path, verb in rows:
        summary = "Not supported: CUDA shared memory"
        yield Operation(method, path, f"{rpc}{verb}", handlers.empty, summary, "Empty", errors=_ALWAYS | {501})


def _settings() -> Iterator[Operation]:
    rows = [
        ("/v2/logging", "LogSettings", "log settings", _ALWAYS),
        ("/v2/trace/setting", "TraceSetting", "trace settings", _ALWAYS),
        ("/v2/models/{model_name}/trace/setting", "TraceSetting", "trace settings of a model", _ALWAYS | _MODEL),
    ]
    for path, rpc, what, errors in rows:
        for method, rest, body in (("GET", "", ""), ("POST", "; changes are refused", "Settings")):
            yield Operation(
                method,
                path,
                f"{INFERENCE}/{rpc}",
                handlers.settings,
                f"Read {what}{rest}",
                "Object",
                body,
                errors | _BODY | {501} if body else errors,
            )
