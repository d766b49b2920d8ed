"""Self-tests of a version that serves: the runs that did not fit into its load, and repetitions after bad rows."""

import logging
from collections.abc import Callable

from cnnserve.batching.row_check import SUSPECT_AFTER
from cnnserve.errors import ModelLoadFailed
from cnnserve.model.passing import may_pass
from cnnserve.process.threads import on_thread

_log = logging.getLogger(__name__)

# Takes a version out of service, for the given reason. Called on the event loop.
TakeOut = Callable[[str], None]


class Retest:
    """Runs `test` on a thread of its own, through the version's instances, beside their requests.

    `test` raises `ModelLoadFailed` if the version fails; None: the version has no self-test, so there is nothing to do.
    Only such a failure takes the version out, and only if it is the version's own: too little memory is not. Use it on
    the event loop.
    """

    def __init__(self, name: str, test: Callable[[], object] | None, take_out: TakeOut) -> None:
        self._name = name
        self._test = test
        self._take_out = take_out
        self._running = False

    def suspect(self) -> None:
        """Repeats the self-test, unless one is under way."""
        if self._test is not None and not self._running:
            _log.warning(
                "%s returned %d bad rows in a row, so its self-test is repeated; check what its clients send",
                self._name,
                SUSPECT_AFTER,
            )
        self.rest()

    def rest(self) -> None:
        """Makes all runs of the self-test, unless that is under way."""
        if self._test is None or self._running:
            return
        self._running = True
        future = on_thread(self._failure, f"retest-{self._name}")
        future.add_done_callback(lambda done: self._end(done.result()))

    def _failure(self) -> str | None:
        """Returns why the version fails its self-test; "" if it passes, None if that was not found out."""
        try:
            if self._test is not None:
                self._test()
        except ModelLoadFailed as error:
            if not may_pass(error):
                return str(error)
            _log.warning("the self-test of %s could not be repeated: %s", self._name, str(error))
            return None
        except Exception:
            _log.exception("the self-test of %s could not be repeated", self._name)
            return None
        return ""

    def _end(self, failure: str | None) -> None:
        self._running = False
        if failure:
            self._take_out(f"it failed a self-test while it served: {failure}")
        elif failure is not None:
            _log.info("%s passed all runs of its self-test", self._name)
