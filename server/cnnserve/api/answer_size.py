"""How large an answer may be. What gRPC itself refuses to send ends a call, or a stream, with a status of its own."""

from cnnserve.errors import InvalidInput

# What a stream may put around an answer: a marker, tags and lengths.
AROUND = 128
# So much of an id or a name is echoed beside an error: both may be as large as a message, which has to hold them all.
ECHOED = 10_000


def check(size: int, limit: int, fix: str = "") -> None:
    """Raises `InvalidInput` for an answer of `size` bytes where `limit` are sent; `fix` is what the caller can do."""
    if size > limit:
        fix = f"{fix}, or " if fix else ""
        raise InvalidInput(
            f"the answer has {size} bytes, at most {limit} are sent; {fix}start the server with a larger "
            "--max-message-mib"
        )
