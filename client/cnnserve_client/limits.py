"""Derives the limits of requests to a model from the description that the server sends."""

from collections.abc import Sequence
from typing import Final

from .batching import Limits
from .errors import NotFoundError, UnavailableError
from .results import ModelInfo, VersionInfo

# The server refuses requests for more classes, counted over all images.
_MOST_CLASSES: Final = 100_000
_DEFAULT_TOP_K: Final = 5


def of(model: ModelInfo, version: str, client_bytes: int, top_k: int = 0) -> Limits:
    """Returns the limits of requests to a model.

    Args:
        model: the model as `get_model` returns it.
        version: the version or version label of the requests; empty if the server chooses the version.
        client_bytes: maximum size in bytes of a message that the client sends.
        top_k: number of classes for each image; 0 means the server's default of 5.

    Raises:
        NotFoundError: the model does not have the version.
        UnavailableError: none of the requested versions is READY.
    """
    # If the server chooses, the requests must fit each version that it may choose.
    return Limits(
        images=max(1, min(min(v.max_batch_size, _most_images(v, top_k)) for v in ready_versions(model, version))),
        message_bytes=min(client_bytes, model.max_message_bytes or client_bytes),
        name_bytes=len(model.name.encode()) + len(version.encode()),
    )


def _most_images(version: VersionInfo, top_k: int) -> int:
    """Returns the maximum number of images whose classes fit into one response."""
    return _MOST_CLASSES // max(1, min(top_k or _DEFAULT_TOP_K, version.class_count))


def newest(versions: Sequence[VersionInfo]) -> VersionInfo:
    """Returns the version with the highest number. Needs one version."""
    return max(versions, key=lambda version: int(version.version) if version.version.isdecimal() else 0)


def ready_versions(model: ModelInfo, version: str) -> list[VersionInfo]:
    """Returns the READY versions that may serve a request for `version`. Raises the same errors as `of`."""
    requested = [v for v in model.versions if version in ("", v.version, *v.version_labels)]
    ready = [v for v in requested if v.ready]
    if ready:
        return ready
    if not model.versions:
        raise NotFoundError(f"model {model.name} has no versions{f': {model.reason}' if model.reason else ''}")
    if not requested:
        known = ", ".join(name for v in model.versions for name in (v.version, *v.version_labels))
        raise NotFoundError(f"model {model.name} has no version {version}: use one of {known}")
    states = "; ".join(f"version {v.version} is {v.state}{f' ({v.reason})' if v.reason else ''}" for v in requested)
    raise UnavailableError(f"model {model.name} is not ready: {states}")
