"""Every route of the HTTP port: its RPC, its handler, and what `/openapi.json` says of it.

`/metrics` is the only one without an RPC.
"""

import re
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

from starlette.responses import Response

from cnnserve.api.methods import CLASSIFIER, INFERENCE
from cnnserve.transports.http import handlers
from cnnserve.transports.http.classify import classify
from cnnserve.transports.http.exchange import Exchange

_CLASSIFY = f"{CLASSIFIER}/Classify"
# On every route: malformed headers, the unforeseen, a server that stops, a time that is over.
_ALWAYS = frozenset({400, 500, 503, 504})
_BODY = frozenset({408, 413, 415, 429})
_MODEL = frozenset({404})
_CONTROL = frozenset({403, 404, 409, 501})


@dataclass(frozen=True)
class Operation:
    """One method of one path. `answer` and `body` are names of `openapi`'s schemas and bodies.

    `rpc` is empty where there is none: such a route is answered while the server drains, too.
    """

    method: str
    path: str
    rpc: str
    handle: Callable[[Exchange], Awaitable[Response]]
    summary: str
    answer: str
    body: str = ""
    errors: frozenset[int] = _ALWAYS

    @property
    def name(self) -> str:
        """Its operationId."""
        # The same RPC serves several paths, which differ in their parameters or their method.
        parameters = "".join(word.title().replace("_", "") for word in re.findall(r"\{(\w+)\}", self.path))
        what = self.rpc.rpartition("/")[2] or self.path.strip("/").title()
        return f"{self.method.lower()}{what}{parameters and 'By'}{parameters}"


def operations() -> list[Operation]:
    """The table, in the order in which paths are tried."""
    return [*_server(), *_models(), *_repository(), *_shared_memory(), *_cuda_shared_memory(), *_settings()]


def scraping(handle: Callable[[Exchange], Awaitable[Response]]) -> Operation:
    """The route of the metrics."""
    summary = "Prometheus' metrics, or OpenMetrics where Accept names it first"
    return Operation("GET", "/metrics", "", handle, summary, "Metrics", errors=frozenset({400, 500}))


def _server() -> Iterator[Operation]:
    yield Operation(
        "GET", "/v2", f"{INFERENCE}/ServerMetadata", handlers.message, "The server's name and extensions", "Server"
    )
    yield Operation("GET", "/v2/health/live", f"{INFERENCE}/ServerLive", handlers.message, "Is it alive", "Live")
    yield Operation(
        "GET", "/v2/health/ready", f"{INFERENCE}/ServerReady", handlers.server_ready, "Is it ready; 503: no", "Ready"
    )


def _models() -> Iterator[Operation]:
    errors = _ALWAYS | _MODEL
    # Before the models: this is Triton's route, whatever a model is called.
    statistics = f"{INFERENCE}/ModelStatistics"
    yield Operation("GET", "/v2/models/stats", statistics, handlers.message, "Statistics of all models", "Statistics")
    for path in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
        rows = [
            ("", "ModelMetadata", handlers.message, "A model's versions, inputs and outputs", "Model"),
            ("/ready", "ModelReady", handlers.model_ready, "Is the model ready; 503: no", "ModelReady"),
            ("/config", "ModelConfig", handlers.model_config, "The configuration it runs with", "Object"),
            ("/stats", "ModelStatistics", handlers.message, "Its statistics", "Statistics"),
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
            "Tensors in, tensors out",
            "Inference",
            "Inference",
            errors,
        )
    for path in ("/v1/models/{model}:classify", "/v1/models/{model}/versions/{version}:classify"):
        yield Operation("POST", path, _CLASSIFY, classify, "Images in, labels out", "Classification", "Images", errors)


def _repository() -> Iterator[Operation]:
    for path in ("/v2/repository", "/v2/repository/{repository_name}"):
        yield Operation(
            "POST",
            f"{path}/index",
            f"{INFERENCE}/RepositoryIndex",
            handlers.repository_index,
            "Every version of every model, and its state",
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
                f"{verb.title()}s a model",
                "Empty",
                "Parameters",
                _ALWAYS | _BODY | _CONTROL,
            )


def _shared_memory() -> Iterator[Operation]:
    base, rpc = "/v2/systemsharedmemory", f"{INFERENCE}/SystemSharedMemory"
    errors = _ALWAYS | _CONTROL
    for path in (base, f"{base}/region/{{name}}"):
        yield Operation(
            "GET", f"{path}/status", f"{rpc}Status", handlers.shared_memory_status, "Regions", "Regions", errors=errors
        )
        yield Operation(
            "POST", f"{path}/unregister", f"{rpc}Unregister", handlers.empty, "Forgets regions", "Empty", errors=errors
        )
    yield Operation(
        "POST",
        f"{base}/region/{{name}}/register",
        f"{rpc}Register",
        handlers.shared_memory_register,
        "Names a region of shared memory",
        "Empty",
        "Region",
        errors | _BODY,
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
        summary = "Refused: CUDA shared memory is not supported"
        yield Operation(method, path, f"{rpc}{verb}", handlers.empty, summary, "Empty", errors=_ALWAYS | {501})


def _settings() -> Iterator[Operation]:
    rows = [
        ("/v2/logging", "LogSettings", "log settings", _ALWAYS),
        ("/v2/trace/setting", "TraceSetting", "trace settings", _ALWAYS),
        ("/v2/models/{model_name}/trace/setting", "TraceSetting", "trace settings of a model", _ALWAYS | _MODEL),
    ]
    for path, rpc, what, errors in rows:
        for method, verb, body in (("GET", "Reads", ""), ("POST", "Changes", "Settings")):
            yield Operation(
                method,
                path,
                f"{INFERENCE}/{rpc}",
                handlers.settings,
                f"{verb} {what}",
                "Object",
                body,
                errors | _BODY | {501} if body else errors,
            )
