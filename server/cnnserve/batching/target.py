"""A latency target: which batches still meet it, and which requests no longer can. A pure function of learned times.

Rules:

1. A request is due at its arrival plus the target or, if that is earlier, at its deadline. A limit that its run alone
   would exceed does not count: otherwise a target below the time of one run, or times that were learned while other
   work disturbed the machine, would have the server refuse everything, and learn nothing from it.
2. A batch grows while its run is expected to end before the first of its requests is due (in `policy`).
3. A request is refused when it arrives, before its images are decoded, if it is due before the requests in front of it
   and it could be computed. This rule alone also counts for models without a target, whose requests have deadlines.
4. A request is refused in the queue as soon as its run alone would end after it is due.
5. If a full batch waits, a request for which the run of a full batch would end too late is refused. Otherwise it would
   allow only a small batch, the requests behind it would wait for longer and allow only small batches, too, and models
   whose runs have a large fixed time would lose most of their throughput, just when they need it.

A batch is full at the largest size of which two runs fit into the target: a request that arrives when a run begins
waits for this run and is computed in the next one.
"""

from bisect import bisect_right

from cnnserve.batching.policy import NEVER_NS, Waiting
from cnnserve.batching.run_times import RunTimes

# Of the target: for what is not part of a run, such as the other work of the event loop.
_MARGIN = 0.05


class Target:
    """Answers that come later than `target_ms` after their requests joined the queue are of no use.

    0: there is no target, only deadlines.
    """

    def __init__(self, target_ms: float, max_batch_size: int) -> None:
        self._has_target = target_ms > 0
        self._target_ns = round(target_ms * 1e6 * (1 - _MARGIN)) if self._has_target else NEVER_NS
        self._max_batch_size = max_batch_size
        self.times = RunTimes()

    def run_ns(self, rows: int) -> int:
        """Returns a time that a run of `rows` rarely exceeds; 0 before the first run.

        Without a target it is the usual time: a request that might be answered in time after all is not refused.
        """
        return self.times.longest(rows) if self._has_target else round(self.times.usual(rows))

    def due_ns(self, entry: Waiting) -> int:
        """Returns until when the run of a request has to end; `NEVER_NS` if no limit counts (rule 1)."""
        soonest_ns = entry.arrived_ns + self.run_ns(entry.size)
        limits = (entry.arrived_ns + self._target_ns, NEVER_NS if entry.deadline_ns is None else entry.deadline_ns)
        return min((limit for limit in limits if soonest_ns <= limit), default=NEVER_NS)

    def full_batch(self) -> int:
        """Returns the size at which a batch is full: at least 1, at most the model's maximum."""
        sizes = range(1, self._max_batch_size + 1)
        return max(1, bisect_right(sizes, self._target_ns, key=lambda size: 2 * self.run_ns(size)))

    def is_too_late(self, entry: Waiting, now_ns: int, rows: int) -> bool:
        """Returns whether the first request of a queue of `rows` must be refused (rules 4 and 5)."""
        full = self.full_batch()
        return now_ns + self.run_ns(max(entry.size, full if rows >= full else 1)) > self.due_ns(entry)

    def is_safe(self, entry: Waiting, rows: int) -> bool:
        """Returns whether a request meets its limits even if `rows` rows run before its end, each in a run of its own.

        It takes less time to find out than `is_hopeless` does.
        """
        return entry.arrived_ns + rows * self.run_ns(1) <= self.due_ns(entry)

    def is_hopeless(self, entry: Waiting, rows: int, instances: int, free_ns: int) -> bool:
        """Returns whether a request that arrives must be refused (rule 3).

        `rows`: those in the queue and its own; `free_ns`: when the first of the instances is free.
        """
        # Runs cost a fixed time and a time for each row, so the fewest runs take the least time.
        runs = -(-rows // (self._max_batch_size * instances))
        return free_ns + runs * self.run_ns(-(-rows // (runs * instances))) > self.due_ns(entry)
