"""Classifies many files with one model. Only the files that the stream needs next are in memory."""

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing

from cnnserve_client import limits
from cnnserve_client.client import Client
from cnnserve_client.errors import InvalidInputError
from cnnserve_client.images import read_file
from cnnserve_client.results import ImageResult

from . import sources


def classify_files(
    client: Client, entries: Iterable[sources.Entry], *, model: str, version: str, top_k: int
) -> Generator[tuple[str, ImageResult]]:
    """Yields the name and the result of each file, in order. If a file cannot be read or decoded, its result says so.

    Raises:
        CnnserveError: the model does not exist, it has no READY version, or no server responded.
    """
    largest = limits.of(client.get_model(model), version, client.max_message_bytes).largest_image
    names: deque[str] = deque()

    def images() -> Iterator[bytes | ImageResult]:
        for entry in entries:
            names.append(entry.name)
            try:
                yield sources.read(entry, largest, read_file)
            except InvalidInputError as error:
                yield ImageResult(error=error)

    with closing(client.classify_many(images(), model=model, version=version, top_k=top_k)) as results:
        for result in results:
            yield names.popleft(), result
