"""Tells failures that may pass from those of the version itself."""

import re
from collections.abc import Iterator

# What fails to be read says so in its text, and so does ONNX Runtime if there was no memory.
_MAY_PASS = re.compile("cannot be read|bad_alloc|out of memory|failed to allocate|allocate memory", re.IGNORECASE)


def may_pass(error: BaseException) -> bool:
    """Returns whether a load or a self-test failed for a reason that may pass: of the file system, or no memory."""
    causes = list(_causes(error))
    # Of a text that is not UTF-8 it is also said that it cannot be read.
    return not any(isinstance(cause, UnicodeError) for cause in causes) and any(map(_passes, causes))


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _passes(cause: BaseException) -> bool:
    if isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError | NotADirectoryError):
        return True
    return isinstance(cause, MemoryError) or bool(_MAY_PASS.search(str(cause)))
