"""Returns memory that models have freed to the operating system.

The C library keeps freed memory: every load runs on a new thread, and the arena of that thread remains, partly unused.
After 60 reloads of ResNet-18, a process held 250 to 550 MiB, of which 115 MiB were in use.
"""

import asyncio
import ctypes

from cnnserve.process.threads import on_thread

# The memory of an unloaded model is free only after the threads of its instances have ended.
_DELAY_S = 0.2


# The number of mallopt's parameter, from malloc.h.
_M_ARENA_MAX = -8


def limit_arenas(count: int) -> None:
    """Limits the C library to `count` arenas (its own limit is 8 per core). Call it before threads start.

    Every load runs on a new thread: 200 reloads of LeNet-5 made a process 6 % larger with the library's own limit, and
    no larger with 2 arenas. If the C library is not glibc, nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, count)


def return_soon() -> None:
    """Calls `trim` on a thread after 0.2 s. Call it after a model was loaded, failed to load or was unloaded."""
    asyncio.get_running_loop().call_later(_DELAY_S, on_thread, trim, "trim")


def trim() -> None:
    """Returns free memory to the operating system. Blocks for about 10 ms. Without glibc, nothing happens."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)
