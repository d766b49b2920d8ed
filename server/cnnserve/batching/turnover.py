"""Decides how long a free instance waits for new requests of the clients that were just answered.

A run of n images takes a fixed time (AlexNet, for example, reads all its weights from memory once per run) and a time
for each image. If clients send requests in a loop, the end of a batch answers them all, and their next requests arrive
together a moment later. The first of these would run alone and the others in a second run, which costs the fixed time
again. One run instead of two saves exactly the fixed time.

So a free instance waits for the fixed time after a run. It waits only if clients lately sent new requests that fast,
and only until as many requests have arrived as were answered. Each request that arrives shows that the others are on
their way, but the server needs time to read them. So each request that arrives during the wait moves the end of the
wait to at least half the fixed time after its own arrival. The whole wait is at most four times the fixed time. The
fixed time of ResNet-18 is so small that its instances do not wait.
"""

import math

# The timers of the event loop have a resolution of 1 ms.
_SHORTEST_NS = 1_000_000
_SMOOTHING = 0.2
# An instance waits only if clients followed at least this share of the answered requests with a new request in time.
# Otherwise waiting does not pay.
_ENOUGH_COME_BACK = 0.5
# Shares of the next run's time: instances begin to wait if the fixed time is at least `_BEGIN` of it, and stop waiting
# if it is less than `_END`. The two differ because measured times vary and each change makes some clients wait twice.
_BEGIN, _END = 0.05, 0.035
# Disturbances only lengthen a run, so the shortest run of each size counts. Each further run raises the stored time by
# at most this factor, so that a machine that has become slower is noticed after some runs.
_DRIFT = 1.01
# In multiples of the fixed time: how long the wait lasts at least after each arrival, and the longest whole wait.
_FOR_EACH, _LONGEST = 0.5, 4


class Turnover:
    """Learns from every run until when a free instance waits. Times are in ns of one clock. Use it on one thread.

    `hold_until_ns` is the end of the wait; 0: no wait.
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
        """Learns from a run of `size` images that answers `answered` requests; `waiting` images are in the queue."""
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
        """Counts a request that has arrived. The last request that the instance waits for ends the wait."""
        if now_ns > self._window_ends_ns:
            return
        self._back += 1
        longest_ns = self._answered_ns + round(_LONGEST * self._fixed_ns)
        self._window_ends_ns = min(longest_ns, max(self._window_ends_ns, now_ns + round(_FOR_EACH * self._fixed_ns)))
        if self.hold_until_ns:
            # Wait for all of them: a late request would run alone and take twice as long as the others.
            self.hold_until_ns = 0 if self._back >= self._answered else self._window_ends_ns

    def line(self) -> tuple[float, float]:
        """Returns a run's fixed time and its time for each image (ns), from the smallest and the largest size seen.

        Returns 0 for both if the two sizes are too close.
        """
        small, large = min(self._run_ns, default=0), max(self._run_ns, default=0)
        # If two sizes are close, the difference of their times is mostly noise.
        if large < 2 * small or not small:
            return 0.0, 0.0
        image_ns = (self._run_ns[large] - self._run_ns[small]) / (large - small)
        # If other work disturbed one of the two runs, the difference may be too small or too large.
        image_ns = min(max(0.0, image_ns), self._run_ns[small] / small)
        return max(0.0, self._run_ns[small] - image_ns * small), image_ns

    def _learn(self, size: int, duration_ns: int) -> None:
        self._run_ns[size] = min(duration_ns, self._run_ns.get(size, math.inf) * _DRIFT)
        if self._answered:
            came_back = min(1.0, self._back / self._answered)
            self._learned += 1
            self._share += max(_SMOOTHING, 1 / self._learned) * (came_back - self._share)
