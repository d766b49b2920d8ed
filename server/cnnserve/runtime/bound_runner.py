"""Runs batches in buffers that are allocated and bound before the first request, one set for each batch size."""

from collections.abc import Sequence

from cnnserve.datatypes import Rows
from cnnserve.runtime.session import Session


class BoundRunner:
    """Runs batches of the bound sizes in their buffers, and other batches as the session does.

    Use on one thread at a time.
    """

    def __init__(self, session: Session, sizes: Sequence[int], *, pinned: bool = False) -> None:
        self._runs = session.terminable()
        self._bindings = {size: session.bind(size, pinned=pinned) for size in sizes}

    def buffer(self, size: int) -> Rows | None:
        """Returns the memory in which to assemble a batch of `size` rows, or None if any memory will do."""
        binding = self._bindings.get(size)
        return None if binding is None else binding.host

    def run(self, batch: Rows) -> list[Rows]:
        """Returns all outputs for one batch, in new memory. Raises `InferenceFailed`."""
        binding = self._bindings.get(len(batch))
        return self._runs.run(batch) if binding is None else binding.run(batch)

    def terminate(self) -> None:
        """Makes the run that goes on, and later ones in the same buffers, fail soon. Thread-safe."""
        self._runs.terminate()
        for binding in self._bindings.values():
            binding.terminate()
