r"""Calls a server without its message files: gRPC reflection describes the services and their messages.

This is how to write a client in a language for which you generate no code. In Python it needs grpcio, protobuf and
grpcio-reflection, and nothing of cnnserve. Run this in the folder of the repository:

    cnnserve serve --repository model_repo
    python examples/reflection.py model_repo/lenet5/1/golden.png --model lenet5

The tool grpcurl does the same on the command line. `make interop` runs these commands; the other tests do not.

    grpcurl -plaintext 127.0.0.1:8001 list
    grpcurl -plaintext 127.0.0.1:8001 describe cnnserve.v1.Classifier
    echo '{"model": "lenet5", "top_k": 1, "images": [{"encoded": "'$(base64 -w 0 model_repo/lenet5/1/golden.png)'"}]}' \
        | grpcurl -plaintext -d @ 127.0.0.1:8001 cnnserve.v1.Classifier/Classify
"""

import argparse
from pathlib import Path

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.json_format import MessageToJson
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase


def main() -> None:
    """Prints the services of the server, and the response to one Classify as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--address", default="127.0.0.1:8001")
    arguments = parser.parse_args()

    with grpc.insecure_channel(arguments.address) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        print("services:", *sorted(database.get_services()))
        service = DescriptorPool(database).FindServiceByName("cnnserve.v1.Classifier")
        method = service.methods_by_name["Classify"]
        request = GetMessageClass(method.input_type)(model=arguments.model, top_k=3)
        request.images.add(encoded=arguments.image.read_bytes())
        classify = channel.unary_unary(
            f"/{service.full_name}/{method.name}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )
        print(MessageToJson(classify(request, timeout=10)))


if __name__ == "__main__":
    main()
