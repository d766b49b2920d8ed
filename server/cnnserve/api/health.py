"""Handlers of `grpc.health.v1.Health`: readiness of the server ("") and of each model, by name."""

from collections.abc import AsyncIterator

from grpc_health.v1 import health_pb2 as pb

from cnnserve.access.scopes import Scope
from cnnserve.api.methods import CallContext, Kind, Method
from cnnserve.registry.health import Health

SERVICE = "grpc.health.v1.Health"


class HealthService:
    """Handlers of Check and Watch."""

    def __init__(self, health: Health) -> None:
        self._health = health

    def methods(self) -> list[Method]:
        """Returns the service's rows of the method table."""
        request, response = pb.HealthCheckRequest, pb.HealthCheckResponse
        return [
            Method(f"{SERVICE}/Check", request, response, self.check, Scope.OPEN, while_draining=True),
            Method(
                f"{SERVICE}/Watch", request, response, self.watch, Scope.OPEN, Kind.SERVER_STREAM, while_draining=True
            ),
        ]

    async def check(self, request: pb.HealthCheckRequest, _: CallContext) -> pb.HealthCheckResponse:
        """Returns SERVING or NOT_SERVING. Raises as `Registry.state` if `service` is neither "" nor a model's name."""
        return _response(self._health.is_serving(request.service))

    async def watch(self, request: pb.HealthCheckRequest, _: CallContext) -> AsyncIterator[pb.HealthCheckResponse]:
        """Yields the state now and after every change.

        While there is no such name, the state is SERVICE_UNKNOWN: the protocol demands this instead of an error.
        """
        async for serving in self._health.watch(request.service):
            yield _response(serving)


def _response(serving: bool | None) -> pb.HealthCheckResponse:
    status = pb.HealthCheckResponse
    return pb.HealthCheckResponse(
        status=status.SERVICE_UNKNOWN if serving is None else status.SERVING if serving else status.NOT_SERVING
    )
