"""Decides when to run a batch and how many requests it takes: a pure function of the queue and the time.

Rules, in this order:

1. If the queue is empty, there is nothing to run.
2. Requests leave in order. A request that does not fit into the rest of a batch closes the batch. No request is split.
3. If the first requests of the queue have together exactly a preferred size, they are dispatched at once; if several
   preferred sizes match, the largest of them.
4. A batch that cannot grow any more is dispatched at once.
5. Otherwise every request has a latest start: its arrival plus the queue delay (default 0), or the end of the hold that
   `turnover` sets if that is later, but at most half the time from its arrival to its deadline. The earliest of these
   times dispatches all requests that fit.
6. If there is a latency target, a request with which the run would end too late for the first of the batch closes the
   batch, and the batch starts early enough to meet the target.

The policy is asked only while an instance is free. With delay 0 and no hold, an idle instance therefore never waits,
and batches form by themselves under load.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

# Later than every time of the clock.
NEVER_NS = 2**63


@dataclass(frozen=True)
class QueuePolicy:
    """How many images of one priority level may wait, and how long their requests may. A timeout of 0 means none.

    `delay_expired`: at the timeout a request is not refused, but moves behind all others. `timeout_override`: a request
    may set a shorter timeout for itself.
    """

    max_queue_size: int = 256
    default_timeout_us: int = 0
    delay_expired: bool = False
    timeout_override: bool = False


@dataclass(frozen=True)
class BatchPolicy:
    """The `dynamic_batching` settings of a model. Sizes count images; requests of priority 1 leave first."""

    max_batch_size: int
    preferred_batch_sizes: tuple[int, ...] = ()
    max_queue_delay_us: int = 0
    queue: QueuePolicy = QueuePolicy()
    priority_levels: int = 1
    default_priority: int = 1
    priority_queues: dict[int, QueuePolicy] = field(default_factory=dict)
    preserve_ordering: bool = False
    # Answers later than this are of no use; 0: all are.
    target_ms: float = 0.0

    def level(self, priority: int) -> int:
        """Returns the queue level for a request's priority. 0 and unknown levels mean the default, as in Triton."""
        return priority if 1 <= priority <= self.priority_levels else self.default_priority

    def queue_policy(self, level: int) -> QueuePolicy:
        """Returns the queue policy of one level."""
        return self.priority_queues.get(level, self.queue)


class Waiting(Protocol):
    """A queued request as the policy sees it: its number of images, its arrival and its deadline (ns)."""

    @property
    def size(self) -> int: ...  # noqa: D102

    @property
    def arrived_ns(self) -> int: ...  # noqa: D102

    @property
    def deadline_ns(self) -> int | None: ...  # noqa: D102


@dataclass(frozen=True)
class Dispatch:
    """Run the first `count` requests now."""

    count: int


@dataclass(frozen=True)
class Wait:
    """Ask again at `until_ns`, or earlier if a request arrives; None: only if a request arrives."""

    until_ns: int | None


class LatencyTarget(Protocol):
    """What rule 6 asks: until when the run of a request has to end, and how long a run of a number of rows takes."""

    def due_ns(self, entry: Waiting) -> int: ...  # noqa: D102

    def run_ns(self, rows: int) -> int: ...  # noqa: D102


def next_action(
    policy: BatchPolicy,
    queue: Iterable[Waiting],
    now_ns: int,
    hold_until_ns: int = 0,
    target: LatencyTarget | None = None,
) -> Dispatch | Wait:
    """Returns the decision for the requests of `queue`, in leaving order, if an instance is free.

    Times are in ns of one clock. `hold_until_ns` is the end of the hold in rule 5; 0: no hold.
    """
    total = count = preferred_count = 0
    due_ns, ends_ns = NEVER_NS, NEVER_NS
    full = False
    for entry in queue:
        start_ns = NEVER_NS
        if target is not None:
            ends_ns = min(ends_ns, target.due_ns(entry))
            start_ns = ends_ns - target.run_ns(total + entry.size)
        # The policy cannot refuse requests, so a request that is larger than any batch runs alone instead of blocking.
        if count and (total + entry.size > policy.max_batch_size or start_ns < now_ns):
            full = True
            break
        total += entry.size
        count += 1
        due_ns = min(due_ns, _latest_start(policy, entry, hold_until_ns), start_ns)
        if total in policy.preferred_batch_sizes:
            preferred_count = count
        if total >= policy.max_batch_size:
            full = True
            break
    if not count:
        return Wait(None)
    if preferred_count or full:
        return Dispatch(preferred_count or count)
    return Dispatch(count) if now_ns >= due_ns else Wait(due_ns)


def _latest_start(policy: BatchPolicy, entry: Waiting, hold_until_ns: int) -> int:
    due_ns = max(entry.arrived_ns + policy.max_queue_delay_us * 1000, hold_until_ns)
    if entry.deadline_ns is None:
        return due_ns
    return min(due_ns, (entry.arrived_ns + entry.deadline_ns) // 2)
