"""How long an instance waits after a run for the next requests of the clients."""

import pytest
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


def shares(*shares_back: float, fixed_ns: int = 6 * MS, each_ns: int = 3 * MS, waiting: int = 0) -> Turnover:
    """Returns a turnover after runs of 1 and of 4 requests; after each of the latter, a share of 4 came back."""
    turnover = Turnover()
    # Nobody is answered, so nothing is learned of who comes back.
    turnover.ran(1, fixed_ns + each_ns, 0, waiting, 0)
    turnover.ran(4, fixed_ns + 4 * each_ns, 4, waiting, 0)
    for number, share in enumerate(shares_back, 1):
        for _ in range(round(share * 4)):
            turnover.arrived((number - 1) * 1000 * MS)
        turnover.ran(4, fixed_ns + 4 * each_ns, 4, waiting, number * 1000 * MS)
    return turnover


@pytest.mark.parametrize(
    ("back", "waits"),
    [
        # The first rounds count alike, so their mean decides.
        ([0.75], True),
        ([0.5], True),
        ([0.25], False),
        ([1, 0], True),
        ([1, 0, 0], False),
        ([0, 1], True),
        ([0, 0.75], False),
        ([1, 1, 0, 0], True),
        # Who comes twice does not stand for one who stays away.
        ([2, 0], True),
        ([2, 0, 0], False),
        # From the sixth round on, the last one counts a fifth.
        ([1] * 20 + [0] * 3, True),
        ([1] * 20 + [0] * 4, False),
        ([0] * 20 + [1] * 3, False),
        ([0] * 20 + [1] * 4, True),
    ],
)
def test_whether_enough_came_back(back: list[float], waits: bool) -> None:
    assert bool(shares(*back).hold_until_ns) is waits


@pytest.mark.parametrize(
    ("fixed_ns", "waits"),
    [(MS, True), (MS - 1, False)],
)
def test_a_wait_below_a_millisecond_is_none(fixed_ns: int, waits: bool) -> None:
    assert bool(shares(1, fixed_ns=fixed_ns, each_ns=0).hold_until_ns) is waits


@pytest.mark.parametrize(("fixed_ms", "waits"), [(4, False), (5, True)])
def test_waiting_begins_at_a_twentieth_of_the_next_run(fixed_ms: int, waits: bool) -> None:
    # 95 images of 1 ms each: 91 wait, 4 are as many as in the last run.
    turnover = shares(1, fixed_ns=fixed_ms * MS, each_ns=MS, waiting=91)
    assert bool(turnover.hold_until_ns) is waits


def test_a_request_that_arrives_as_the_wait_ends_counts() -> None:
    turnover = shares(1)
    end = turnover.hold_until_ns
    turnover.arrived(end)
    assert turnover.hold_until_ns == end + 3 * MS
    turnover.arrived(end + 3 * MS + 1)
    assert turnover.hold_until_ns == end + 3 * MS


def test_nothing_ran_so_nobody_waits() -> None:
    turnover = Turnover()
    assert turnover.line() == (0, 0)
    turnover.arrived(MS)
    assert turnover.hold_until_ns == 0


def test_a_size_that_is_twice_the_other_tells_enough() -> None:
    turnover = Turnover()
    turnover.ran(2, 10 * MS, 2, 0, 0)
    turnover.ran(4, 16 * MS, 4, 0, 0)
    assert turnover.line() == (4 * MS, 3 * MS)


def test_neither_time_is_less_than_nothing() -> None:
    turnover = Turnover()
    turnover.ran(2, 10 * MS, 2, 0, 0)
    # More than in proportion: one of the two was disturbed.
    turnover.ran(4, 30 * MS, 4, 0, 0)
    assert turnover.line() == (0, 5 * MS)
    turnover = Turnover()
    turnover.ran(2, 10 * MS, 2, 0, 0)
    turnover.ran(4, 9 * MS, 4, 0, 0)
    assert turnover.line() == (10 * MS, 0)


def test_one_disturbed_run_moves_the_line_by_a_hundredth() -> None:
    turnover = Turnover()
    turnover.ran(1, 10 * MS, 1, 0, 0)
    turnover.ran(2, 16 * MS, 2, 0, 0)
    turnover.ran(1, 90 * MS, 1, 0, 0)
    fixed_ns, image_ns = turnover.line()
    assert round(fixed_ns + image_ns) == round(10.1 * MS)


def test_nobody_is_waited_for_before_anybody_came_back() -> None:
    turnover = Turnover()
    turnover.ran(1, 9 * MS, 1, 0, 0)
    turnover.ran(8, 30 * MS, 8, 0, 100 * MS)
    assert turnover.hold_until_ns == 0


def test_without_a_run_there_is_no_line() -> None:
    assert Turnover().line() == (0, 0)
