"""Many files through one model: as few requests as its limits allow, and every failure kept with its file."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .batching import Limits, batches
from .client import Client
from .errors import CnnserveError, InvalidInputError, NotFoundError, UnavailableError
from .results import Classification, ImageResult, ModelInfo, Timings


@dataclass(frozen=True)
class FilesReport:
    """What came of the files, in the order given."""

    model: str
    version: str
    """The version that answered; several, comma-separated, if the server changed it between requests."""
    timings: Timings
    """Sums over all requests."""
    results: tuple[tuple[str, ImageResult], ...]

    @property
    def failures(self) -> tuple[tuple[str, CnnserveError], ...]:
        """The files that were not classified, each with its reason."""
        return tuple((path, result.error) for path, result in self.results if result.error is not None)


def classify_files(client: Client, paths: Sequence[str], *, model: str, version: str, top_k: int) -> FilesReport:
    """Classify files in requests that fit the model's maximum batch and both sides' message limit.

    A file that cannot be read, an image that cannot be decoded and a request that fails mark their own files only.

    Raises:
        CnnserveError: before any file is sent: no server, no such model, no ready version.
    """
    limits = _limits(client.get_model(model), version, client.max_message_bytes)
    results: dict[int, ImageResult] = {}
    answers: list[Classification] = []

    def readable() -> Iterator[tuple[int, bytes]]:
        for position, path in enumerate(paths):
            try:
                yield position, _read(path, limits.largest_image)
            except InvalidInputError as error:
                results[position] = ImageResult(error=error)

    for batch in batches(readable(), lambda item: len(item[1]), limits):
        try:
            images = [data for _, data in batch]
            answers.append(client.classify(images, model=model, version=version, top_k=top_k))
            outcome = answers[-1].results
        except CnnserveError as error:
            outcome = (ImageResult(error=error),) * len(batch)
        results.update((position, result) for (position, _), result in zip(batch, outcome, strict=True))

    versions = dict.fromkeys(answer.version for answer in answers)
    return FilesReport(
        model=model,
        version=", ".join(versions) or version,
        timings=_sum([answer.timings for answer in answers]),
        results=tuple((path, results[position]) for position, path in enumerate(paths)),
    )


def _limits(model: ModelInfo, version: str, client_bytes: int) -> Limits:
    asked = [v for v in model.versions if version in ("", v.version)]
    ready = [v for v in asked if v.ready]
    if not asked:
        raise NotFoundError(f"model {model.name} has no {f'version {version}' if version else 'versions'}")
    if not ready:
        states = "; ".join(f"version {v.version} is {v.state}{f' ({v.reason})' if v.reason else ''}" for v in asked)
        raise UnavailableError(f"model {model.name} is not ready: {states}")
    return Limits(
        # The server chooses the version, so every one that it may choose must take the batch.
        images=max(1, min(v.max_batch_size for v in ready)),
        message_bytes=min(client_bytes, model.max_message_bytes or client_bytes),
        name_bytes=len(model.name.encode()) + len(version.encode(errors="replace")),
    )


def _read(path: str, limit: int) -> bytes:
    try:
        with Path(path).open("rb") as file:
            data = file.read(limit + 1)  # bounded: the path may be a device without an end
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise InvalidInputError(getattr(error, "strerror", None) or str(error)) from error
    if len(data) > limit:
        raise InvalidInputError(f"larger than the {limit} bytes that one request may hold")
    return data


def _sum(timings: Sequence[Timings]) -> Timings:
    return Timings(
        queue_us=sum(t.queue_us for t in timings),
        preprocess_us=sum(t.preprocess_us for t in timings),
        compute_us=sum(t.compute_us for t in timings),
        total_us=sum(t.total_us for t in timings),
    )
