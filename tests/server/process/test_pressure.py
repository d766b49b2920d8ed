"""When memory that was freed goes back to the system."""

import asyncio

import pytest

from cnnserve.process.admission import MemoryBudget
from cnnserve.process.pressure import MemoryPressure

MIB = 2**20
LIMIT = 1024 * MIB


class Watched(MemoryPressure):
    """Counts how often memory was returned."""

    returned = 0

    def trim(self) -> "asyncio.Future[None]":
        self.returned += 1
        return super().trim()


@pytest.mark.parametrize(
    ("kept", "is_quiet", "returned"),
    [
        (15 * MIB, True, 0),
        (17 * MIB, True, 1),
        (17 * MIB, False, 0),
        (127 * MIB, False, 0),
        (129 * MIB, False, 1),
    ],
)
async def test_memory_that_is_about_to_be_used_again_stays_until_it_is_much(
    kept: int, is_quiet: bool, returned: int
) -> None:
    idle = [100 * MIB]
    pressure = Watched(MemoryBudget(LIMIT), resident=lambda: idle[0])
    idle[0] += kept
    pressure.look()
    pressure.trim_if_worth_it(is_quiet=is_quiet)
    assert pressure.returned == returned
