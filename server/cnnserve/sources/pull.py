"""Fetches versions into a hidden folder of a model repository, checks them there, and publishes them."""

from collections.abc import Collection
from pathlib import Path

from cnnserve.repository import staging
from cnnserve.repository.signature import Trust
from cnnserve.sources import arrival, choice
from cnnserve.sources.arrival import Arrived
from cnnserve.sources.errors import SourceError
from cnnserve.sources.room import Room


def pull(
    address: str, repository: Path, room: Room, trust: Trust | None = None, credential_hosts: Collection[str] = ()
) -> list[Arrived]:
    """Publishes the versions at an address in a model repository, and returns them.

    `trust`: keys that must have signed them. Raises `SourceError`; nothing was published then. Blocks.
    """
    source = choice.source(address, credential_hosts)
    with staging.hidden_folder(repository, staging.PULLS, SourceError) as work:
        files = work / "files"
        files.mkdir()
        source.identify(work, room)
        source.fetch(work, room)
        arrival.arrange(files)
        models = arrival.check(files, trust)
        staging.flush(files)
        with staging.alone(repository):
            return arrival.publish(models, repository)


def pull_whole(address: str, cache: Path, room: Room, trust: Trust | None = None) -> tuple[Path, bool]:
    """Returns a model repository in the folder `cache` with what is at an address now, and whether it is new there.

    What is in the cache is not fetched again, and never changes. Raises `SourceError`. Blocks.
    """
    source = choice.source(address)
    with staging.hidden_folder(cache, staging.PULLS, SourceError, "--pull-cache") as work:
        files = work / "files"
        files.mkdir()
        place = cache / source.identify(work, room)
        if place.is_dir():
            return place, False
        source.fetch(work, room)
        arrival.arrange(files)
        arrival.check(files, trust)
        staging.flush(files)
        with staging.alone(cache):
            # Another server may have fetched the same meanwhile.
            if not place.is_dir():
                files.rename(place)
                staging.sync(cache)
        return place, True
