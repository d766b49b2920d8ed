"""All calls of tritonclient's HTTP clients to a server of the tiny model. It runs in their environment."""

import asyncio
import sys

import numpy as np
import tritonclient.http as sync
import tritonclient.http.aio as aio
from tritonclient.utils import InferenceServerException

ADDRESS = sys.argv[1]
CODINGS = (None, "gzip", "deflate")
IMAGES = np.stack([np.zeros((8, 8, 1), np.uint8), np.full((8, 8, 1), 255, np.uint8)])


def tensors(client, binary):
    image = client.InferInput("image", [2, 8, 8, 1], "UINT8")
    image.set_data_from_numpy(IMAGES, binary_data=binary)
    return [image], [client.InferRequestedOutput("probabilities", binary_data=binary)]


def check(result):
    assert result.as_numpy("probabilities").argmax(axis=1).tolist() == [0, 2]


def questions(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("tiny", "1")
    assert not client.is_model_ready("nobody")
    assert client.get_server_metadata()["name"] == "cnnserve"
    assert client.get_model_metadata("tiny")["inputs"][0]["shape"] == [-1, 8, 8, 1]
    assert client.get_model_config("tiny")["max_batch_size"] == 8
    assert client.get_model_repository_index()
    assert client.get_inference_statistics("tiny")["model_stats"][0]["inference_stats"]["success"]["count"] >= 0
    assert client.get_log_settings()["log_error"] is True
    assert client.get_trace_settings()["trace_level"] == ["OFF"]


def errors(client):
    inputs, _ = tensors(sync, True)
    for model, code in (("nobody", "404"), ("altered", "503")):
        status = None
        try:
            client.infer(model, inputs)
        except InferenceServerException as error:
            status = error.status()
        assert status == code, status


def synchronous():
    client = sync.InferenceServerClient(ADDRESS, concurrency=4)
    questions(client)
    errors(client)
    for binary in (True, False):
        for coding in CODINGS:
            inputs, outputs = tensors(sync, binary)
            packed = {"request_compression_algorithm": coding, "response_compression_algorithm": coding}
            result = client.infer("tiny", inputs, outputs=outputs, request_id="7", priority=0, timeout=10**7, **packed)
            check(result)
            assert result.get_response()["id"] == "7"
    inputs, _ = tensors(sync, True)
    check(client.infer("tiny", inputs))
    for pending in [client.async_infer("tiny", inputs) for _ in range(8)]:
        check(pending.get_result())
    classes = [sync.InferRequestedOutput("probabilities", class_count=2)]
    texts = client.infer("tiny", inputs, outputs=classes).as_numpy("probabilities")
    assert [text.decode().split(":")[2] for text in texts[:, 0]] == ["dark", "bright"], texts
    client.close()


async def asynchronous():
    async with aio.InferenceServerClient(ADDRESS) as client:
        assert await client.is_server_ready()
        for binary in (True, False):
            for coding in CODINGS:
                inputs, outputs = tensors(aio, binary)
                packed = {"request_compression_algorithm": coding, "response_compression_algorithm": coding}
                check(await client.infer("tiny", inputs, outputs=outputs, **packed))


synchronous()
asyncio.run(asynchronous())
