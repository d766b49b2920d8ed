"""Counts the requests of this process that ended with an error, by the kind of the error. Use on the event loop."""

import re
from collections import Counter

from cnnserve import errors
from cnnserve.errors import ServingError

_WORD = re.compile(r"(?<!^)(?=[A-Z])")
# An error that is no `ServingError`.
INTERNAL = "internal"


def _reason(kind: type[Exception]) -> str:
    """Returns the name of a class as one lower-case word, such as queue_full."""
    return _WORD.sub("_", kind.__name__).lower()


# Every reason, so that each has a count before its first error.
counts: Counter[str] = Counter(
    {_reason(kind): 0 for kind in vars(errors).values() if isinstance(kind, type) and kind is not ServingError}
    | {INTERNAL: 0}
)


def count(error: Exception) -> None:
    """Counts one error that a client receives."""
    reason = _reason(type(error)) if isinstance(error, ServingError) else INTERNAL
    counts[reason] += 1
