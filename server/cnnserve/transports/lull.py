"""Waits for a lull: a short time without new requests. If a port closes then, no client loses its response."""

import asyncio
from collections.abc import Callable

_QUIET_S = 0.1
_AT_MOST_S = 1.0


async def lull(last_arrival: Callable[[], float], deadline: float) -> None:
    """Returns 0.1 s after the last request, but at the latest after 1 s or at `deadline`.

    `deadline` and the result of `last_arrival` are times of the running event loop, in seconds.
    """
    loop = asyncio.get_running_loop()
    latest = min(deadline, loop.time() + _AT_MOST_S)
    while (wait_s := min(latest, last_arrival() + _QUIET_S) - loop.time()) > 0:  # noqa: ASYNC110 - a lull has no event
        await asyncio.sleep(wait_s)
