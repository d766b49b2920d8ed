"""Who was just answered often asks again at once: how long a free instance waits for them, if at all.

A run over n images takes a fixed time (an AlexNet streams its weights through the cores once a run) and a time for each
image. Where callers keep sending, a batch that ends answers them all, and their next requests come in a bunch a moment
later: the first of them would run alone, and every run costs the fixed time again. Two runs made one save just that.
So after a run a free instance waits the fixed time, only while those it answered have lately come back so fast, and not
longer than until they are back. Each one that comes shows that the others are on their way, which take time to read: it
lengthens the wait by half the fixed time, up to four of them. A ResNet-18 has little fixed time, and nobody waits.
"""

import math

# Timers of the event loop go by the millisecond.
_SHORTEST_NS = 1_000_000
_SMOOTHING = 0.2
# Of those answered: with fewer coming back in time, waiting is not for them.
_ENOUGH_COME_BACK = 0.5
# Of the next run's time: the fixed time from which waiting begins and below which it ends. Measured times waver, and
# every change of habit makes some callers wait twice.
_BEGIN, _END = 0.05, 0.035
# What disturbs a run only lengthens it, so the shortest one counts; a machine that became slower shows within a while.
_DRIFT = 1.01
# In fixed times: what each arrival adds to the wait, and the longest wait.
_FOR_EACH, _LONGEST = 0.5, 4


class Turnover:
    """Learns from every run; all times in ns of one clock. Use on one thread.

    `hold_until_ns` is until when a free instance waits; 0: it does not.
    """

    def __init__(self) -> None:
        self._run_ns: dict[int, float] = {}
        self._share = 0.0
        self._learned = 0
        self._answered = 0
        self._back = 0
        self._fixed_ns = 0.0
        self._answered_ns = 0
        self._window_ends_ns = 0
        self._saves = False
        self.hold_until_ns = 0

    def ran(self, size: int, duration_ns: int, answered: int, waiting: int, now_ns: int) -> None:
        """A run of `size` images has ended; `answered` requests are told so now, `waiting` images are in the queue."""
        self._learn(size, duration_ns)
        self._fixed_ns, image_ns = self.line()
        share_of_run = _END if self._saves else _BEGIN
        next_run_ns = self._fixed_ns + image_ns * (size + waiting)
        self._saves = self._fixed_ns >= max(_SHORTEST_NS, share_of_run * next_run_ns)
        self._answered = answered
        self._back = 0
        self._answered_ns = now_ns
        self._window_ends_ns = now_ns + round(self._fixed_ns)
        waits = self._saves and self._share >= _ENOUGH_COME_BACK
        self.hold_until_ns = self._window_ends_ns if waits else 0

    def arrived(self, now_ns: int) -> None:
        """A request has come; with the last one that is waited for, the wait ends."""
        if now_ns > self._window_ends_ns:
            return
        self._back += 1
        longest_ns = self._answered_ns + round(_LONGEST * self._fixed_ns)
        self._window_ends_ns = min(longest_ns, max(self._window_ends_ns, now_ns + round(_FOR_EACH * self._fixed_ns)))
        if self.hold_until_ns:
            # All of them: one that is late would run alone, in twice the time of the others.
            self.hold_until_ns = 0 if self._back >= self._answered else self._window_ends_ns

    def line(self) -> tuple[float, float]:
        """A run's fixed time and its time for each image (ns), from the smallest and the largest size seen."""
        small, large = min(self._run_ns, default=0), max(self._run_ns, default=0)
        # Two sizes that are close tell their noise.
        if large < 2 * small or not small:
            return 0.0, 0.0
        image_ns = (self._run_ns[large] - self._run_ns[small]) / (large - small)
        # Where other work disturbed one of the two, neither is less than nothing.
        image_ns = min(max(0.0, image_ns), self._run_ns[small] / small)
        return max(0.0, self._run_ns[small] - image_ns * small), image_ns

    def _learn(self, size: int, duration_ns: int) -> None:
        self._run_ns[size] = min(duration_ns, self._run_ns.get(size, math.inf) * _DRIFT)
        if self._answered:
            came_back = min(1.0, self._back / self._answered)
            self._learned += 1
            self._share += max(_SMOOTHING, 1 / self._learned) * (came_back - self._share)
