"""Who was just answered often asks again at once: how long a free instance waits for them, if at all.

A run over n images takes a fixed time (an AlexNet streams its weights through the cores once a run) and a time for each
image. Where callers keep sending, a batch that ends answers them all, and their next requests come in a bunch a moment
later: the first of them would run alone, and every run costs the fixed time again. Two runs made one save just that.
So after a run a free instance waits at most the fixed time, only while those it answered have lately come back so
fast, and not longer than until they are back. A ResNet-18 has little fixed time, and nobody waits.
"""

import math

# Timers of the event loop go by the millisecond.
_SHORTEST_NS = 1_000_000
_SMOOTHING = 0.2
# Of those answered: with fewer coming back in time, waiting is not for them.
_ENOUGH_COME_BACK = 0.5
# Of the next run's time: the fixed time from which waiting begins and below which it ends. Measured times waver, and
# every change of habit makes some callers wait twice.
_BEGIN, _END = 0.1, 0.07


class Turnover:
    """Learns from every run; all times in ns of one clock. Use on one thread.

    `hold_until_ns` is until when a free instance waits; 0: it does not.
    """

    def __init__(self) -> None:
        self._run_ns: dict[int, float] = {}
        self._share = 0.0
        self._answered = 0
        self._back = 0
        self._window_ends_ns = 0
        self._saves = False
        self.hold_until_ns = 0

    def ran(self, size: int, duration_ns: int, answered: int, waiting: int, now_ns: int) -> None:
        """A run of `size` images has ended; `answered` requests are told so now, `waiting` images are in the queue."""
        self._learn(size, duration_ns)
        fixed_ns, image_ns = self.line()
        share_of_run = _END if self._saves else _BEGIN
        self._saves = fixed_ns >= max(_SHORTEST_NS, share_of_run * (fixed_ns + image_ns * (size + waiting)))
        self._answered = answered
        self._back = 0
        self._window_ends_ns = now_ns + round(fixed_ns)
        waits = self._saves and self._share >= _ENOUGH_COME_BACK
        self.hold_until_ns = self._window_ends_ns if waits else 0

    def arrived(self, now_ns: int) -> None:
        """A request has come; with the last one that is waited for, the wait ends."""
        if now_ns <= self._window_ends_ns:
            self._back += 1
            if self._back >= math.ceil(self._share * self._answered):
                self.hold_until_ns = 0

    def line(self) -> tuple[float, float]:
        """A run's fixed time and its time for each image (ns), from the smallest and the largest size seen."""
        small, large = min(self._run_ns, default=0), max(self._run_ns, default=0)
        if small == large:
            return 0.0, 0.0
        image_ns = (self._run_ns[large] - self._run_ns[small]) / (large - small)
        # Where other work disturbed one of the two, neither is less than nothing.
        image_ns = min(max(0.0, image_ns), self._run_ns[small] / small)
        return max(0.0, self._run_ns[small] - image_ns * small), image_ns

    def _learn(self, size: int, duration_ns: int) -> None:
        before = self._run_ns.get(size, float(duration_ns))
        self._run_ns[size] = before + _SMOOTHING * (duration_ns - before)
        if self._answered:
            came_back = min(1.0, self._back / self._answered)
            self._share += _SMOOTHING * (came_back - self._share)
