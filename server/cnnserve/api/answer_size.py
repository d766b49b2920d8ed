"""The size limit of responses.

The handlers check it themselves, because gRPC ends a whole call or stream if it has to send a response that is too
large.
"""

from cnnserve.errors import InvalidInput

# A stream adds at most this many bytes to a response: the parameter of the final response, tags and lengths.
AROUND = 128
# Beside an error, at most this many characters of an id or a name are returned. Each of them may be as large as a
# message, and the response has to hold all of them.
ECHOED = 10_000


def check(size: int, limit: int, fix: str = "") -> None:
    """Raises `InvalidInput` if a response of `size` bytes exceeds `limit` bytes; `fix`: what the client can do."""
    if size > limit:
        fix = f"{fix}, or " if fix else ""
        raise InvalidInput(
            f"the response has {size} bytes, the limit is {limit} bytes; {fix}start the server with a larger "
            "--max-message-mib"
        )
