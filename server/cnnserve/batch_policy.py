"""When to run a batch, and how large: a pure decision over what waits and the clock.

Rules, in this order:

1. Nothing waits: nothing to do.
2. Entries leave in order. One that does not fit into what is left of a batch closes the batch; none is split.
3. A batch that cannot grow any more is dispatched at once.
4. A preferred size that can be made exactly from the front of the queue is dispatched at once.
5. Otherwise the oldest entry waits at most the queue delay (default 0), counted from its arrival; then all that fits
   goes.

The policy is asked only while an instance is free, so with delay 0 an idle instance never waits and batches form by
themselves under load.
"""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class BatchPolicy:
    """The `dynamic_batching` settings. Sizes count images."""

    max_batch_size: int
    preferred_batch_sizes: tuple[int, ...] = ()
    max_queue_delay_us: int = 0
    max_queue_size: int = 256
    default_timeout_us: int = 0


@dataclass(frozen=True)
class Waiting:
    """What the policy sees of a queued entry: its images and when it arrived (ns)."""

    size: int
    arrived_ns: int


@dataclass(frozen=True)
class Dispatch:
    """Run the first `count` entries now."""

    count: int


@dataclass(frozen=True)
class Wait:
    """Ask again at `until_ns`, or when something arrives before that; None: only then."""

    until_ns: int | None


def next_action(policy: BatchPolicy, queue: Iterable[Waiting], now_ns: int) -> Dispatch | Wait:
    """The decision for the entries in leaving order, given that an instance is free."""
    total = count = preferred_count = 0
    oldest_ns: int | None = None
    full = False
    for entry in queue:
        if total + entry.size > policy.max_batch_size:
            full = True
            break
        total += entry.size
        count += 1
        oldest_ns = entry.arrived_ns if oldest_ns is None else min(oldest_ns, entry.arrived_ns)
        if total in policy.preferred_batch_sizes:
            preferred_count = count
        if total == policy.max_batch_size:
            full = True
            break
    if oldest_ns is None:
        return Wait(None)
    if full and not preferred_count:
        return Dispatch(count)
    if preferred_count:
        return Dispatch(preferred_count)
    due_ns = oldest_ns + policy.max_queue_delay_us * 1000
    return Dispatch(count) if now_ns >= due_ns else Wait(due_ns)
