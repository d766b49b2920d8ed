"""Sends the same array with the clients of cnnserve and Triton from one process, in either order of import."""

import json
import sys

import numpy as np

address, *folders = sys.argv[1:]
sys.path += folders

import tritonclient.grpc as triton  # noqa: E402

from cnnserve_client import Client  # noqa: E402

left = np.zeros((1, 8, 8, 1), np.uint8)
left[:, :, :4] = 255
with Client(address) as client:
    ours = client.infer({"image": left}, model="tiny").outputs["probabilities"]
tensor = triton.InferInput("image", list(left.shape), "UINT8")
tensor.set_data_from_numpy(left)
theirs = triton.InferenceServerClient(address).infer("tiny", [tensor]).as_numpy("probabilities")
print(json.dumps({"cnnserve": ours.argmax(1).tolist(), "triton": theirs.argmax(1).tolist()}))
