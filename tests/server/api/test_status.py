"""The table of errors has one row for every error."""

import logging

import pytest

from cnnserve import errors
from cnnserve.api import status
from cnnserve.api.status import Code
from cnnserve.logs import REQUEST


def descendants(cls: type[Exception]) -> set[type[Exception]]:
    # Other modules may have errors of their own, which they catch.
    below = {child for child in cls.__subclasses__() if child.__module__ == errors.__name__}
    return below.union(*map(descendants, below))


def test_every_class_of_errors_has_a_row() -> None:
    assert descendants(errors.ServingError) == set(status.STATUS)


@pytest.mark.parametrize("error", [ValueError("secret /etc/passwd"), errors.InferenceFailed("node Conv_7 at 0x7f")])
def test_unexpected_errors_have_a_fixed_text_and_are_logged(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        told = status.of(error, "Service/Method of request 7")
    assert told == status.Status(Code.INTERNAL, status.INTERNAL_TEXT)
    assert str(error) in caplog.text
    assert "Service/Method of request 7" in caplog.text


def test_a_full_queue_carries_the_retry_hint() -> None:
    told = status.of(errors.QueueFull("full", 12), "x")
    assert (told.code, told.trailers) == (Code.RESOURCE_EXHAUSTED, {"grpc-retry-pushback-ms": "12"})


def test_an_error_that_a_caller_may_see_is_told_as_it_is() -> None:
    told = status.of(errors.InvalidInput("input 'x' is wrong"), "x")
    assert told == status.Status(Code.INVALID_ARGUMENT, "input 'x' is wrong")
    assert told.retry_after_ms is None


@pytest.mark.parametrize("length", [1, 999, 1000])
def test_a_text_of_up_to_a_thousand_characters_is_whole(length: int) -> None:
    assert status.of(errors.InvalidInput("ä" * length), "x").message == "ä" * length


def test_a_longer_text_is_cut_and_says_so() -> None:
    message = status.of(errors.InvalidInput("ä" * 1001), "x").message
    assert message.startswith("ä" * 1000 + "…")
    assert "1001" in message


def test_an_error_keeps_the_first_ids_it_got() -> None:
    error = status.mark(errors.InvalidInput("bad"), "one", "trace")
    assert getattr(error, REQUEST) == {"request_id": "one", "trace_id": "trace"}
    assert status.mark(error, "two") is error
    assert getattr(error, REQUEST)["request_id"] == "one"
    assert getattr(status.mark(errors.InvalidInput("bad"), "three"), REQUEST) == {"request_id": "three"}
