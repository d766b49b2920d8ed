"""A queue, its instances and the policy, in simulated time: what an open loop of requests would get."""

import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from cnnserve.batching.policy import BatchPolicy, Dispatch, next_action
from cnnserve.batching.target import Target


@dataclass(frozen=True)
class Request:
    arrived_ns: int
    size: int = 1
    deadline_ns: int | None = None


@dataclass
class Outcome:
    """Latencies of the answered requests (ns), times until a refusal (ns), and the sizes of the batches."""

    latencies_ns: list[int] = field(default_factory=list)
    refused_after_ns: list[int] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)

    def within(self, limit_ns: float) -> int:
        return sum(latency <= limit_ns for latency in self.latencies_ns)


def poisson(rate: float, count: int, seed: int) -> list[int]:
    """Arrivals in ns at `rate` per second."""
    chance = random.Random(seed)
    return [round(at * 1e9) for at in itertools.accumulate(chance.expovariate(rate) for _ in range(count))]


class Queue:
    """Does in simulated time what the batcher does with its event loop."""

    def __init__(self, policy: BatchPolicy, run_ns: Callable[[int], int], instances: int = 1) -> None:
        self._policy = policy
        self._run_ns = run_ns
        self._instances = instances
        self._target = Target(policy.target_ms, policy.max_batch_size) if policy.target_ms else None
        self._waiting: deque[Request] = deque()
        # End, an order for equal ends, start and requests of each run.
        self._running: list[tuple[int, int, int, list[Request]]] = []
        self._number = itertools.count()
        self.outcome = Outcome()

    def serve(self, arrivals: Sequence[int]) -> Outcome:
        for now_ns in arrivals:
            self._advance(now_ns)
            self._arrive(Request(now_ns))
            self._dispatch(now_ns)
        self._advance(None)
        return self.outcome

    def _advance(self, until_ns: int | None) -> None:
        while self._running and (until_ns is None or self._running[0][0] <= until_ns):
            end_ns, _, start_ns, batch = heapq.heappop(self._running)
            if self._target is not None:
                self._target.times.learn(len(batch), end_ns - start_ns)
            self.outcome.latencies_ns += [end_ns - request.arrived_ns for request in batch]
            self._dispatch(end_ns)

    def _arrive(self, request: Request) -> None:
        full = len(self._waiting) >= self._policy.queue.max_queue_size
        if full or (self._target is not None and self._is_hopeless(self._target, request)):
            self.outcome.refused_after_ns.append(0)
        else:
            self._waiting.append(request)

    def _is_hopeless(self, target: Target, request: Request) -> bool:
        now_ns = free_ns = request.arrived_ns
        if len(self._running) == self._instances:
            free_ns = max(now_ns, min(start + target.run_ns(len(batch)) for _, _, start, batch in self._running))
        return target.is_hopeless(request, len(self._waiting) + 1, self._instances, free_ns)

    def _dispatch(self, now_ns: int) -> None:
        while self._waiting and len(self._running) < self._instances:
            first = self._waiting[0]
            if self._target is not None and self._target.is_too_late(first, now_ns, len(self._waiting)):
                self._waiting.popleft()
                self.outcome.refused_after_ns.append(now_ns - first.arrived_ns)
                continue
            action = next_action(self._policy, self._waiting, now_ns, 0, self._target)
            assert isinstance(action, Dispatch)
            batch = [self._waiting.popleft() for _ in range(action.count)]
            self.outcome.batches.append(len(batch))
            end_ns = now_ns + self._run_ns(len(batch))
            heapq.heappush(self._running, (end_ns, next(self._number), now_ns, batch))
