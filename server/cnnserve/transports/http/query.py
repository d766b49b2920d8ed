"""Query parameters: a misspelt one is an error, not a default."""

from collections.abc import Sequence

from starlette.requests import Request

from cnnserve.config.spelling import guess
from cnnserve.errors import InvalidInput

# Names are short, so less has to be alike than in flags.
_LIKENESS = 0.6


def check_query(request: Request, known: Sequence[str]) -> None:
    """Raises `InvalidInput` if the query has a parameter that is not known, or one twice."""
    seen: set[str] = set()
    for name, _ in request.query_params.multi_items():
        if name not in known:
            expected = guess(name, known, _LIKENESS) or f"; expected {', '.join(known) or 'none'}"
            raise InvalidInput(f"query parameter {name[:100]!r} is unknown{expected}")
        if name in seen:
            raise InvalidInput(f"query parameter {name!r} is there twice; send it once")
        seen.add(name)
