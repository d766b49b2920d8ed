"""When the requests of an open loop are due."""

import random
from collections.abc import Iterator


def poisson(rate: float, seed: int) -> Iterator[float]:
    """Yields the times of arrivals in seconds, without end: independent of each other, on average `rate` a second."""
    generator = random.Random(seed)  # noqa: S311 - a load, no secret
    at = 0.0
    while True:
        at += generator.expovariate(rate)
        yield at
