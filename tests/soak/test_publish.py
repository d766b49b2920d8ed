"""Versions are published, broken, repaired and removed under full load, and no request fails.

The test makes two rounds, or as many as fit into CNNSERVE_SOAK_MINUTES.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from cnnserve.wire import open_inference_pb2 as pb
from soak.traffic import Traffic, call
from support import CLASSES, RunningServer, serving, tiny_onnx, wait_until, write_version

Index = dict[str, pb.RepositoryIndexResponse.ModelIndex]

MINUTES = float(os.environ.get("CNNSERVE_SOAK_MINUTES", "0"))
ROUNDS_AT_LEAST = 2
POLL = ("--model-control-mode", "poll", "--poll-interval-s", "0.2")
GOOD = "\n".join(CLASSES) + "\n"
# It has the length of the valid file, so only the digest shows the difference.
BAD = GOOD.replace("bright", "blight")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    write_version(tmp_path / "repository" / "tiny" / "1")
    return tmp_path / "repository"


@pytest.fixture
def server(repository: Path, tmp_path: Path) -> Iterator[RunningServer]:
    with serving(tmp_path / "server.log", repository, *POLL) as server:
        yield server


@pytest.mark.timeout(1200 + MINUTES * 60)
def test_no_request_fails_while_versions_come_and_go(server: RunningServer, repository: Path) -> None:
    end = time.monotonic() + MINUTES * 60
    rounds = 0
    with Traffic(server.address, "tiny") as traffic, grpc.insecure_channel(server.address) as channel:
        traffic.wait_for_version(1)
        while rounds < ROUNDS_AT_LEAST or time.monotonic() < end:
            one_round(Publisher(repository, channel, traffic), 2 * rounds + 2)
            rounds += 1
    traffic.check()
    assert set(traffic.answers) == set(range(1, 2 * rounds + 2))
    assert server.terminate() == 0
    assert "Traceback" not in server.log


class Publisher:
    """Changes a model repository while the server uses it."""

    def __init__(self, repository: Path, channel: grpc.Channel, traffic: Traffic) -> None:
        self.traffic = traffic
        self._repository = repository
        self._channel = channel

    def folder(self, version: int, model: str = "tiny") -> Path:
        return self._repository / model / str(version)

    def publish(self, version: int, model: str = "tiny", *, labels: str = GOOD) -> None:
        """Writes a version elsewhere and publishes it by one rename."""
        aside = write_version(self._repository.parent / "aside" / model / str(version))
        (aside / "labels.txt").write_text(labels)
        self.folder(version, model).parent.mkdir(exist_ok=True)
        aside.rename(self.folder(version, model))

    def write_labels(self, version: int, labels: str) -> None:
        (self.folder(version) / "labels.txt").write_text(labels)

    def remove(self, *path: str) -> None:
        """Removes a version in one step, because a half-removed version would be broken."""
        gone = self._repository.parent / "gone"
        self._repository.joinpath(*path).rename(gone)
        shutil.rmtree(gone)

    def wait_until(self, said: Callable[[Index], bool]) -> None:
        """Waits until the index of the model repository is as expected, while requests continue."""

        def is_so() -> bool:
            self.traffic.check()
            return said(self._index())

        wait_until(is_so, self._index)

    def _index(self) -> Index:
        request = pb.RepositoryIndexRequest()
        method = "inference.GRPCInferenceService/RepositoryIndex"
        answer = call(self._channel, method, request, pb.RepositoryIndexResponse)
        return {f"{row.name}/{row.version}": row for row in answer.models}


def one_round(publisher: Publisher, new: int) -> None:
    """Makes all kinds of changes to the newest versions of a model, and to other models."""
    newer, traffic = new + 1, publisher.traffic
    publisher.publish(new)
    traffic.wait_for_version(new)

    publisher.publish(newer, labels=BAD)
    publisher.wait_until(lambda index: is_in(index, f"tiny/{newer}", "UNAVAILABLE"))
    traffic.wait_for_version(new)
    publisher.write_labels(newer, GOOD)
    traffic.wait_for_version(newer)

    publisher.write_labels(newer, BAD)
    publisher.wait_until(lambda index: is_in(index, f"tiny/{newer}", "READY", "reload failed"))
    traffic.wait_for_version(newer)
    publisher.write_labels(newer, GOOD)
    publisher.wait_until(lambda index: is_in(index, f"tiny/{newer}", "READY") and not index[f"tiny/{newer}"].reason)

    neighbour(publisher)
    publisher.remove("tiny", str(newer))
    traffic.wait_for_version(new)
    publisher.publish(newer)
    traffic.wait_for_version(newer)
    for old in (new - 1, new):
        publisher.remove("tiny", str(old))
    publisher.wait_until(lambda index: f"tiny/{new}" not in index)
    traffic.wait_for_version(newer)


def neighbour(publisher: Publisher) -> None:
    """Adds another model, valid and broken, also without a manifest, and removes it."""
    publisher.publish(1, "good")
    publisher.publish(1, "broken", labels=BAD)
    plain = publisher.folder(1, "plain")
    plain.mkdir(parents=True)
    (plain / "model.onnx").write_bytes(tiny_onnx())
    publisher.wait_until(
        lambda index: (
            is_in(index, "good/1", "READY")
            and is_in(index, "broken/1", "UNAVAILABLE")
            and is_in(index, "plain/1", "READY")
        )
    )
    for model in ("good", "broken", "plain"):
        publisher.remove(model)
    publisher.wait_until(lambda index: all(row.name == "tiny" for row in index.values()))


def is_in(index: Index, version: str, state: str, reason: str = "") -> bool:
    """Returns whether a version is in a state, for a reason."""
    row = index.get(version)
    return row is not None and row.state == state and reason in row.reason
