"""Handlers that load, unload and list models, for `cnnserve.v1.Classifier` and the Open Inference Protocol."""

import contextlib
import json
from collections.abc import Iterator, Mapping

from cnnserve.access.scopes import Scope
from cnnserve.api.describe import describe
from cnnserve.api.methods import CLASSIFIER, INFERENCE, CallContext, Method
from cnnserve.errors import InvalidInput, Unsupported
from cnnserve.registry.control import ModelControl
from cnnserve.registry.lifecycle import ModelEntry, State, VersionEntry
from cnnserve.wire import classifier_pb2 as c
from cnnserve.wire import open_inference_pb2 as o

_EXTENSIONS = ("model_repository", "model_repository(unload_dependents)")


class RepositoryService:
    """Handlers of the model control RPCs of both protocols, over one `ModelControl`."""

    def __init__(self, control: ModelControl) -> None:
        self._control = control

    @property
    def extensions(self) -> tuple[str, ...]:
        """The extensions for the server's metadata: none if clients may not load models."""
        return _EXTENSIONS if self._control.allowed else ()

    def methods(self) -> list[Method]:
        """Returns the service's rows of the method table."""
        return [
            Method(f"{CLASSIFIER}/LoadModel", c.LoadModelRequest, c.LoadModelResponse, self.load_model, Scope.ADMIN),
            Method(
                f"{CLASSIFIER}/UnloadModel", c.UnloadModelRequest, c.UnloadModelResponse, self.unload_model, Scope.ADMIN
            ),
            Method(
                f"{INFERENCE}/RepositoryIndex",
                o.RepositoryIndexRequest,
                o.RepositoryIndexResponse,
                self.index,
                Scope.READ,
            ),
            Method(
                f"{INFERENCE}/RepositoryModelLoad",
                o.RepositoryModelLoadRequest,
                o.RepositoryModelLoadResponse,
                self.repository_load,
                Scope.ADMIN,
            ),
            Method(
                f"{INFERENCE}/RepositoryModelUnload",
                o.RepositoryModelUnloadRequest,
                o.RepositoryModelUnloadResponse,
                self.repository_unload,
                Scope.ADMIN,
            ),
        ]

    async def load_model(self, request: c.LoadModelRequest, _: CallContext) -> c.LoadModelResponse:
        """Loads a model and returns its state after the load. Raises as `ModelControl.load`."""
        return c.LoadModelResponse(model=describe(await self._control.load(request.model), labels=True))

    async def unload_model(self, request: c.UnloadModelRequest, _: CallContext) -> c.UnloadModelResponse:
        """Unloads a model and returns its state after the unload. Raises as `ModelControl.unload`."""
        return c.UnloadModelResponse(model=describe(await self._control.unload(request.model), labels=True))

    async def index(self, request: o.RepositoryIndexRequest, _: CallContext) -> o.RepositoryIndexResponse:
        """Returns one row for each version. A model without versions has one row; if it is not wanted, only its name.

        Raises `Unsupported` if the request names a repository.
        """
        _check_repository(request.repository_name)
        rows = [row for model in await self._control.index() for row in _rows(model)]
        return o.RepositoryIndexResponse(
            models=[row for row in rows if not request.ready or row.state == State.READY.value]
        )

    async def repository_load(
        self, request: o.RepositoryModelLoadRequest, _: CallContext
    ) -> o.RepositoryModelLoadResponse:
        """Loads a model. The parameter `config` is JSON that replaces config.pbtxt until the next load.

        Raises as `ModelControl.load`, `InvalidInput` for other parameters, and `Unsupported` for files as parameters
        or if the request names a repository.
        """
        self._control.check()
        _check_repository(request.repository_name)
        await self._control.load(request.model_name, _config(request.parameters))
        return o.RepositoryModelLoadResponse()

    async def repository_unload(
        self, request: o.RepositoryModelUnloadRequest, _: CallContext
    ) -> o.RepositoryModelUnloadResponse:
        """Unloads a model. `unload_dependents` changes nothing, because no model here depends on another.

        Raises as `ModelControl.unload`, `InvalidInput` for other parameters, and `Unsupported` if the request names a
        repository.
        """
        self._control.check()
        _check_repository(request.repository_name)
        for name, value in request.parameters.items():
            if name != "unload_dependents" or value.WhichOneof("parameter_choice") != "bool_param":
                raise InvalidInput(
                    f"an unload has parameter '{name}' ({value.WhichOneof('parameter_choice')}), which is not "
                    "supported; send unload_dependents as a bool_param, or no parameter"
                )
        await self._control.unload(request.model_name)
        return o.RepositoryModelUnloadResponse()


def _check_repository(name: str) -> None:
    if name:
        raise Unsupported(f"repository_name is {name!r}, but this server has one model repository; leave it empty")


def _config(parameters: Mapping[str, o.ModelRepositoryParameter]) -> str:
    for name in parameters:
        if name.startswith("file:"):
            raise Unsupported(
                f"a load has parameter '{name}', but this server loads models only from files of the model repository; "
                "put the file there"
            )
        if name != "config":
            raise InvalidInput(f"a load has parameter '{name}', which is not supported; send config or no parameter")
    if "config" not in parameters:
        return ""
    config = parameters["config"].string_param
    with contextlib.suppress(ValueError, RecursionError):
        if isinstance(json.loads(config), dict):
            return config
    raise InvalidInput("parameter 'config' of a load must be a string_param that holds a ModelConfig as a JSON object")


def _rows(model: ModelEntry) -> Iterator[o.RepositoryIndexResponse.ModelIndex]:
    row = o.RepositoryIndexResponse.ModelIndex
    if not model.versions:
        known = model.wanted
        yield row(name=model.name, state=State.UNAVAILABLE.value if known else "", reason=model.reason if known else "")
    for entry in model.versions.values():
        # Triton's clients do not know the state BUILDING. The reason tells that the version is building.
        state = State.LOADING if entry.state is State.BUILDING else entry.state
        yield row(name=model.name, version=str(entry.version), state=state.value, reason=entry.reason or _doubt(entry))


def _doubt(entry: VersionEntry) -> str:
    probe = entry.model.info.probe if entry.model else None
    return str(probe or "")
