"""Creates the gRPC channels of a client, blocking or for asyncio: as many for each address as it has `connections`."""

import queue

import grpc

from .security import Tls
from .target import Target

_STATE_S = 1.0


def blocking(target: Target) -> list[grpc.Channel]:
    """Returns blocking channels. They connect at their first call."""
    credentials = _credentials(target)
    if credentials is None:
        return [grpc.insecure_channel(address, target.options(address)) for address in target.channels]
    return [grpc.secure_channel(address, credentials, target.options(address)) for address in target.channels]


def asyncio(target: Target) -> list[grpc.aio.Channel]:
    """Returns channels for the running event loop. They connect at their first call."""
    credentials = _credentials(target)
    if credentials is None:
        return [grpc.aio.insecure_channel(address, target.options(address)) for address in target.channels]
    return [grpc.aio.secure_channel(address, credentials, target.options(address)) for address in target.channels]


def has_ended(channel: grpc.Channel) -> bool:
    """Returns whether a blocking channel has no connection now. Blocks until gRPC has told, for 1 s at most."""
    states: queue.SimpleQueue[grpc.ChannelConnectivity] = queue.SimpleQueue()
    tell = states.put
    channel.subscribe(tell)
    try:
        return states.get(timeout=_STATE_S) is not grpc.ChannelConnectivity.READY
    except queue.Empty:
        return True
    finally:
        channel.unsubscribe(tell)


def has_ended_for_asyncio(channel: grpc.aio.Channel) -> bool:
    """Returns whether a channel for asyncio has no connection now."""
    return channel.get_state() is not grpc.ChannelConnectivity.READY


def _credentials(target: Target) -> grpc.ChannelCredentials | None:
    if not target.tls:
        return None
    tls = target.tls if isinstance(target.tls, Tls) else Tls()
    return grpc.ssl_channel_credentials(*tls.read())
