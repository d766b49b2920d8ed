"""Clients that never pause and never retry, so that they report every failure of the server."""

import threading
import time
from collections import Counter
from types import TracebackType
from typing import Any

import grpc
import numpy as np

from cnnserve.wire import classifier_pb2, open_inference_pb2
from support import CLASSES, HANG_S, SIDE, picture, wait_until

# A retry would hide the failures that these clients look for.
_OPTIONS = [("grpc.enable_retries", 0)]
_EXPECTED = CLASSES.index("left")


class Traffic:
    """Threads that send requests for a tiny model without a version; half of them send images, half send tensors."""

    def __init__(self, address: str, model: str, threads: int = 4) -> None:
        self.failures: list[str] = []
        self.answers: Counter[int] = Counter()
        self._address = address
        self._model = model
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._work, args=(number,)) for number in range(threads)]

    def __enter__(self) -> "Traffic":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(HANG_S)

    def check(self) -> None:
        """Raises `AssertionError` if a request has failed."""
        assert not self.failures, f"{len(self.failures)} of {self.answers.total()} failed, first: {self.failures[0]}"

    def wait_for_version(self, version: int) -> None:
        """Waits until new responses come from this version, and for a while from no other version."""

        def is_answering() -> bool:
            self.check()
            before = self.answers.copy()
            time.sleep(0.1)
            return set(self.answers - before) == {version}

        wait_until(is_answering, lambda: f"answers of version {version}, only {dict(self.answers)}")

    def _work(self, number: int) -> None:
        with grpc.insecure_channel(self._address, options=_OPTIONS) as channel:
            ask = _classify(channel, self._model) if number % 2 else _infer(channel, self._model)
            rows = 0
            while not self._stop.is_set():
                rows = rows % 4 + 1
                try:
                    self.answers[ask(rows)] += 1
                except grpc.RpcError as error:
                    self.failures.append(f"{error.code()}: {error.details()}")
                except AssertionError as error:
                    self.failures.append(f"a wrong answer: {error}")


def call(channel: grpc.Channel, method: str, request: Any, answer: type[Any]) -> Any:
    """Makes one unary call and returns the response."""
    rpc = channel.unary_unary(
        f"/{method}", request_serializer=type(request).SerializeToString, response_deserializer=answer.FromString
    )
    return rpc(request, timeout=HANG_S)


def _classify(channel: grpc.Channel, model: str) -> Any:
    image = classifier_pb2.Image(encoded=picture("left"))

    def ask(rows: int) -> int:
        request = classifier_pb2.ClassifyRequest(model=model, images=[image] * rows, top_k=1)
        answer = call(channel, "cnnserve.v1.Classifier/Classify", request, classifier_pb2.ClassifyResponse)
        assert [result.classes[0].label for result in answer.results] == ["left"] * rows
        return int(answer.version)

    return ask


def _infer(channel: grpc.Channel, model: str) -> Any:
    pixels = np.zeros((SIDE, SIDE, 1), np.uint8)
    pixels[:, : SIDE // 2] = 255

    def ask(rows: int) -> int:
        request = open_inference_pb2.ModelInferRequest(
            model_name=model, raw_input_contents=[pixels[np.newaxis].repeat(rows, 0).tobytes()]
        )
        request.inputs.add(name="image", datatype="UINT8", shape=(rows, SIDE, SIDE, 1))
        answer = call(
            channel, "inference.GRPCInferenceService/ModelInfer", request, open_inference_pb2.ModelInferResponse
        )
        probabilities = np.frombuffer(answer.raw_output_contents[0], np.float32).reshape(rows, len(CLASSES))
        assert probabilities.argmax(axis=1).tolist() == [_EXPECTED] * rows
        return int(answer.model_version)

    return ask
