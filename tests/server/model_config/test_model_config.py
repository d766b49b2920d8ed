"""config.pbtxt, compared with the ONNX file and the manifest."""

import dataclasses
from pathlib import Path

import pytest

from cnnserve.datatypes import TensorSpec
from cnnserve.errors import ModelLoadFailed
from cnnserve.model_config import pbtxt
from cnnserve.model_config.pbtxt import VersionPolicy, parse, parse_json, version_policy
from cnnserve.model_config.settings import resolve
from cnnserve.repository import manifest as manifests
from support import write_version

INPUT = TensorSpec("image", "UINT8", (-1, 8, 8, 1))
OUTPUT = TensorSpec("probabilities", "FP32", (-1, 3))
TENSORS = """
input { name: "image" data_type: TYPE_UINT8 dims: [8, 8, 1] }
output { name: "probabilities" data_type: TYPE_FP32 dims: [3] label_filename: "labels.txt" }
"""


def test_nothing_said_is_derived_from_the_file() -> None:
    settings = resolve("m", None, None, [INPUT], [OUTPUT])
    assert (settings.batched, settings.max_batch_size) == (True, 32)
    assert settings.input.dims == (8, 8, 1)
    assert settings.policy.queue.max_queue_size == 512
    assert settings.policy.max_queue_delay_us == 0


def test_everything_said_is_used() -> None:
    config = parse(
        f"""max_batch_size: 16 {TENSORS}
        dynamic_batching {{
          preferred_batch_size: [8, 4] max_queue_delay_microseconds: 500
          default_queue_policy {{ max_queue_size: 10 default_timeout_microseconds: 7 }}
        }}
        instance_group {{ count: 2 kind: KIND_CPU }}""",
        "m",
    )
    settings = resolve("m", config, None, [INPUT], [OUTPUT])
    policy = settings.policy
    assert (settings.max_batch_size, settings.label_file) == (16, "labels.txt")
    assert policy.preferred_batch_sizes == (4, 8)
    assert (policy.max_queue_delay_us, policy.queue.max_queue_size, policy.queue.default_timeout_us) == (500, 10, 7)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("max_batch_size: many", "line 1"),
        ("\nmax_batchsize: 3", "line 2.*max_batchsize"),
        ('name: "other"', 'name is "other", the folder is "m"'),
        ('backend: "python"', 'backend is "python"'),
        ('platform: "tensorflow_savedmodel"', "platform"),
        ("max_batch_size: -1", "max_batch_size is -1"),
        ('ensemble_scheduling { step { model_name: "x" } }', "ensemble_scheduling is not supported"),
        ("sequence_batching { }", "sequence_batching"),
        ("model_transaction_policy { decoupled: true }", "decoupled"),
        ("response_cache { enable: true }", "response_cache is not supported"),
        ('metric_tags { key: "a" value: "b" }', "metric_tags is not supported"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(text: str, said: str) -> None:
    with pytest.raises(ModelLoadFailed, match=said):
        parse(text, "m")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            'input { name: "image" data_type: 99 dims: [8, 8, 1] }',
            "input.data_type is 99, expected one of TYPE_INVALID",
        ),
        ('input { name: "image" data_type: TYPE_UINT8 dims: [8, 8, 1] format: 77 }', "input.format is 77"),
        ("instance_group { kind: 99 }", "instance_group.kind is 99, expected one of KIND_AUTO"),
        (
            "dynamic_batching { default_queue_policy { timeout_action: 99 } }",
            "dynamic_batching.default_queue_policy.timeout_action is 99, expected one of REJECT",
        ),
        (
            "dynamic_batching { priority_queue_policy { key: 3 value { timeout_action: 99 } } }",
            r"priority_queue_policy\[3\].timeout_action is 99",
        ),
    ],
)
def test_numbers_that_name_nothing_are_refused(text: str, said: str) -> None:
    with pytest.raises(ModelLoadFailed, match=said):
        parse(text, "m")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"sequence_batching": {}}', "sequence_batching is not supported"),
        ('{"sequenceBatching": {}}', "sequence_batching is not supported"),
        ('{"ensemble_scheduling": {"step": [{"model_name": "x"}]}}', "ensemble_scheduling is not supported"),
        ('{"input": [{"name": "image", "data_type": 99}]}', "input.data_type is 99"),
    ],
)
def test_a_loads_json_is_refused_like_the_file(text: str, said: str) -> None:
    with pytest.raises(ModelLoadFailed, match=said):
        parse_json(text, "m")


def test_priorities() -> None:
    config = parse(
        """dynamic_batching {
          priority_levels: 3 default_priority_level: 2 preserve_ordering: true
          priority_queue_policy {
            key: 1 value { max_queue_size: 4 timeout_action: DELAY allow_timeout_override: true }
          }
        }""",
        "m",
    )
    policy = resolve("m", config, None, [INPUT], [OUTPUT]).policy
    assert (policy.priority_levels, policy.default_priority, policy.preserve_ordering) == (3, 2, True)
    own = policy.queue_policy(1)
    assert (own.max_queue_size, own.delay_expired, own.timeout_override) == (4, True, True)
    assert policy.queue_policy(3).max_queue_size == 512


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('input { name: "data" data_type: TYPE_UINT8 dims: [8, 8, 1] }', 'input is "data", the ONNX file has "image"'),
        ('max_batch_size: 4 input { name: "image" data_type: TYPE_FP32 dims: [8, 8, 1] }', "has data_type TYPE_FP32"),
        ('max_batch_size: 4 input { name: "image" data_type: TYPE_UINT8 dims: [1, 8, 8] }', r"write dims: \[8, 8, 1\]"),
        (
            "max_batch_size: 4 dynamic_batching { preferred_batch_size: 5 }",
            "preferred_batch_size is 5, expected 1 to 4",
        ),
        (
            "dynamic_batching { priority_levels: 18446744073709551615 default_priority_level: 1 }",
            "priority_levels is 18446744073709551615, expected 1 to 1024",
        ),
        ("max_batch_size: 2000000000", "max_batch_size is 2000000000, the limit is 65536"),
        ("dynamic_batching { priority_levels: 2 }", "default_priority_level is 0, expected 1 to 2"),
        (
            "dynamic_batching { priority_queue_policy { key: 3 value { max_queue_size: 1 } } }",
            "priority_queue_policy has level 3, expected 1 to 1",
        ),
    ],
)
def test_what_contradicts_the_file_is_told_with_the_fix(text: str, said: str) -> None:
    with pytest.raises(ModelLoadFailed, match=said):
        resolve("m", parse(text, "m"), None, [INPUT], [OUTPUT])


def test_a_fixed_batch_bounds_the_maximum() -> None:
    fixed = TensorSpec("image", "UINT8", (4, 8, 8, 1))
    settings = resolve("m", None, None, [fixed], [OUTPUT])
    assert (settings.max_batch_size, settings.fixed_batch) == (4, 4)
    with pytest.raises(ModelLoadFailed, match="the ONNX file has the fixed batch size 4"):
        resolve("m", parse("max_batch_size: 8", "m"), None, [fixed], [OUTPUT])


def test_several_inputs_are_refused() -> None:
    with pytest.raises(ModelLoadFailed, match="2 inputs"):
        resolve("m", None, None, [INPUT, INPUT], [OUTPUT])


@pytest.mark.parametrize(
    ("text", "expected", "chosen"),
    [
        ("", VersionPolicy(), [9]),
        ("version_policy { latest { num_versions: 2 } }", VersionPolicy(count=2), [3, 9]),
        ("version_policy { all {} }", VersionPolicy("all"), [1, 3, 9]),
        ("version_policy { specific { versions: [3, 4] } }", VersionPolicy("specific", versions=(3, 4)), [3]),
    ],
)
def test_version_policy(text: str, expected: VersionPolicy, chosen: list[int]) -> None:
    policy = version_policy(parse(text, "m"))
    assert policy == expected
    assert policy.choose([9, 1, 3]) == chosen


def test_the_rendered_config_says_what_would_be_derived(tmp_path: Path) -> None:
    manifest = manifests.read(write_version(tmp_path / "m" / "1"))
    assert manifest is not None
    config = parse(pbtxt.render(manifest), "m")
    derived = resolve("m", None, manifest, [INPUT], [OUTPUT])
    rendered = resolve("m", config, manifest, [INPUT], [OUTPUT])
    assert rendered.label_file == "labels.txt"
    assert (rendered.input, rendered.outputs, rendered.policy) == (derived.input, derived.outputs, derived.policy)


@pytest.mark.parametrize("name", ["a\\b", 'a"b', "a\nb", "\x1b[31m", 'x" dims: [ 9 ] #', "Bild €"])
def test_any_name_of_a_tensor_is_rendered_so_that_it_reads_back(name: str, tmp_path: Path) -> None:
    manifest = manifests.read(write_version(tmp_path / "m" / "1"))
    assert manifest is not None
    manifest = dataclasses.replace(
        manifest,
        input=dataclasses.replace(manifest.input, name=name),
        output=dataclasses.replace(manifest.output, name=f"{name}!"),
    )
    text = pbtxt.render(manifest)
    assert "\x1b" not in text
    tensors = [dataclasses.replace(INPUT, name=name)], [dataclasses.replace(OUTPUT, name=f"{name}!")]
    settings = resolve("m", parse(text, "m"), manifest, *tensors)
    assert (settings.input.name, settings.outputs[0].name) == (name, f"{name}!")


def target_of(value: str) -> float:
    config = parse(f'parameters {{ key: "cnnserve.target_p99_ms" value {{ string_value: "{value}" }} }}', "m")
    return resolve("m", config, None, [INPUT], [OUTPUT]).policy.target_ms


@pytest.mark.parametrize(("value", "target_ms"), [("50", 50), ("0.5", 0.5), ("60000", 60000)])
def test_latency_target(value: str, target_ms: float) -> None:
    assert target_of(value) == target_ms


@pytest.mark.parametrize("value", ["0", "-5", "50ms", "nan", "60001"])
def test_a_latency_target_that_is_none_fails_the_load(value: str) -> None:
    with pytest.raises(ModelLoadFailed, match=rf'target_p99_ms is "{value}", expected a number of milliseconds'):
        target_of(value)
