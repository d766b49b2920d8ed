"""Asks a version on a running server, with `classify_many`."""

from collections.abc import Generator, Iterable, Sequence
from contextlib import closing

from cnnserve_client import limits
from cnnserve_client.client import Client
from cnnserve_client.commands.files import classify_files
from cnnserve_client.commands.sources import Entry
from cnnserve_client.errors import InvalidInputError
from cnnserve_client.results import ImageResult, Timings

from .runner import Latency, Subject, measure


class RemoteRunner:
    """The version of a model on a server. `version`: a number or a label; "": the newest READY version.

    The version is chosen once, so that a version that comes or goes during the run cannot mix two models. Raises
    `CnnserveError`.
    """

    def __init__(self, client: Client, model: str, version: str) -> None:
        self._client = client
        self._info = client.get_model(model)
        chosen = limits.newest(limits.ready_versions(self._info, version))
        if not chosen.accepts_images:
            raise InvalidInputError(
                f"model {model} version {chosen.version} takes no images: publish it with cnnserve export or import"
            )
        self.subject = Subject(model, chosen.version, chosen.labels, chosen.class_count, chosen.self_test)

    def results(self, entries: Iterable[Entry], top_k: int) -> Generator[ImageResult]:
        """Yields the result of each image, see `Runner`."""
        subject = self.subject
        found = classify_files(self._client, entries, model=subject.model, version=subject.version, top_k=top_k)
        with closing(found):
            for _, result in found:
                yield result

    def latency(self, entries: Sequence[Entry]) -> Latency | None:
        """Measures requests from this process to the server and back, see `Runner`."""
        largest = limits.of(self._info, self.subject.version, self._client.max_message_bytes).largest_image
        return measure(entries, largest, self._ask)

    def _ask(self, data: bytes) -> Timings | None:
        found = self._client.classify([data], model=self.subject.model, version=self.subject.version)
        return found.timings if found.results[0].ok else None
