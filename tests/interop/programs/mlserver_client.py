"""MLServer's stubs and converters for the Open Inference Protocol, with MLServer's own request types."""

import json
import sys

import grpc
import numpy as np
from mlserver.codecs import NumpyRequestCodec
from mlserver.grpc import converters, dataplane_pb2, dataplane_pb2_grpc
from mlserver.types import InferenceRequest, RequestInput, RequestOutput

stub = dataplane_pb2_grpc.GRPCInferenceServiceStub(grpc.insecure_channel(sys.argv[1]))
rows = np.zeros((2, 8, 8, 1), np.uint8)
rows[0, :, :4] = 255


def ask(use_raw):
    # A new request each time, because the converter removes the data from a request whose contents it makes raw.
    tensor = RequestInput(name="image", datatype="UINT8", shape=[2, 8, 8, 1], data=rows.ravel().tolist())
    request = InferenceRequest(id="mine", inputs=[tensor], outputs=[RequestOutput(name="probabilities")])
    message = converters.ModelInferRequestConverter.from_types(request, "tiny", "", use_raw=use_raw)
    response = converters.ModelInferResponseConverter.to_types(stub.ModelInfer(message, timeout=20))
    array = NumpyRequestCodec.decode_response(response)
    return [response.id, response.model_version, array.reshape(2, 3).argmax(axis=1).tolist()]


metadata = stub.ModelMetadata(dataplane_pb2.ModelMetadataRequest(name="tiny"), timeout=20)
found = {
    "live": stub.ServerLive(dataplane_pb2.ServerLiveRequest(), timeout=20).live,
    "ready": stub.ModelReady(dataplane_pb2.ModelReadyRequest(name="tiny"), timeout=20).ready,
    "inputs": [[item.name, item.datatype, list(item.shape)] for item in metadata.inputs],
    "raw": ask(True),
    "typed": ask(False),
}
json.dump(found, sys.stdout)
