"""Loading, unloading and listing models: `cnnserve.v1.Classifier` and its Open Inference twins."""

import contextlib
import json
from collections.abc import Iterator, Mapping

from cnnserve.api.describe import describe
from cnnserve.api.methods import CLASSIFIER, INFERENCE, CallContext, Method
from cnnserve.errors import InvalidInput, Unsupported
from cnnserve.registry.control import ModelControl
from cnnserve.registry.lifecycle import ModelEntry, State, VersionEntry
from cnnserve.wire import classifier_pb2 as c
from cnnserve.wire import open_inference_pb2 as o

_EXTENSIONS = ("model_repository", "model_repository(unload_dependents)")


class RepositoryService:
    """The model control RPCs of both protocols, on the same use cases."""

    def __init__(self, control: ModelControl) -> None:
        self._control = control

    @property
    def extensions(self) -> tuple[str, ...]:
        """What the server's metadata may promise."""
        return _EXTENSIONS if self._control.allowed else ()

    def methods(self) -> list[Method]:
        """The service's rows of the method table."""
        return [
            Method(f"{CLASSIFIER}/LoadModel", c.LoadModelRequest, c.LoadModelResponse, self.load_model),
            Method(f"{CLASSIFIER}/UnloadModel", c.UnloadModelRequest, c.UnloadModelResponse, self.unload_model),
            Method(f"{INFERENCE}/RepositoryIndex", o.RepositoryIndexRequest, o.RepositoryIndexResponse, self.index),
            Method(
                f"{INFERENCE}/RepositoryModelLoad",
                o.RepositoryModelLoadRequest,
                o.RepositoryModelLoadResponse,
                self.repository_load,
            ),
            Method(
                f"{INFERENCE}/RepositoryModelUnload",
                o.RepositoryModelUnloadRequest,
                o.RepositoryModelUnloadResponse,
                self.repository_unload,
            ),
        ]

    async def load_model(self, request: c.LoadModelRequest, _: CallContext) -> c.LoadModelResponse:
        """The model as it is after the load."""
        return c.LoadModelResponse(model=describe(await self._control.load(request.model), labels=True))

    async def unload_model(self, request: c.UnloadModelRequest, _: CallContext) -> c.UnloadModelResponse:
        """The model as it is after the unload."""
        return c.UnloadModelResponse(model=describe(await self._control.unload(request.model), labels=True))

    async def index(self, request: o.RepositoryIndexRequest, _: CallContext) -> o.RepositoryIndexResponse:
        """One row a version; a model that was never loaded has one row, with its name only."""
        _check_repository(request.repository_name)
        rows = [row for model in await self._control.index() for row in _rows(model)]
        return o.RepositoryIndexResponse(
            models=[row for row in rows if not request.ready or row.state == State.READY.value]
        )

    async def repository_load(
        self, request: o.RepositoryModelLoadRequest, _: CallContext
    ) -> o.RepositoryModelLoadResponse:
        """As `load_model`, with the parameter `config`: JSON that takes config.pbtxt's place until the next load."""
        self._control.check()
        _check_repository(request.repository_name)
        await self._control.load(request.model_name, _config(request.parameters))
        return o.RepositoryModelLoadResponse()

    async def repository_unload(
        self, request: o.RepositoryModelUnloadRequest, _: CallContext
    ) -> o.RepositoryModelUnloadResponse:
        """As `unload_model`; no model here depends on another, so `unload_dependents` is no work."""
        self._control.check()
        _check_repository(request.repository_name)
        for name, value in request.parameters.items():
            if name != "unload_dependents" or value.WhichOneof("parameter_choice") != "bool_param":
                raise InvalidInput(f"parameter '{name}' of an unload is not known; unload_dependents is, a bool_param")
        await self._control.unload(request.model_name)
        return o.RepositoryModelUnloadResponse()


def _check_repository(name: str) -> None:
    if name:
        raise Unsupported("repository_name is not supported: this server has one repository; leave it empty")


def _config(parameters: Mapping[str, o.ModelRepositoryParameter]) -> str:
    for name in parameters:
        if name.startswith("file:"):
            raise Unsupported(f"parameter '{name}' of a load is not supported: models load from the repository's files")
        if name != "config":
            raise InvalidInput(f"parameter '{name}' of a load is not known; config is")
    if "config" not in parameters:
        return ""
    config = parameters["config"].string_param
    with contextlib.suppress(ValueError, RecursionError):
        if isinstance(json.loads(config), dict):
            return config
    raise InvalidInput("parameter 'config' of a load is no string_param with a ModelConfig as JSON")


def _rows(model: ModelEntry) -> Iterator[o.RepositoryIndexResponse.ModelIndex]:
    row = o.RepositoryIndexResponse.ModelIndex
    if not model.versions:
        known = model.wanted
        yield row(name=model.name, state=State.UNAVAILABLE.value if known else "", reason=model.reason if known else "")
    for entry in model.versions.values():
        # Triton's clients know no BUILDING; the reason says it.
        state = State.LOADING if entry.state is State.BUILDING else entry.state
        yield row(name=model.name, version=str(entry.version), state=state.value, reason=entry.reason or _doubt(entry))


def _doubt(entry: VersionEntry) -> str:
    probe = entry.model.info.probe if entry.model else None
    return str(probe or "")
