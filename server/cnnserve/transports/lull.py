"""Waits for a lull: a moment in which no request came, after which a port may close and cut nobody off."""

import asyncio
from collections.abc import Callable

_QUIET_S = 0.1
_AT_MOST_S = 1.0


async def lull(last_arrival: Callable[[], float], deadline: float) -> None:
    """Returns once the last request came 0.1 s ago: after 1 s, or at `deadline`, at the latest.

    `last_arrival` and `deadline` are times of the running loop.
    """
    loop = asyncio.get_running_loop()
    latest = min(deadline, loop.time() + _AT_MOST_S)
    while (wait_s := min(latest, last_arrival() + _QUIET_S) - loop.time()) > 0:  # noqa: ASYNC110 - a lull has no event
        await asyncio.sleep(wait_s)
