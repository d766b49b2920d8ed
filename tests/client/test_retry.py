"""When the client retries a call, after which time, and on which connection."""

import pytest

from cnnserve_client.errors import (
    ConnectionFailedError,
    DeadlineExceededError,
    InternalError,
    InvalidInputError,
    NotFoundError,
    QueueFullError,
    ResourceExhaustedError,
    UnavailableError,
)
from cnnserve_client.retry import Attempts, Rotation, back_off_s


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def attempts(clock, *, connections=1, safe=True, retries=4, timeout_s=30.0, light=False) -> Attempts:
    rotation = Rotation(connections, clock)
    return Attempts(rotation, safe=safe, retries=retries, timeout_s=timeout_s, light=light, clock=clock)


def waits(tries: Attempts, error) -> list[float]:
    """Returns all waits until the client gives the call up."""
    found = []
    tries.begin()
    while (wait_s := tries.wait_s(error)) is not None:
        found.append(wait_s)
        tries.begin()
    return found


def test_waits_double_up_to_five_seconds_and_are_spread():
    for tries in range(1, 100):
        longest = min(5.0, 0.1 * 2 ** (tries - 1))
        seen = [back_off_s(tries) for _ in range(20)]
        assert all(longest / 2 <= wait_s <= longest for wait_s in seen)
        assert len(set(seen)) > 1


def test_an_unavailable_server_is_asked_as_often_as_was_said(clock):
    assert len(waits(attempts(clock), UnavailableError("x"))) == 4
    assert waits(attempts(clock, retries=0), UnavailableError("x")) == []


@pytest.mark.parametrize("timeout_s", [0.2, 1, 30, 1000])
def test_without_a_number_of_retries_the_last_try_comes_shortly_before_the_deadline(clock, timeout_s):
    tries = attempts(clock, retries=None, timeout_s=timeout_s)
    tries.begin()
    while (wait_s := tries.wait_s(UnavailableError("x"))) is not None:
        clock.now += wait_s
        tries.begin()
    assert 0 < tries.remaining_s <= 0.05


def test_a_full_queue_is_asked_again_after_the_time_it_named(clock):
    assert waits(attempts(clock, retries=3), QueueFullError("x", retry_after_s=0.25)) == [0.25] * 3


@pytest.mark.parametrize(
    "error", [ResourceExhaustedError, InvalidInputError, NotFoundError, InternalError, DeadlineExceededError]
)
def test_what_would_fail_again_is_not_repeated(clock, error):
    assert waits(attempts(clock), error("x")) == []


def test_a_light_call_shares_its_time_among_the_connections(clock):
    tries = attempts(clock, connections=3, light=True)
    assert tries.begin() == 0
    assert tries.try_s == pytest.approx(10)
    clock.now += 10
    assert tries.wait_s(DeadlineExceededError("x")) == 0.0
    assert tries.begin() == 1
    clock.now += 4
    assert tries.wait_s(UnavailableError("x")) == 0.0
    assert tries.begin() == 2
    assert tries.try_s == pytest.approx(16)
    clock.now += 16
    assert tries.wait_s(DeadlineExceededError("x")) is None


@pytest.mark.parametrize("settings", [{"light": False}, {"light": True, "retries": 0}])
def test_other_calls_have_all_their_time_at_once(clock, settings):
    tries = attempts(clock, connections=3, **settings)
    tries.begin()
    assert tries.try_s == 30
    assert tries.wait_s(DeadlineExceededError("x")) is None


def test_a_call_with_effects_is_repeated_only_where_it_reached_nobody(clock):
    assert waits(attempts(clock, safe=False), UnavailableError("x")) == []
    assert waits(attempts(clock, safe=False), QueueFullError("x", retry_after_s=0.1)) == []
    assert len(waits(attempts(clock, safe=False), ConnectionFailedError("x"))) == 4


def test_no_wait_outlives_the_deadline(clock):
    assert waits(attempts(clock, timeout_s=1), QueueFullError("x", retry_after_s=1.5)) == []
    tries = attempts(clock, timeout_s=1)
    tries.begin()
    clock.now += 0.99
    assert tries.remaining_s == pytest.approx(0.01)
    assert tries.wait_s(UnavailableError("x")) is None
    clock.now += 5
    assert tries.remaining_s == 0


def test_another_address_is_asked_at_once_and_none_twice_before_all_were(clock):
    tries = attempts(clock, connections=3, retries=1)
    order, found = [tries.begin()], []
    while (wait_s := tries.wait_s(UnavailableError("x"))) is not None:
        found.append(wait_s)
        order.append(tries.begin())
    assert found[:2] == [0, 0]
    assert found[2] > 0
    assert found[3:] == [0, 0]
    assert sorted(order[:3]) == sorted(order[3:]) == [0, 1, 2]


def test_connections_take_turns(clock):
    rotation = Rotation(3, clock)
    assert [rotation.take() for _ in range(7)] == [0, 1, 2, 0, 1, 2, 0]


def test_a_dead_connection_rests_longer_each_time_and_works_again_at_once(clock):
    rotation = Rotation(2, clock)
    rotation.failed(0)
    assert [rotation.take() for _ in range(3)] == [1, 1, 1]
    clock.now += 0.5
    assert 0 in {rotation.take(), rotation.take()}
    rotation.failed(0)
    clock.now += 0.9
    assert {rotation.take() for _ in range(4)} == {1}
    rotation.worked(0)
    assert {rotation.take() for _ in range(2)} == {0, 1}


def test_a_silent_connection_rests_for_the_calls_after(clock):
    rotation = Rotation(2, clock)
    tries = Attempts(rotation, safe=True, retries=4, timeout_s=30.0, clock=clock)
    silent = tries.begin()
    assert tries.wait_s(DeadlineExceededError("x")) is None
    assert {rotation.take() for _ in range(4)} == {1 - silent}


def test_where_all_rest_the_first_to_come_back_is_asked(clock):
    rotation = Rotation(2, clock)
    rotation.failed(1)
    rotation.failed(1)
    rotation.failed(0)
    assert [rotation.take() for _ in range(3)] == [0, 0, 0]


@pytest.mark.parametrize(("failures", "rest_s"), [(1, 0.5), (2, 1), (3, 2), (6, 16), (7, 30), (40, 30)])
def test_a_connection_rests_twice_as_long_after_each_failure(clock, failures, rest_s):
    rotation = Rotation(2, clock)
    for _ in range(failures):
        rotation.failed(0)
    clock.now += rest_s - 0.001
    assert {rotation.take() for _ in range(4)} == {1}
    clock.now += 0.002
    assert {rotation.take() for _ in range(2)} == {0, 1}


def test_a_response_makes_the_next_rest_short_again(clock):
    rotation = Rotation(2, clock)
    for _ in range(5):
        rotation.failed(0)
    rotation.worked(0)
    rotation.failed(0)
    clock.now += 0.501
    assert {rotation.take() for _ in range(2)} == {0, 1}


def test_connections_that_never_failed_are_not_avoided():
    rotation = Rotation(3, lambda: 0.0)
    rotation.failed(1)
    rotation.worked(1)
    assert [rotation.take() for _ in range(6)] == [0, 1, 2, 0, 1, 2]


def test_one_retry_is_enough_to_share_the_time(clock):
    tries = attempts(clock, connections=2, light=True, retries=1)
    tries.begin()
    assert tries.try_s == 15


def test_a_wait_until_the_deadline_is_too_long(clock):
    tries = attempts(clock, timeout_s=0.5)
    tries.begin()
    assert tries.wait_s(QueueFullError("x", retry_after_s=0.5)) is None
    tries = attempts(clock, timeout_s=0.5)
    tries.begin()
    assert tries.wait_s(QueueFullError("x", retry_after_s=0.25)) == 0.25


def test_without_retries_another_connection_is_not_asked_either(clock):
    tries = attempts(clock, connections=3, retries=0)
    tries.begin()
    assert tries.wait_s(UnavailableError("x")) is None
