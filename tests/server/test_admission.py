"""The bound on what requests hold."""

import pytest

from cnnserve.admission import MemoryBudget
from cnnserve.errors import QueueFull


def test_what_does_not_fit_is_refused_at_once_and_given_back() -> None:
    budget = MemoryBudget(100)
    with budget.hold(60):
        with pytest.raises(QueueFull, match="max_pending_mib"), budget.hold(41):
            pass
        with budget.hold(40):
            assert budget.held_bytes == 100
    assert budget.held_bytes == 0


def test_an_error_inside_gives_back() -> None:
    budget = MemoryBudget(100)
    with pytest.raises(ZeroDivisionError), budget.hold(60):
        raise ZeroDivisionError
    assert budget.held_bytes == 0


def test_one_that_is_alone_is_let_in() -> None:
    budget = MemoryBudget(100)
    with budget.hold(1000), pytest.raises(QueueFull), budget.hold(1):
        pass
    assert budget.held_bytes == 0
