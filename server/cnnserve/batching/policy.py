"""When to run a batch, and how large: a pure decision over what waits and the clock.

Rules, in this order:

1. Nothing waits: nothing to do.
2. Entries leave in order. One that does not fit into what is left of a batch closes the batch; none is split.
3. A preferred size that can be made exactly from the front of the queue is dispatched at once, the largest first.
4. A batch that cannot grow any more is dispatched at once.
5. Otherwise the oldest entry waits at most the queue delay (default 0), counted from its arrival, or until the hold
   ends that `turnover` puts on a model whose callers come back in bunches; none waits longer than half the time it has
   until its deadline; then all that fits goes.

The policy is asked only while an instance is free, so with delay 0 and no hold an idle instance never waits and batches
form by themselves under load.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True)
class QueuePolicy:
    """How long entries of one priority may wait, and how many. Sizes count images; a timeout of 0 means none.

    `delay_expired`: an entry past the timeout is not refused but waits behind all others. `timeout_override`: a request
    may bring a shorter timeout of its own.
    """

    max_queue_size: int = 256
    default_timeout_us: int = 0
    delay_expired: bool = False
    timeout_override: bool = False


@dataclass(frozen=True)
class BatchPolicy:
    """The `dynamic_batching` settings. Sizes count images; priority 1 leaves first."""

    max_batch_size: int
    preferred_batch_sizes: tuple[int, ...] = ()
    max_queue_delay_us: int = 0
    queue: QueuePolicy = QueuePolicy()
    priority_levels: int = 1
    default_priority: int = 1
    priority_queues: dict[int, QueuePolicy] = field(default_factory=dict)
    preserve_ordering: bool = False

    def level(self, priority: int) -> int:
        """The queue for a request's priority; 0 and what is no level mean the default, as in Triton."""
        return priority if 1 <= priority <= self.priority_levels else self.default_priority

    def queue_policy(self, level: int) -> QueuePolicy:
        """What holds for one level."""
        return self.priority_queues.get(level, self.queue)


class Waiting(Protocol):
    """What the policy sees of a queued entry: its images, when it arrived and when it is too late (ns)."""

    @property
    def size(self) -> int: ...  # noqa: D102

    @property
    def arrived_ns(self) -> int: ...  # noqa: D102

    @property
    def deadline_ns(self) -> int | None: ...  # noqa: D102


@dataclass(frozen=True)
class Dispatch:
    """Run the first `count` entries now."""

    count: int


@dataclass(frozen=True)
class Wait:
    """Ask again at `until_ns`, or when something arrives before that; None: only then."""

    until_ns: int | None


def next_action(policy: BatchPolicy, queue: Iterable[Waiting], now_ns: int, hold_until_ns: int = 0) -> Dispatch | Wait:
    """The decision for the entries in leaving order, given that an instance is free; `hold_until_ns`: see rule 5."""
    total = count = preferred_count = 0
    due_ns: int | None = None
    full = False
    for entry in queue:
        # One that is too large for any batch, which only admission can prevent, still goes, alone: it must not block.
        if count and total + entry.size > policy.max_batch_size:
            full = True
            break
        total += entry.size
        count += 1
        due_ns = _earlier(due_ns, _latest_start(policy, entry, hold_until_ns))
        if total in policy.preferred_batch_sizes:
            preferred_count = count
        if total >= policy.max_batch_size:
            full = True
            break
    if due_ns is None:
        return Wait(None)
    if preferred_count or full:
        return Dispatch(preferred_count or count)
    return Dispatch(count) if now_ns >= due_ns else Wait(due_ns)


def _latest_start(policy: BatchPolicy, entry: Waiting, hold_until_ns: int) -> int:
    due_ns = max(entry.arrived_ns + policy.max_queue_delay_us * 1000, hold_until_ns)
    if entry.deadline_ns is None:
        return due_ns
    return min(due_ns, (entry.arrived_ns + entry.deadline_ns) // 2)


def _earlier(one: int | None, other: int) -> int:
    return other if one is None else min(one, other)
