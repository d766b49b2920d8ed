"""Creates the gRPC channels of a client, blocking or for asyncio: as many for each address as it has `connections`."""

import grpc

from .security import Tls
from .target import Target


def blocking(target: Target) -> list[grpc.Channel]:
    """Returns blocking channels. They connect at their first call."""
    credentials = _credentials(target)
    if credentials is None:
        return [grpc.insecure_channel(address, target.options) for address in target.channels]
    return [grpc.secure_channel(address, credentials, target.options) for address in target.channels]


def asyncio(target: Target) -> list[grpc.aio.Channel]:
    """Returns channels for the running event loop. They connect at their first call."""
    credentials = _credentials(target)
    if credentials is None:
        return [grpc.aio.insecure_channel(address, target.options) for address in target.channels]
    return [grpc.aio.secure_channel(address, credentials, target.options) for address in target.channels]


def _credentials(target: Target) -> grpc.ChannelCredentials | None:
    if not target.tls:
        return None
    tls = target.tls if isinstance(target.tls, Tls) else Tls()
    return grpc.ssl_channel_credentials(*tls.read())
