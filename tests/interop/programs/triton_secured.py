"""tritonclient over gRPC to a server with TLS, client certificates and tokens. It runs in its environment."""

import json
import sys

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

ADDRESS, ROOT, CERTIFICATE, KEY, TOKEN = sys.argv[1:]


def client():
    return triton.InferenceServerClient(
        ADDRESS, ssl=True, root_certificates=ROOT, private_key=KEY, certificate_chain=CERTIFICATE
    )


def main():
    image = triton.InferInput("image", [1, 8, 8, 1], "UINT8")
    image.set_data_from_numpy(np.full((1, 8, 8, 1), 255, np.uint8))
    found = {"live": client().is_server_live()}
    headers = {"authorization": f"Bearer {TOKEN}"}
    result = client().infer("tiny", [image], headers=headers)
    found["class"] = int(result.as_numpy("probabilities").argmax())
    for name, given in (("without", {}), ("wrong", {"authorization": "Bearer nonsense"})):
        try:
            client().infer("tiny", [image], headers=given)
        except InferenceServerException as error:
            found[name] = error.status()
    try:
        client().get_server_metadata(headers=headers)
    except InferenceServerException as error:
        found["scope"] = error.status()
    print(json.dumps(found))


main()
