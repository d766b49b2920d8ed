"""Errors by kind."""

from cnnserve import errors
from cnnserve.api import status
from cnnserve.errors import QueueFull, ServingError
from cnnserve.process import refusals


def test_every_error_that_a_client_gets_is_counted_once() -> None:
    before = refusals.counts.copy()
    status.of(QueueFull("full", 1), "test")
    status.of(ValueError("stray"), "test")
    assert refusals.counts - before == {"queue_full": 1, "internal": 1}


def test_every_kind_of_error_has_a_count_before_it_happens() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, ServingError)]
    assert len(refusals.counts) >= len(kinds)
    assert {"invalid_input", "model_not_found", "queue_full", "deadline_exceeded", "internal"} <= refusals.counts.keys()
