"""A session behind buffers that were allocated and bound before the first request, one set a batch size."""

from collections.abc import Sequence

from cnnserve.datatypes import Rows
from cnnserve.runtime.session import Session


class BoundRunner:
    """Runs batches of the bound sizes through their buffers, any other as the session does. One thread at a time."""

    def __init__(self, session: Session, sizes: Sequence[int], *, pinned: bool = False) -> None:
        self._session = session
        self._bindings = {size: session.bind(size, pinned=pinned) for size in sizes}

    def buffer(self, size: int) -> Rows | None:
        """Where a batch of `size` rows is best put together."""
        binding = self._bindings.get(size)
        return None if binding is None else binding.host

    def run(self, batch: Rows) -> list[Rows]:
        """All outputs for one batch, in memory of their own. Raises `InferenceFailed`."""
        binding = self._bindings.get(len(batch))
        return self._session.run(batch) if binding is None else binding.run(batch)
