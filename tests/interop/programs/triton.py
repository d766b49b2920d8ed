"""tritonclient over gRPC: makes the calls of its users and prints the results."""

import asyncio
import json
import queue
import sys
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException
from tritonclient.utils import shared_memory as shm

address, pictures, prefix = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
LEFT = np.zeros((1, 8, 8, 1), np.uint8)
LEFT[:, :, :4] = 255
BRIGHT = np.full((1, 8, 8, 1), 255, np.uint8)
client = triton.InferenceServerClient(address)
found = {}


def statistics():
    row = client.get_inference_statistics("tiny").model_stats[0]
    return np.array([row.inference_count, row.inference_stats.success.count, row.execution_count])


def tensor(array, module=triton):
    item = module.InferInput("image", list(array.shape), "UINT8")
    item.set_data_from_numpy(array)
    return item


def classes(result):
    return [int(index) for index in result.as_numpy("probabilities").argmax(axis=1)]


before = statistics()
found["live"] = [client.is_server_live(), client.is_server_ready(), client.is_model_ready("tiny")]
found["metadata"] = client.get_model_metadata("tiny", as_json=True)
found["config"] = client.get_model_config("tiny", as_json=True)["config"]
found["extensions"] = list(client.get_server_metadata().extensions)

result = client.infer("tiny", [tensor(np.concatenate([LEFT, BRIGHT]))], request_id="mine", client_timeout=20)
found["infer"] = [classes(result), result.get_response().id]

wanted = [triton.InferRequestedOutput("probabilities", class_count=2)]
result = client.infer("tiny", [tensor(LEFT)], outputs=wanted)
found["classes"] = [[text.decode() for text in row] for row in result.as_numpy("probabilities")]

files = np.array([[(pictures / f"{kind}.png").read_bytes()] for kind in ("bright", "dark", "left")], dtype=object)
encoded = triton.InferInput("image", list(files.shape), "BYTES")
encoded.set_data_from_numpy(files)
found["files"] = classes(client.infer("tiny", [encoded]))

answers = queue.Queue()
pending = [client.async_infer("tiny", [tensor(LEFT)], lambda result, error: answers.put((result, error))) for _ in "ab"]
found["async"] = [classes(answers.get(timeout=20)[0]) for _ in pending]

client.start_stream(lambda result, error: answers.put((result, error)))
for index in range(10):
    client.async_stream_infer("nobody" if index == 5 else "tiny", [tensor(LEFT)], request_id=str(index))
streamed = [answers.get(timeout=20) for _ in range(10)]
client.stop_stream()
found["stream"] = [error.message() if error else result.get_response().id for result, error in streamed]

key = f"{prefix}-tensor"
region = shm.create_shared_memory_region("both", key, 4096)
try:
    shm.set_shared_memory_region(region, [LEFT])
    client.register_system_shared_memory("both", key, 4096)
    shared = triton.InferInput("image", [1, 8, 8, 1], "UINT8")
    shared.set_shared_memory("both", LEFT.nbytes)
    output = triton.InferRequestedOutput("probabilities")
    output.set_shared_memory("both", 12, offset=1024)
    result = client.infer("tiny", [shared], outputs=[output])
    there = shm.get_contents_as_numpy(region, np.float32, [1, 3], offset=1024)
    found["shared"] = [int(there.argmax()), result.get_output("probabilities").name]
    found["regions"] = list(client.get_system_shared_memory_status().regions)
    client.unregister_system_shared_memory()
finally:
    shm.destroy_shared_memory_region(region)

try:
    client.infer("nobody", [tensor(LEFT)])
except InferenceServerException as error:
    found["error"] = [error.status(), error.message()]

client.unload_model("lenet5")
found["unloaded"] = client.is_model_ready("lenet5")
client.load_model("lenet5", config=json.dumps({"max_batch_size": 3}))
found["overridden"] = client.get_model_config("lenet5").config.max_batch_size
client.load_model("lenet5")
found["index"] = sorted(f"{row.name} {row.version} {row.state}" for row in client.get_model_repository_index().models)
found["statistics"] = (statistics() - before).tolist()
found["settings"] = [
    list(client.get_trace_settings().settings["trace_level"].value),
    client.get_log_settings().settings["log_info"].bool_param,
]
client.close()


async def asynchronous():
    async with triton_aio.InferenceServerClient(address) as other:
        results = await asyncio.gather(*(other.infer("tiny", [tensor(LEFT, triton_aio)]) for _ in range(4)))

        async def requests():
            for index in range(3):
                yield {"model_name": "tiny", "inputs": [tensor(BRIGHT, triton_aio)], "request_id": str(index)}

        stream = [classes(result) async for result, error in other.stream_infer(requests())]
    return [classes(result) for result in results], stream


found["aio"] = asyncio.run(asynchronous())
json.dump(found, sys.stdout)
