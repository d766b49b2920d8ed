"""Shares work fairly: jobs of several clients, whose order depends on what each job costs. Pure, without a clock.

Every job belongs to a path, such as (address, connection, request). At each level the paths share the work equally:

1. A job's tag is the work that its path has had before, plus the job's cost. The job with the smallest tag leaves next.
   So a small job leaves before a large one.
2. A path that was empty starts at the tag of the job that left last: nobody saves up work for later.
3. A waiting job keeps its tag, and the tags of later jobs grow. So a large job waits until the others have had as much
   work as it costs, and no longer.
4. Of paths with equal tags, the one that has waited longest since its last job comes first.

This is self-clocked fair queueing, applied to each level.
"""

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")
Path = tuple[Hashable, ...]


@dataclass(slots=True)
class _Node(Generic[T]):
    """One part of a path. `start` counts the work it has had, on its parent's clock; `clock` is that of its children.

    `head` is the cost of the job that leaves next; None: it is not known.
    """

    start: float
    clock: float = 0.0
    head: float | None = None
    best: "tuple[Hashable, _Node[T]] | None" = None
    children: "dict[Hashable, _Node[T]]" = field(default_factory=dict)
    jobs: deque[tuple[float, T]] = field(default_factory=deque)

    def look(self) -> float:
        """Returns the cost of the job that leaves next. There has to be one."""
        if self.head is None:
            if self.jobs:
                self.head = self.jobs[0][0]
            else:
                self.best = min(self.children.items(), key=lambda item: item[1].tag())
                self.head = self.best[1].look()
        return self.head

    def tag(self) -> float:
        """Returns the tag of the job that leaves next."""
        return self.start + self.look()


class FairQueue(Generic[T]):
    """Jobs by path. All paths have the same length."""

    def __init__(self) -> None:
        self._root: _Node[T] = _Node(0.0)
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def put(self, path: Path, cost: float, job: T) -> None:
        """Adds a job behind all others of its path. `cost` is above 0, in any unit."""
        node = self._root
        node.head = None
        for part in path:
            child = node.children.get(part)
            if child is None:
                child = node.children[part] = _Node(node.clock)
            node = child
            node.head = None
        node.jobs.append((cost, job))
        self._size += 1

    def pop(self) -> T:
        """Removes and returns the job that leaves next. Raises `IndexError` if there is none."""
        if not self._size:
            raise IndexError("the queue is empty")
        cost = self._root.look()
        nodes, node = [self._root], self._root
        keys: list[Hashable] = []
        while node.best is not None:
            key, child = node.best
            # It comes last among equals from now on: `min` takes the first.
            node.children[key] = node.children.pop(key)
            child.start += cost
            node.clock = max(node.clock, child.start)
            keys.append(key)
            nodes.append(child)
            node = child
        job = node.jobs.popleft()[1]
        self._size -= 1
        self._forget(nodes, keys)
        return job

    def remove(self, path: Path) -> list[T]:
        """Removes all jobs of a path and returns them."""
        nodes = self._nodes(path)
        if len(nodes) <= len(path):
            return []
        jobs = [job for _, job in nodes[-1].jobs]
        nodes[-1].jobs.clear()
        self._size -= len(jobs)
        self._forget(nodes, list(path))
        return jobs

    def charge(self, path: Path, cost: float) -> None:
        """Counts work that a job of the path turned out to cost beyond its estimate, as far as its path still waits."""
        for node in self._nodes(path):
            node.start += cost
            node.head = node.best = None

    def _nodes(self, path: Path) -> list[_Node[T]]:
        """Returns the nodes of a path from the root on, as far as they exist."""
        nodes = [self._root]
        for part in path:
            child = nodes[-1].children.get(part)
            if child is None:
                break
            nodes.append(child)
        return nodes

    def _forget(self, nodes: list[_Node[T]], keys: list[Hashable]) -> None:
        """Drops what the nodes of a path have stored, and the nodes that are empty."""
        for node in nodes:
            node.head = node.best = None
        for parent, key, node in reversed(list(zip(nodes, keys, nodes[1:], strict=False))):
            if not node.jobs and not node.children:
                del parent.children[key]
