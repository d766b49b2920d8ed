"""What is learned of the time that images take."""

from hypothesis import given
from hypothesis import strategies as st

from cnnserve.images.decoding_times import DecodingTimes, Work

JPEG, PNG = Work("JPEG", 1_000_000), Work("PNG", 1_000_000)


def test_an_unknown_kind_costs_something_and_is_never_refused() -> None:
    times = DecodingTimes()
    assert times.cost_ns((JPEG,)) > 0
    assert times.least_ns((JPEG, PNG)) == 0


def test_the_estimate_grows_with_the_image() -> None:
    times = DecodingTimes()
    times.learn(JPEG, 10_000_000)
    larger = Work("JPEG", 1_030_000)
    assert times.least_ns((JPEG,)) == 10_000_000
    assert 10_280_000 < times.least_ns((larger,)) < 10_300_000
    assert times.cost_ns((larger,)) == times.least_ns((larger,))
    assert times.least_ns((PNG,)) == 0


def test_small_images_tell_nothing_of_large_ones() -> None:
    """A PNG of one pixel with 60 MB of compressed texts takes 0.2 s. Estimates from it refused every photograph."""
    times = DecodingTimes()
    photograph, tiny = Work("PNG", 12_000_000), Work("PNG", 1)
    times.learn(photograph, 180_000_000)
    for _ in range(100):
        times.learn(tiny, 200_000_000)
    assert 170_000_000 < times.least_ns((photograph,)) < 190_000_000
    assert times.least_ns((tiny,)) > 190_000_000


def test_fast_images_count_at_once_and_slow_ones_slowly() -> None:
    times = DecodingTimes()
    times.learn(JPEG, 10_000_000)
    times.learn(JPEG, 20_000_000)
    assert 10_900_000 < times.least_ns((JPEG,)) < 11_100_000
    times.learn(JPEG, 5_000_000)
    assert times.least_ns((JPEG,)) == 5_000_000


@given(st.lists(st.integers(1, 10**9), min_size=1))
def test_the_estimate_lies_between_what_was_seen(times_ns: list[int]) -> None:
    times = DecodingTimes()
    for ns in times_ns:
        times.learn(JPEG, ns)
    assert 0.999 * min(times_ns) <= times.least_ns((JPEG,)) <= 1.001 * max(times_ns)


def test_a_wrong_estimate_does_not_refuse_for_ever() -> None:
    times = DecodingTimes()
    times.learn(JPEG, 10**12)
    refused = 0
    while times.least_ns((JPEG,)) > 10_000_000:
        times.refused((JPEG, JPEG))
        refused += 1
    assert refused < 200
