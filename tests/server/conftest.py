"""Fixtures that the server's tests share."""

from collections.abc import Iterator

import pytest

from oip import Oip
from support import RunningServer


@pytest.fixture
def oip(server: RunningServer) -> Iterator[Oip]:
    """A client of the test module's own `server`."""
    with Oip(server.address) as oip:
        yield oip
