"""The config of a model that is in force: the settings of its config.pbtxt, and those that were derived."""

from typing import Any

from cnnserve.model_config.execution import Execution
from cnnserve.model_config.settings import Settings, WireTensor
from cnnserve.wire import model_config_pb2 as pb


def effective(
    config: pb.ModelConfig | None, settings: Settings, execution: Execution, model_file: str
) -> pb.ModelConfig:
    """Returns the whole config, as clients of Triton expect it from ModelConfig. `model_file`: its file name."""
    result = pb.ModelConfig()
    result.MergeFrom(config or pb.ModelConfig())
    result.name, result.backend, result.platform = settings.name, "onnxruntime", "onnxruntime_onnx"
    result.default_model_filename = model_file
    result.max_batch_size = settings.max_batch_size if settings.batched else 0
    if result.version_policy.WhichOneof("policy_choice") is None:
        result.version_policy.latest.num_versions = 1
    if not result.input:
        result.input.append(pb.ModelInput(**_described(settings.input)))
    declared = {output.name: output for output in result.output}
    outputs = [declared.get(tensor.name) or pb.ModelOutput(**_described(tensor)) for tensor in settings.outputs]
    del result.output[:]
    result.output.extend(outputs)
    del result.instance_group[:]
    result.instance_group.extend(_groups(settings.name, execution))
    if settings.batched:
        _add_batching(result.dynamic_batching, settings)
    return result


def report(config: pb.ModelConfig, **parameters: str) -> None:
    """Adds `parameters.REPORTED_PARAMETERS` to the config. They are given without their prefix."""
    for name, value in parameters.items():
        config.parameters[f"cnnserve.{name}"].string_value = value


def _described(tensor: WireTensor) -> dict[str, Any]:
    return {"name": tensor.name, "data_type": f"TYPE_{tensor.datatype}", "dims": tensor.dims}


def _groups(name: str, execution: Execution) -> list[pb.ModelInstanceGroup]:
    group = pb.ModelInstanceGroup
    groups = []
    if execution.cpu_instances:
        groups.append(group(kind=group.KIND_CPU, count=execution.cpu_instances))
    devices = [gpu.device_id for gpu in execution.gpus]
    groups += [
        group(kind=group.KIND_GPU, count=devices.count(device), gpus=[device]) for device in sorted(set(devices))
    ]
    for number, item in enumerate(groups):
        item.name = f"{name}_{number}"
    return groups


def _add_batching(batching: pb.ModelDynamicBatching, settings: Settings) -> None:
    """Adds the batching in force. Every model batches, even if its config does not ask for it, in a bounded queue."""
    policy = settings.policy
    if not batching.preferred_batch_size:
        batching.preferred_batch_size.append(settings.max_batch_size)
    batching.default_queue_policy.max_queue_size = policy.queue.max_queue_size
    for level, queue in policy.priority_queues.items():
        batching.priority_queue_policy[level].max_queue_size = queue.max_queue_size
