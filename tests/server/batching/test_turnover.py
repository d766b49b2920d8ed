"""How long an instance waits after a run for the next requests of the clients."""

from hypothesis import given
from hypothesis import strategies as st

from cnnserve.batching.turnover import Turnover

MS = 1_000_000


def closed_loop(turnover: Turnover, size: int, run_ns: int, *, back_after_ns: int, runs: int = 10) -> int:
    """Simulates `runs` runs of `size` requests. Returns the time after the last run.

    All clients send their next request `back_after_ns` after the end of each run.
    """
    now = 0
    for _ in range(runs):
        now += run_ns
        turnover.ran(size, run_ns, size, 0, now)
        for _ in range(size):
            turnover.arrived(now + back_after_ns)
    return now


def learned(fixed_ns: int = 6 * MS, each_ns: int = 3 * MS, *, back_after_ns: int = 1 * MS) -> tuple[Turnover, int]:
    """Returns a turnover that has seen runs of 1 and of 8 requests, and the time after them."""
    turnover = Turnover()
    turnover.ran(1, fixed_ns + each_ns, 1, 0, 0)
    return turnover, closed_loop(turnover, 8, fixed_ns + 8 * each_ns, back_after_ns=back_after_ns)


def test_waits_for_those_who_come_back_until_they_are_back() -> None:
    turnover, now = learned()
    turnover.ran(8, 30 * MS, 8, 0, now)
    assert turnover.hold_until_ns == now + 6 * MS
    for _ in range(7):
        turnover.arrived(now + MS)
        assert turnover.hold_until_ns
    turnover.arrived(now + MS)
    assert not turnover.hold_until_ns


def test_the_wait_is_what_one_run_less_saves() -> None:
    turnover, now = learned(fixed_ns=4 * MS, each_ns=2 * MS)
    turnover.ran(8, 20 * MS, 8, 0, now)
    assert turnover.line() == (4 * MS, 2 * MS)
    assert turnover.hold_until_ns == now + 4 * MS


def test_callers_who_keep_coming_are_waited_for() -> None:
    turnover, now = learned(back_after_ns=0)
    turnover.ran(8, 30 * MS, 8, 0, now)
    # Here, reading 8 requests takes 16 ms, and the fixed time of a run is 6 ms.
    for number in range(1, 8):
        turnover.arrived(now + number * 2 * MS)
        assert turnover.hold_until_ns == now + max(6, number * 2 + 3) * MS
    turnover.arrived(now + 16 * MS)
    assert not turnover.hold_until_ns


def test_no_wait_is_longer_than_four_fixed_times() -> None:
    turnover, now = learned(back_after_ns=0)
    turnover.ran(8, 30 * MS, 100, 0, now)
    for number in range(1, 24):
        turnover.arrived(now + number * MS)
    assert turnover.hold_until_ns == now + 24 * MS
    turnover.arrived(now + 25 * MS)
    assert turnover.hold_until_ns == now + 24 * MS


def test_a_run_that_was_disturbed_does_not_count() -> None:
    turnover, now = learned()
    turnover.ran(1, 90 * MS, 1, 0, now)
    turnover.ran(1, 9 * MS, 1, 0, now)
    fixed_ns, image_ns = turnover.line()
    assert (round(fixed_ns), round(image_ns)) == (6 * MS, 3 * MS)


def test_a_machine_that_became_slower_is_noticed() -> None:
    turnover, now = learned()
    for _ in range(100):
        turnover.ran(1, 18 * MS, 1, 0, now)
        turnover.ran(8, 60 * MS, 8, 0, now)
    fixed_ns, image_ns = turnover.line()
    assert (round(fixed_ns), round(image_ns)) == (12 * MS, 6 * MS)


def test_two_close_sizes_tell_nothing() -> None:
    turnover = Turnover()
    turnover.ran(9, 30 * MS, 9, 0, 0)
    turnover.ran(10, 30 * MS, 10, 0, 0)
    assert turnover.line() == (0, 0)


def test_nobody_waits_where_little_is_saved() -> None:
    turnover, now = learned()
    turnover.ran(8, 30 * MS, 8, 100, now)
    assert not turnover.hold_until_ns


def test_a_habit_is_not_given_up_for_a_little_noise() -> None:
    turnover, now = learned()
    # The fixed time is 6 ms of a run of 6 + 3 x (8 + 40) ms. This share is between those at which waiting begins and
    # ends.
    turnover.ran(8, 30 * MS, 8, 40, now)
    assert turnover.hold_until_ns
    turnover.ran(8, 30 * MS, 0, 100, now)
    turnover.ran(8, 30 * MS, 8, 40, now)
    assert not turnover.hold_until_ns


def test_nobody_waits_where_a_run_has_no_fixed_time() -> None:
    turnover, now = learned(fixed_ns=0)
    turnover.ran(8, 24 * MS, 8, 0, now)
    assert not turnover.hold_until_ns


def test_nobody_waits_for_callers_who_stay_away() -> None:
    turnover, now = learned(back_after_ns=20 * MS)
    turnover.ran(8, 30 * MS, 8, 0, now)
    assert not turnover.hold_until_ns


def test_the_habit_is_forgotten() -> None:
    turnover, now = learned()
    for _ in range(10):
        now += 30 * MS
        turnover.ran(8, 30 * MS, 8, 0, now)
    assert not turnover.hold_until_ns


def test_nothing_is_known_from_one_size() -> None:
    turnover = Turnover()
    now = closed_loop(turnover, 8, 30 * MS, back_after_ns=MS)
    turnover.ran(8, 30 * MS, 8, 0, now)
    assert turnover.line() == (0, 0)
    assert not turnover.hold_until_ns


@given(st.lists(st.tuples(st.integers(1, 32), st.integers(0, 10**9), st.integers(0, 40)), max_size=30))
def test_no_wait_is_longer_than_the_fastest_size_takes(runs: list[tuple[int, int, int]]) -> None:
    turnover = Turnover()
    longest: dict[int, int] = {}
    now = 0
    for size, run_ns, back in runs:
        now += run_ns
        longest[size] = max(longest.get(size, 0), run_ns)
        turnover.ran(size, run_ns, size, 0, now)
        fixed_ns, image_ns = turnover.line()
        assert image_ns >= 0
        assert 0 <= fixed_ns <= longest[min(longest)] + 1
        assert turnover.hold_until_ns <= now + fixed_ns + 1
        for _ in range(back):
            now += MS
            turnover.arrived(now)
        assert turnover.hold_until_ns <= now - back * MS + 4 * fixed_ns + 1
