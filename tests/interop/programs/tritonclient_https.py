"""tritonclient's HTTP clients to a server with TLS, client certificates and tokens. It runs in their environment."""

import asyncio
import json
import ssl
import sys

import numpy as np
import tritonclient.http as sync
import tritonclient.http.aio as aio
from geventhttpclient.response import HTTPConnectionClosed
from tritonclient.utils import InferenceServerException

ADDRESS, ROOT, CERTIFICATE, KEY, TOKEN = sys.argv[1:]
HEADERS = {"Authorization": f"Bearer {TOKEN}"}


def context(certificate=True):
    made = ssl.create_default_context(cafile=ROOT)
    if certificate:
        made.load_cert_chain(CERTIFICATE, KEY)
    return made


def tensors(module):
    image = module.InferInput("image", [1, 8, 8, 1], "UINT8")
    image.set_data_from_numpy(np.full((1, 8, 8, 1), 255, np.uint8))
    return [image]


def best(result):
    return int(result.as_numpy("probabilities").argmax())


def client(certificate=True):
    return sync.InferenceServerClient(ADDRESS, ssl=True, ssl_context_factory=lambda: context(certificate))


def synchronous():
    found = {"live": client().is_server_live()}
    found["class"] = best(client().infer("tiny", tensors(sync), headers=HEADERS))
    waiting = client()
    found["async"] = best(waiting.async_infer("tiny", tensors(sync), headers=HEADERS).get_result())
    for name, given in (("without", {}), ("wrong", {"Authorization": "Bearer nonsense"})):
        try:
            client().infer("tiny", tensors(sync), headers=given)
        except InferenceServerException as error:
            found[name] = error.status()
    try:
        client().get_server_metadata(headers=HEADERS)
    except InferenceServerException as error:
        found["scope"] = error.status()
    try:
        client(certificate=False).is_server_live()
    except (OSError, HTTPConnectionClosed):
        found["no certificate"] = "refused"
    return found


async def asynchronous():
    async with aio.InferenceServerClient(ADDRESS, ssl=True, ssl_context=context()) as opened:
        return best(await opened.infer("tiny", tensors(aio), headers=HEADERS))


print(json.dumps(synchronous() | {"aio": asyncio.run(asynchronous())}))
