"""Health and reflection with grpc's own packages, as grpc_health_probe and grpcurl use them."""

import json
import sys

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

INFERENCE = "inference.GRPCInferenceService"
channel = grpc.insecure_channel(sys.argv[1])
health = health_pb2_grpc.HealthStub(channel)
found = {"health": {}}
for service in ("", "tiny"):
    request = health_pb2.HealthCheckRequest(service=service)
    watch = health.Watch(request, timeout=20)
    found["health"][service] = [health.Check(request, timeout=20).status, next(watch).status]
    watch.cancel()
try:
    health.Check(health_pb2.HealthCheckRequest(service="nobody"), timeout=20)
except grpc.RpcError as error:
    found["unknown"] = error.code().name

database = ProtoReflectionDescriptorDatabase(channel)
found["services"] = sorted(database.get_services())
# This call uses only what the server describes by reflection.
pool = DescriptorPool(database)
method = pool.FindServiceByName(INFERENCE).methods_by_name["ModelMetadata"]
request, answer = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
call = channel.unary_unary(f"/{INFERENCE}/{method.name}", request.SerializeToString, answer.FromString)
found["platform"] = call(request(name="tiny"), timeout=20).platform
json.dump(found, sys.stdout)
