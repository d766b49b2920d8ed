"""A gRPC server that runs no model: it shows how many requests/s the transport alone reaches.

It runs `grpc.aio` on uvloop and reads and writes the messages of ModelInfer. It prints its port, and exits as soon as
its standard input ends.
"""

import argparse
import asyncio
import sys

import grpc
import uvloop

from cnnserve.wire import open_inference_pb2 as pb


async def infer(request: pb.ModelInferRequest, _: object) -> pb.ModelInferResponse:
    """Returns a response with the shape of LeNet-5's output."""
    rows = request.inputs[0].shape[0]
    response = pb.ModelInferResponse(model_name=request.model_name, model_version="1", id=request.id)
    response.outputs.add(name="probabilities", datatype="FP32", shape=(rows, 10))
    response.raw_output_contents.append(bytes(40 * rows))
    return response


async def serve() -> None:
    """Serves until standard input ends."""
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
    handler = grpc.unary_unary_rpc_method_handler(
        infer,
        request_deserializer=pb.ModelInferRequest.FromString,
        response_serializer=pb.ModelInferResponse.SerializeToString,
    )
    service = grpc.method_handlers_generic_handler("inference.GRPCInferenceService", {"ModelInfer": handler})
    server.add_generic_rpc_handlers([service])
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    await server.start()
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await server.stop(0)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    uvloop.run(serve())
