"""`grpc.health.v1.Health`: Check and Watch, for the server ("") and for each model by name."""

from collections.abc import AsyncIterator

from grpc_health.v1 import health_pb2 as pb

from cnnserve.api.methods import CallContext, Kind, Method
from cnnserve.registry.health import Health

_SERVICE = "grpc.health.v1.Health"


class HealthService:
    """The standard health protocol over `Health`."""

    def __init__(self, health: Health) -> None:
        self._health = health

    def methods(self) -> list[Method]:
        """The service's rows of the method table."""
        request, response = pb.HealthCheckRequest, pb.HealthCheckResponse
        return [
            Method(f"{_SERVICE}/Check", request, response, self.check, while_draining=True),
            Method(f"{_SERVICE}/Watch", request, response, self.watch, Kind.SERVER_STREAM, while_draining=True),
        ]

    async def check(self, request: pb.HealthCheckRequest, _: CallContext) -> pb.HealthCheckResponse:
        """Raises `ModelNotFound` for a name that is no model."""
        return _response(self._health.is_serving(request.service))

    async def watch(self, request: pb.HealthCheckRequest, _: CallContext) -> AsyncIterator[pb.HealthCheckResponse]:
        """The state now and after every change; the protocol wants SERVICE_UNKNOWN, not an error, for no such name."""
        async for serving in self._health.watch(request.service):
            yield _response(serving)


def _response(serving: bool | None) -> pb.HealthCheckResponse:
    status = pb.HealthCheckResponse
    return pb.HealthCheckResponse(
        status=status.SERVICE_UNKNOWN if serving is None else status.SERVING if serving else status.NOT_SERVING
    )
