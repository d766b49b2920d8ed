"""What the server does when the operating system sends it a signal."""

import asyncio
import logging
import os
import signal
from collections.abc import Callable
from functools import partial

_log = logging.getLogger(__name__)

_ENDING = (signal.SIGTERM, signal.SIGINT)
# A terminal and a program between it and the server (`timeout`, `make`) may both send the signal of one Ctrl-C.
_SAME_S = 0.1


def watch(drain: Callable[[], None], look: Callable[[], None]) -> None:
    """Lets the running event loop handle the signals of the process from now on.

    SIGTERM and SIGINT call `drain`; the second of them ends the process at once, with the status 128 + its number.
    SIGHUP calls `look`, or `drain` if standard input was a terminal: that terminal was closed. If the process was
    started with SIGHUP ignored (nohup), it stays ignored.
    """
    loop = asyncio.get_running_loop()
    ending = _Ending(loop, drain)
    for number in _ENDING:
        _handle(loop, number, partial(ending.received, number))
    if not hasattr(signal, "SIGHUP"):
        return
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        # Asked now, because a terminal that is closed is none any more.
        on_terminal = os.isatty(0)
        _handle(loop, signal.SIGHUP, partial(ending.received, signal.SIGHUP) if on_terminal else look)


def _handle(loop: asyncio.AbstractEventLoop, number: signal.Signals, act: Callable[[], None]) -> None:
    try:
        loop.add_signal_handler(number, act)
    except NotImplementedError:
        # On Windows, event loops handle no signals.
        signal.signal(number, lambda *_: loop.call_soon_threadsafe(act))


class _Ending:
    def __init__(self, loop: asyncio.AbstractEventLoop, drain: Callable[[], None]) -> None:
        self._loop = loop
        self._drain = drain
        self._first: float | None = None

    def received(self, number: signal.Signals) -> None:
        if self._first is None:
            self._first = self._loop.time()
            self._drain()
        elif self._loop.time() - self._first > _SAME_S:
            _log.warning("second signal (%s): the server ends at once, without its requests in flight", number.name)
            logging.shutdown()
            os._exit(128 + number)
