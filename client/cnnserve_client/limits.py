"""What a model's own description says of requests to it."""

from typing import Final

from .batching import Limits
from .errors import NotFoundError, UnavailableError
from .results import ModelInfo, VersionInfo

# A server refuses to answer more classes at once, those of all images together.
_MOST_CLASSES: Final = 100_000
_DEFAULT_TOP_K: Final = 5


def of(model: ModelInfo, version: str, client_bytes: int, top_k: int = 0) -> Limits:
    """The limits of requests for `top_k` classes of `version` of `model` (empty: the server chooses).

    From a `get_model` answer.

    Raises:
        NotFoundError: the model has no such version.
        UnavailableError: no version that was asked for is ready.
    """
    # The server chooses the version, so every one that it may choose must take the batch.
    return Limits(
        images=max(1, min(min(v.max_batch_size, _answered(v, top_k)) for v in ready_versions(model, version))),
        message_bytes=min(client_bytes, model.max_message_bytes or client_bytes),
        name_bytes=len(model.name.encode()) + len(version.encode()),
    )


def _answered(version: VersionInfo, top_k: int) -> int:
    """The most images whose classes one answer may hold."""
    return _MOST_CLASSES // max(1, min(top_k or _DEFAULT_TOP_K, version.class_count))


def ready_versions(model: ModelInfo, version: str) -> list[VersionInfo]:
    """The versions that may answer a request for `version`. Raises as `of`."""
    asked = [v for v in model.versions if version in ("", v.version, *v.version_labels)]
    ready = [v for v in asked if v.ready]
    if ready:
        return ready
    if not asked:
        what = f"no version {version}" if version else f"no versions{f': {model.reason}' if model.reason else ''}"
        raise NotFoundError(f"model {model.name} has {what}")
    states = "; ".join(f"version {v.version} is {v.state}{f' ({v.reason})' if v.reason else ''}" for v in asked)
    raise UnavailableError(f"model {model.name} is not ready: {states}")
