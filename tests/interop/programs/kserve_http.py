"""kserve's REST client with a server of the tiny model. It runs in the environment of kserve."""

import asyncio
import sys

import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig

BASE = f"http://{sys.argv[1]}"


async def main():
    client = InferenceRESTClient(RESTConfig(protocol="v2"))
    assert await client.is_server_live(BASE)
    assert await client.is_server_ready(BASE)
    assert await client.is_model_ready(BASE, "tiny")
    for binary in (False, True):
        image = InferInput("image", [1, 8, 8, 1], "UINT8")
        image.set_data_from_numpy(np.full((1, 8, 8, 1), 255, np.uint8), binary_data=binary)
        answer = await client.infer(BASE, InferRequest("tiny", [image], request_id="seven"), model_name="tiny")
        assert answer.id == "seven"
        assert answer.outputs[0].as_numpy().argmax() == 2


asyncio.run(main())
