"""Tells failures that may pass from those of the version itself."""

import re

# What fails to be read says so in its text, and so does ONNX Runtime if there was no memory.
_MAY_PASS = re.compile("cannot be read|bad_alloc|out of memory|failed to allocate|allocate memory", re.IGNORECASE)


def may_pass(error: BaseException) -> bool:
    """Returns whether a load or a self-test failed for a reason that may pass: of the file system, or no memory."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError | NotADirectoryError):
            return True
        if isinstance(cause, MemoryError) or _MAY_PASS.search(str(cause)):
            return True
        cause = cause.__cause__ or cause.__context__
    return False
