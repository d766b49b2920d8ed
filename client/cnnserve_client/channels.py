"""Creates the gRPC channels of a client, blocking or for asyncio: as many for each address as it has `connections`."""

import asyncio as aio
import contextlib
import queue

import grpc

from .security import Tls
from .target import Target

_STATE_S = 1.0
# gRPC ends a call on one thread and tells that its connection has ended on another, a moment later.
_LATE_S = 0.1


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
    """Returns whether a blocking channel has lost its connection. Blocks until gRPC has told, for 1 s at most."""
    states: queue.SimpleQueue[grpc.ChannelConnectivity] = queue.SimpleQueue()
    tell = states.put
    channel.subscribe(tell)
    try:
        wait_s = _STATE_S
        while states.get(timeout=wait_s) is grpc.ChannelConnectivity.READY:
            wait_s = _LATE_S
    except queue.Empty:
        return wait_s == _STATE_S
    finally:
        channel.unsubscribe(tell)
    return True


async def has_ended_for_asyncio(channel: grpc.aio.Channel) -> bool:
    """Returns whether a channel for asyncio has lost its connection. Waits for 0.1 s at most."""
    state = channel.get_state()
    if state is not grpc.ChannelConnectivity.READY:
        return True
    with contextlib.suppress(TimeoutError):
        await aio.wait_for(channel.wait_for_state_change(state), _LATE_S)
        return True
    return False


def _credentials(target: Target) -> grpc.ChannelCredentials | None:
    if not target.tls:
        return None
    tls = target.tls if isinstance(target.tls, Tls) else Tls()
    return grpc.ssl_channel_credentials(*tls.read())
