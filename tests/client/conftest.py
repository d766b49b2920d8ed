"""Fixtures: a scripted peer, and functions that call both clients in the same way."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cnnserve_client import AsyncClient, Client
from peer import Peer, running


@pytest.fixture
def peer() -> Iterator[Peer]:
    with running(Peer()) as peer:
        yield peer


Ask = Callable[..., Any]


@pytest.fixture(params=["sync", "async"])
def ask(request: pytest.FixtureRequest) -> Ask:
    """`ask(address, method, ...)` calls a method of a new client. Each test runs with `Client` and `AsyncClient`."""

    def sync(address: str, method: str, *args: Any, limits: dict[str, Any] | None = None, **kwargs: Any) -> Any:
        with Client(address, **limits or {}) as client:
            return getattr(client, method)(*args, **kwargs)

    def through_asyncio(address: str, method: str, *args: Any, limits: dict[str, Any] | None = None, **kwargs: Any):
        async def call() -> Any:
            async with AsyncClient(address, **limits or {}) as client:
                return await getattr(client, method)(*args, **kwargs)

        return asyncio.run(call())

    return sync if request.param == "sync" else through_asyncio


@pytest.fixture(params=["sync", "async"])
def many(request: pytest.FixtureRequest) -> Ask:
    """`many(address, images, ...)` returns all results of `classify_many` of a new client of either kind."""

    def sync(address: str, images: Any, *, limits: dict[str, Any] | None = None, **kwargs: Any) -> list[Any]:
        with Client(address, **limits or {}) as client:
            return list(client.classify_many(images, **{"model": "digits", **kwargs}))

    def through_asyncio(address: str, images: Any, *, limits: dict[str, Any] | None = None, **kwargs: Any) -> list[Any]:
        async def call() -> list[Any]:
            async with AsyncClient(address, **limits or {}) as client:
                return [result async for result in client.classify_many(images, **{"model": "digits", **kwargs})]

        return asyncio.run(call())

    return sync if request.param == "sync" else through_asyncio
