"""The execution plan from instance_group, optimization and parameters of config.pbtxt, and refused values."""

import pytest

from cnnserve.errors import ModelLoadFailed
from cnnserve.model_config import execution, pbtxt
from cnnserve.model_config.execution import Device, Execution
from cnnserve.model_config.providers import CUDA, TENSORRT, RuntimeOptions

GPU = "instance_group { kind: KIND_GPU }"


def plan(text: str, device: Device = "cpu") -> Execution:
    return execution.read(pbtxt.parse(text, "m"), device)


def gpu_accelerator(name: str, **parameters: str) -> str:
    entries = " ".join(f'parameters {{ key: "{key}" value: "{value}" }}' for key, value in parameters.items())
    return f'gpu_execution_accelerator {{ name: "{name}" {entries} }}'


def accelerators(*each: str, more: str = "") -> str:
    return f"optimization {{ execution_accelerators {{ {' '.join(each)} }} {more} }}"


def accelerator(name: str, **parameters: str) -> str:
    return accelerators(gpu_accelerator(name, **parameters))


def parameter(name: str, value: str) -> str:
    return f'parameters {{ key: "{name}" value {{ string_value: "{value}" }} }}'


@pytest.mark.parametrize(
    ("text", "device", "cpu", "gpus"),
    [
        ("", "cpu", 1, []),
        ("", "cuda", 0, [0]),
        ("instance_group { count: 2 }", "cpu", 2, []),
        ("instance_group { count: 2 }", "cuda", 0, [0, 0]),
        ("instance_group { kind: KIND_CPU count: 3 }", "cuda", 3, []),
        (GPU, "cpu", 0, [0]),
        ("instance_group { kind: KIND_GPU count: 2 gpus: [0, 3] }", "cpu", 0, [0, 0, 3, 3]),
        ("instance_group { gpus: [1] }", "cpu", 1, []),
        (GPU + " instance_group { kind: KIND_CPU count: 2 }", "cpu", 2, [0]),
        (GPU + accelerator("cuda", device_id="2"), "cpu", 0, [2]),
        (GPU + accelerator("tensorrt", device_id="2"), "cpu", 0, [2]),
    ],
)
def test_the_kind_decides_where_and_the_device_decides_auto(
    text: str, device: Device, cpu: int, gpus: list[int]
) -> None:
    found = plan(text, device)
    assert (found.cpu_instances, [gpu.device_id for gpu in found.gpus]) == (cpu, gpus)
    assert found.instances == cpu + len(gpus)


def test_cuda_has_our_defaults_and_the_configs_options() -> None:
    ((name, options),) = plan(GPU + accelerator("cuda", use_tf32="false", gpu_mem_limit="1000")).gpus[0].chain
    assert name == CUDA
    assert options == {
        "arena_extend_strategy": "kSameAsRequested",
        "cudnn_conv_algo_search": "HEURISTIC",
        "device_id": "0",
        "gpu_mem_limit": "1000",
        "use_tf32": "0",
    }


def test_tf32_is_a_reduced_precision() -> None:
    assert plan(GPU).gpus[0].reduced_precision
    assert not plan(GPU + accelerator("cuda", use_tf32="0")).gpus[0].reduced_precision


def test_cuda_graphs_have_two_names() -> None:
    assert plan(GPU + "optimization { cuda { graphs: true } }").gpus[0].graphs
    assert plan(GPU + accelerator("cuda", enable_cuda_graph="1")).gpus[0].graphs
    assert not plan(GPU).gpus[0].graphs


def test_tensorrt_has_cuda_beneath_it_and_knows_tritons_words() -> None:
    text = GPU + accelerator("tensorrt", precision_mode="FP16", max_workspace_size_bytes="1073741824")
    (first, options), (second, _) = plan(text).gpus[0].chain
    assert (first, second) == (TENSORRT, CUDA)
    assert options["trt_fp16_enable"] == options["trt_engine_cache_enable"] == "1"
    assert options["trt_max_workspace_size"] == "1073741824"


def test_our_own_parameters() -> None:
    text = parameter("cnnserve.allow_cpu_fallback", "true") + parameter("cnnserve.batch_buckets", "1, 2,8")
    found = plan(text)
    assert (found.allow_cpu_fallback, found.batch_buckets) == (True, (1, 2, 8))
    assert (plan("").allow_cpu_fallback, plan("").batch_buckets) == (False, None)


def test_onnxruntimes_parameters() -> None:
    said = {
        "intra_op_thread_count": "3",
        "inter_op_thread_count": "2",
        "execution_mode": "1",
        "enable_mem_arena": "0",
        "enable_mem_pattern": "false",
        "memory.enable_memory_arena_shrinkage": "cpu:0",
        "session.use_device_allocator_for_initializers": "1",
    }
    text = "optimization { graph { level: 1 } }" + "".join(parameter(*item) for item in said.items())
    assert plan(text).runtime == RuntimeOptions("extended", 3, 2, True, False, False, "cpu:0", True)
    assert plan("").runtime == RuntimeOptions()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("instance_group { kind: KIND_MODEL }", "KIND_MODEL is not supported"),
        ("instance_group { count: -1 }", "count is -1"),
        ("instance_group { kind: KIND_CPU gpus: [0] }", "gpus"),
        ("instance_group { gpus: [1, 1] }", "expected different device numbers"),
        ('instance_group { host_policy: "numa" }', "instance_group.host_policy is not supported"),
        ("instance_group { passive: true }", "instance_group.passive"),
        ("optimization { priority: PRIORITY_MAX }", "optimization.priority"),
        ("optimization { eager_batching: true }", "optimization.eager_batching"),
        ("optimization { graph { level: 7 } }", r"graph.level is 7, expected -1 \(basic\)"),
        ("optimization { cuda { busy_wait_events: true } }", "optimization.cuda.busy_wait_events"),
        ("optimization { output_pinned_memory { enable: true } }", "output_pinned_memory is not supported"),
        (accelerator("gpu_io"), 'gpu_execution_accelerator "gpu_io" is unknown, expected one of cuda, tensorrt'),
        (
            accelerator("cuda", use_tf23="1"),
            'cuda option "use_tf23" is unknown, expected one of arena_extend_strategy, .*use_tf32',
        ),
        (accelerator("cuda", use_tf32="maybe"), 'use_tf32 is "maybe", expected true or false'),
        (accelerator("cuda", gpu_mem_limit="2GB"), 'gpu_mem_limit is "2GB", expected a whole number of at least 1'),
        (accelerator("cuda", cudnn_conv_algo_search="FAST"), "expected EXHAUSTIVE or HEURISTIC or DEFAULT"),
        (accelerator("tensorrt", precision_mode="FP8"), "expected FP32, FP16, BF16, INT8"),
        (accelerator("tensorrt", trt_engine_cache_path="/x"), "--engine-cache"),
        (accelerators(gpu_accelerator("cuda"), gpu_accelerator("cuda")), "cuda is given twice; keep one"),
        (accelerators(gpu_accelerator("tensorrt"), more="cuda { graphs: true }"), "exclude each other"),
        (
            accelerators(gpu_accelerator("cuda", enable_cuda_graph="0"), more="cuda { graphs: true }"),
            "enable_cuda_graph 0",
        ),
        ("instance_group { gpus: [1] }" + accelerator("cuda", device_id="0"), "remove the device_id"),
        (
            "instance_group { kind: KIND_CPU }" + accelerator("cuda"),
            "no effect, because every instance_group is KIND_CPU",
        ),
        (
            'optimization { execution_accelerators { cpu_execution_accelerator { name: "openvino" } } }',
            'cpu_execution_accelerator "openvino" is not supported',
        ),
        (
            parameter("gpu_mem_limit", "1"),
            'gpu_mem_limit: it belongs to the accelerator cuda; move it to .*name: "cuda"',
        ),
        (parameter("share_session_between_instances", "true"), "always share one session"),
        (parameter("team", "vision"), '"team" is unknown, expected one of cnnserve.allow_cpu_fallback'),
        (
            parameter("cnnserve.bucket", "1"),
            '"cnnserve.bucket" is unknown, expected one of cnnserve.allow_cpu_fallback, cnnserve.allow_unverified',
        ),
        (parameter("cnnserve.batch_buckets", "1,x"), 'batch_buckets is "x"'),
        (parameter("cnnserve.allow_cpu_fallback", "si"), "expected true or false"),
        ("instance_group { count: 1000000 kind: KIND_CPU }", "count 1000000 makes 1000000 instances.*the limit is 256"),
        ("instance_group { count: 200 } instance_group { count: 57 }", "count 57 makes 257 instances"),
        ("instance_group { count: 100 kind: KIND_GPU gpus: [0, 1, 2] }", "count 100 makes 300 instances"),
        (parameter("execution_mode", "2"), "execution_mode is 2, expected at most 1"),
    ],
)
def test_what_has_no_effect_is_refused_by_name(text: str, said: str) -> None:
    with pytest.raises(ModelLoadFailed, match=said):
        plan(text)


def test_an_accelerator_may_wait_for_a_server_with_a_gpu() -> None:
    assert plan(accelerator("cuda")).gpus == ()
