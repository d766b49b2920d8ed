"""The memory budget of requests."""

import contextlib
import threading

import pytest

from cnnserve.errors import InvalidInput, QueueFull
from cnnserve.process.admission import MemoryBudget
from support import HANG_S, wait_until


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


def test_one_that_can_never_fit_is_refused_by_itself_and_shuts_nobody_out() -> None:
    budget = MemoryBudget(100)
    with pytest.raises(InvalidInput, match="max-pending-mib"), budget.hold(101):
        pass
    # An image may take three quarters, so that it leaves room for requests.
    with pytest.raises(InvalidInput, match="max-pending-mib"), budget.decoding(76):
        pass
    with budget.decoding(75), budget.hold(25):
        pass
    with budget.hold(100):
        pass
    assert budget.held_bytes == budget.decoding_bytes == 0


def test_a_decoding_waits_for_its_memory() -> None:
    budget = MemoryBudget(100)
    began = threading.Event()

    def decode() -> None:
        with budget.decoding(60):
            began.set()

    with budget.hold(30):
        thread = threading.Thread(target=decode, daemon=True)
        with budget.decoding(50):
            thread.start()
            # The decoding cannot have begun: 30 + 50 + 60 bytes exceed the limit.
            assert not began.wait(0.05)
            with pytest.raises(QueueFull), budget.hold(21):
                pass
        thread.join(HANG_S)
    assert began.is_set()
    assert (budget.held_bytes, budget.decoding_bytes) == (0, 0)


def test_one_decoding_goes_on_beside_its_own_request_and_an_error_gives_back() -> None:
    budget = MemoryBudget(100)
    with budget.hold(90), pytest.raises(ZeroDivisionError), budget.decoding(75):
        raise ZeroDivisionError
    assert budget.decoding_bytes == 0


def test_who_is_refused_is_told_to_wait_as_long_as_requests_take() -> None:
    budget = MemoryBudget(100)
    with budget.hold(100), pytest.raises(QueueFull) as caught, budget.hold(1):
        pass
    assert 10 <= caught.value.retry_after_ms <= 1000
    assert budget.refused == 1


def test_small_images_do_not_keep_a_large_one_waiting() -> None:
    budget = MemoryBudget(100)
    order: list[str] = []
    last = threading.Event()

    def decode(name: str, size: int) -> None:
        with budget.decoding(size):
            order.append(name)
        if name == "small":
            last.set()

    with contextlib.ExitStack() as first:
        first.enter_context(budget.decoding(50))
        large = threading.Thread(target=decode, args=("large", 60), daemon=True)
        large.start()
        wait_until(lambda: budget.waiting == 1)
        small = threading.Thread(target=decode, args=("small", 10), daemon=True)
        small.start()
        # It would fit, but the large one came earlier.
        assert not last.wait(0.05)
    large.join(HANG_S)
    small.join(HANG_S)
    assert order == ["large", "small"]


def test_images_leave_a_quarter_to_requests() -> None:
    budget = MemoryBudget(100)
    began = threading.Event()

    def decode() -> None:
        with budget.decoding(40):
            began.set()

    thread = threading.Thread(target=decode, daemon=True)
    with budget.decoding(40):
        thread.start()
        assert not began.wait(0.05)
        with budget.hold(60):
            pass
    thread.join(HANG_S)
    assert began.is_set()


@pytest.mark.parametrize("leaves", ["request", "decoding"])
def test_whoever_leaves_lets_a_waiting_decoding_begin(leaves: str) -> None:
    budget = MemoryBudget(100)
    began = threading.Event()

    def decode() -> None:
        with budget.decoding(50):
            began.set()

    thread = threading.Thread(target=decode, daemon=True)
    with contextlib.ExitStack() as stays, contextlib.ExitStack() as goes:
        # 20 or 30 of 100 stay: with the other 60, 50 more are too many.
        (stays if leaves == "request" else goes).enter_context(budget.decoding(20 if leaves == "request" else 60))
        (goes if leaves == "request" else stays).enter_context(budget.hold(60 if leaves == "request" else 30))
        # Without a decoding at work, one would be let in whatever its size.
        stays.enter_context(budget.decoding(1))
        thread.start()
        assert not began.wait(0.05)
        goes.close()
        assert began.wait(10)
    thread.join(HANG_S)
    assert (budget.held_bytes, budget.decoding_bytes) == (0, 0)


def test_the_message_has_the_sizes_in_mebibytes() -> None:
    budget = MemoryBudget(64 << 20)
    with budget.hold(60 << 20):
        for refused in (1, 2):
            with pytest.raises(QueueFull, match=r"60 MiB.* 7 MiB.* 64 MiB"):
                budget.take(7 << 20)
            assert budget.refused == refused


def test_images_may_take_three_quarters_to_the_last_byte() -> None:
    budget = MemoryBudget(100)
    with budget.decoding(35), budget.decoding(40):
        assert budget.decoding_bytes == 75
