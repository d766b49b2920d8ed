"""The Open Inference Protocol with Triton's extensions, RPC by RPC, against a real server."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from google.protobuf import json_format

from cnnserve.wire import model_config_pb2
from cnnserve.wire import open_inference_pb2 as o
from oip import Oip, encoded, floats, rows, strings, tensor, with_parameter
from support import HANG_S, RunningServer, picture, serving, tiny_onnx, wait_until, write_version

Code = grpc.StatusCode
# A queue of four rows. Fewer rows wait an hour for a batch of four.
WAITING = """max_batch_size: 8
dynamic_batching {
  preferred_batch_size: 4 max_queue_delay_microseconds: 3600000000 default_queue_policy { max_queue_size: 4 }
}
"""
HASTY = """max_batch_size: 8
dynamic_batching { default_queue_policy { allow_timeout_override: true } }
"""
EXPLICIT = ("--model-control-mode", "explicit", "--load-model", "*", "--allow-model-control")


def write_models(root: Path) -> Path:
    write_version(root / "tiny" / "1")
    write_version(root / "tiny" / "3")
    altered = write_version(root / "altered" / "1")
    (altered / "labels.txt").write_text("dark\nleft\nblight\n")
    for name, config in (("waiting", WAITING), ("hasty", HASTY)):
        write_version(root / name / "1")
        (root / name / "config.pbtxt").write_text(config)
    logits = root / "logits" / "1"
    logits.mkdir(parents=True)
    (logits / "model.onnx").write_bytes(tiny_onnx(softmax=False))
    (root / "empty").mkdir()
    return root


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("protocol"))


@pytest.fixture(scope="module")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with serving(tmp_path_factory.mktemp("log") / "log", repository, *EXPLICIT) as server:
        yield server


def named(name: str, version: str = "") -> dict[str, str]:
    return {"name": name, "version": version}


def infer(model: str = "tiny", version: str = "") -> o.ModelInferRequest:
    return tensor(model=model, model_version=version)


def wants(**parameter: object) -> o.ModelInferRequest:
    """Returns a request for output `probabilities` with one parameter."""
    request = tensor(outputs=[{"name": "probabilities"}])
    [(name, value)] = parameter.items()
    with_parameter(request.outputs[0], name, **value)  # type: ignore[arg-type]
    return request


def misnamed() -> o.ModelInferRequest:
    request = tensor()
    request.inputs[0].name = "pixels"
    return request


def with_type(datatype: str) -> o.ModelInferRequest:
    request = tensor()
    request.inputs[0].datatype = datatype
    return request


def twice() -> o.ModelInferRequest:
    request = tensor()
    request.inputs.append(request.inputs[0])
    return request


def cut() -> o.ModelInferRequest:
    request = tensor()
    request.raw_input_contents[0] = request.raw_input_contents[0][:-1]
    return request


def region(**parameters: object) -> o.ModelInferRequest:
    request = tensor()
    for name, value in parameters.items():
        with_parameter(request.inputs[0], name, **value)  # type: ignore[arg-type]
    return request


ONE = {"int64_param": 1}
REFUSED = [
    ("ModelInfer", infer("nobody"), Code.NOT_FOUND, "model 'nobody' is not in the model repository"),
    ("ModelInfer", infer(version="2"), Code.NOT_FOUND, "has no version 2; it has 3"),
    ("ModelInfer", infer(version="1st"), Code.NOT_FOUND, "neither a version number nor a label"),
    ("ModelInfer", infer(version="-1"), Code.NOT_FOUND, "neither a version number nor a label"),
    ("ModelInfer", infer("empty"), Code.UNAVAILABLE, "model 'empty' has no version to serve"),
    ("ModelInfer", infer("altered"), Code.UNAVAILABLE, "version 1 is UNAVAILABLE: file labels.txt was altered"),
    ("ModelReady", o.ModelReadyRequest(name="nobody"), Code.NOT_FOUND, "nobody"),
    ("ModelReady", o.ModelReadyRequest(**named("tiny", "2")), Code.NOT_FOUND, "no version 2"),
    ("ModelMetadata", o.ModelMetadataRequest(name="nobody"), Code.NOT_FOUND, "nobody"),
    ("ModelConfig", o.ModelConfigRequest(**named("tiny", "2")), Code.NOT_FOUND, "no version 2"),
    ("ModelConfig", o.ModelConfigRequest(name="altered"), Code.UNAVAILABLE, "altered"),
    ("ModelStatistics", o.ModelStatisticsRequest(name="nobody"), Code.NOT_FOUND, "nobody"),
    ("ModelStatistics", o.ModelStatisticsRequest(version="1"), Code.INVALID_ARGUMENT, "version '1' but no model"),
    ("ModelInfer", tensor(rows(9)), Code.INVALID_ARGUMENT, "has 9 rows, model 'tiny' takes at most 8"),
    ("ModelInfer", tensor(rows(1, side=4)), Code.INVALID_ARGUMENT, "shape [1, 4, 8, 1], expected [-1, 8, 8, 1]"),
    ("ModelInfer", misnamed(), Code.INVALID_ARGUMENT, "has input 'pixels', but the input of model 'tiny' is 'image'"),
    ("ModelInfer", with_type("INT8"), Code.INVALID_ARGUMENT, "has type INT8, expected UINT8"),
    ("ModelInfer", with_type("TENSOR"), Code.INVALID_ARGUMENT, "has datatype 'TENSOR', expected one of BOOL, "),
    ("ModelInfer", twice(), Code.INVALID_ARGUMENT, "2 inputs, model 'tiny' takes 1"),
    ("ModelInfer", cut(), Code.INVALID_ARGUMENT, "has 63 bytes, expected 64"),
    ("ModelInfer", o.ModelInferRequest(model_name="tiny"), Code.INVALID_ARGUMENT, "0 inputs, model 'tiny' takes 1"),
    (
        "ModelInfer",
        tensor(outputs=[{"name": "probabilities"}] * 2),
        Code.INVALID_ARGUMENT,
        "asks for output 'probabilities' twice",
    ),
    (
        "ModelInfer",
        with_parameter(tensor(), "timeout", int64_param=-1),
        Code.INVALID_ARGUMENT,
        "expected an int64_param of 0 or more",
    ),
    (
        "ModelInfer",
        with_parameter(tensor(), "priority", string_param="1"),
        Code.INVALID_ARGUMENT,
        "expected an int64_param of 0 or more",
    ),
    ("ModelInfer", with_parameter(tensor(), "triton_x", bool_param=True), Code.INVALID_ARGUMENT, "reserved"),
    (
        "ModelInfer",
        with_parameter(tensor(model="hasty"), "timeout", int64_param=1),
        Code.DEADLINE_EXCEEDED,
        "the deadline passed",
    ),
    ("ModelInfer", wants(classification={"string_param": "1"}), Code.INVALID_ARGUMENT, "expected an int64_param"),
    ("ModelInfer", wants(classification={"int64_param": 0}), Code.INVALID_ARGUMENT, "is 0, expected 1 or more"),
    (
        "ModelInfer",
        region(shared_memory_region={"string_param": "x"}, shared_memory_byte_size={"int64_param": 64}),
        Code.UNIMPLEMENTED,
        "shared memory is off",
    ),
    (
        "ModelInfer",
        region(shared_memory_region={"string_param": "x"}),
        Code.INVALID_ARGUMENT,
        "shared_memory_region without shared_memory_byte_size",
    ),
    ("ModelInfer", region(shared_memory_offset=ONE), Code.INVALID_ARGUMENT, "without shared_memory_region"),
    ("ModelInfer", encoded(model="logits"), Code.INVALID_ARGUMENT, "has type BYTES, expected UINT8"),
    ("ModelInfer", encoded(shape=[1, 2]), Code.INVALID_ARGUMENT, "send n images as [n] or [n, 1]"),
    ("ModelInfer", encoded(shape=[9]), Code.INVALID_ARGUMENT, "9 images, model 'tiny' takes at most 8"),
    ("ModelInfer", encoded(shape=[2]), Code.INVALID_ARGUMENT, "ends before the length of element 1"),
    ("ModelInfer", encoded(picture("left"), b"no"), Code.INVALID_ARGUMENT, "image 1 of 2: "),
    ("RepositoryModelLoad", o.RepositoryModelLoadRequest(model_name="altered"), Code.FAILED_PRECONDITION, "altered"),
    (
        "TraceSetting",
        o.TraceSettingRequest(settings={"trace_level": o.TraceSettingRequest.SettingValue(value=["TIMESTAMPS"])}),
        Code.UNIMPLEMENTED,
        "trace_level cannot be changed",
    ),
    ("TraceSetting", o.TraceSettingRequest(model_name="nobody"), Code.NOT_FOUND, "nobody"),
    (
        "LogSettings",
        o.LogSettingsRequest(settings={"log_info": o.LogSettingsRequest.SettingValue(bool_param=False)}),
        Code.UNIMPLEMENTED,
        "log_info cannot be changed",
    ),
    ("SystemSharedMemoryStatus", o.SystemSharedMemoryStatusRequest(), Code.UNIMPLEMENTED, "--shared-memory-prefix"),
    ("CudaSharedMemoryStatus", o.CudaSharedMemoryStatusRequest(), Code.UNIMPLEMENTED, "CUDA shared memory is not"),
    ("CudaSharedMemoryRegister", o.CudaSharedMemoryRegisterRequest(), Code.UNIMPLEMENTED, "CUDA shared memory is not"),
    (
        "CudaSharedMemoryUnregister",
        o.CudaSharedMemoryUnregisterRequest(),
        Code.UNIMPLEMENTED,
        "CUDA shared memory is not",
    ),
]


@pytest.mark.parametrize(("rpc", "request_", "code", "said"), REFUSED)
def test_refused_requests_have_status_and_reason(oip: Oip, rpc: str, request_: object, code: Code, said: str) -> None:
    told = oip.fails(rpc, request_)  # type: ignore[arg-type]
    assert (told[0], said in told[1]) == (code, True), told


def crowd(oip: Oip) -> set[Code]:
    """Sends two requests of three rows to a queue of four rows, then the fourth row. Returns the codes of the two."""
    calls = [oip.rpc("ModelInfer").future(tensor(rows(3), "waiting"), timeout=HANG_S) for _ in range(2)]
    wait_until(lambda: any(call.done() for call in calls))
    oip("ModelInfer", tensor(rows(1), "waiting"))
    return {call.code() for call in calls}


def test_a_full_queue_is_resource_exhausted(oip: Oip) -> None:
    assert crowd(oip) == {Code.OK, Code.RESOURCE_EXHAUSTED}


def test_a_cancelled_request_leaves_the_queue(oip: Oip) -> None:
    calls = [oip.rpc("ModelInfer").future(tensor(rows(3), "waiting"), timeout=HANG_S) for _ in range(2)]
    wait_until(lambda: any(call.done() for call in calls))
    queued, refused = sorted(calls, key=lambda call: call.done())
    assert refused.code() is Code.RESOURCE_EXHAUSTED
    queued.cancel()
    assert queued.code() is Code.CANCELLED
    # The cancellation reaches the server: the queue takes four other rows, an hour before the three would have run.
    four = tensor(rows(4), "waiting")

    def has_room() -> bool:
        other = oip.rpc("ModelInfer").future(four, timeout=HANG_S)
        assert other.code() in (Code.OK, Code.RESOURCE_EXHAUSTED)
        return other.code() is Code.OK and len(floats(other.result())) == 4

    wait_until(has_room)


def test_a_switch_gives_tritons_codes(repository: Path, tmp_path: Path) -> None:
    with serving(tmp_path / "log", repository, "--triton-status-codes") as server, Oip(server.address) as oip:
        assert crowd(oip) == {Code.OK, Code.UNAVAILABLE}
        late = with_parameter(tensor(model="hasty"), "timeout", int64_param=1)
        assert oip.fails("ModelInfer", late)[0] is Code.UNAVAILABLE
        control = o.RepositoryModelLoadRequest(model_name="tiny")
        assert oip.fails("RepositoryModelLoad", control)[0] is Code.PERMISSION_DENIED
        assert server.terminate() == 0


@pytest.mark.parametrize("shape", [[3], [3, 1]])
def test_images_as_bytes_give_what_their_pixels_give(oip: Oip, shape: list[int]) -> None:
    kinds = ["bright", "left", "dark"]
    answer = oip("ModelInfer", encoded(*map(picture, kinds), shape=shape, id="mine"))
    assert (answer.id, answer.outputs[0].datatype, list(answer.outputs[0].shape)) == ("mine", "FP32", [3, 3])
    assert floats(answer).argmax(axis=1).tolist() == [2, 1, 0]
    request = encoded(picture("left"))
    typed = o.ModelInferRequest(model_name="tiny", inputs=request.inputs)
    typed.inputs[0].contents.bytes_contents.append(picture("left"))
    np.testing.assert_array_equal(floats(oip("ModelInfer", typed)), floats(oip("ModelInfer", tensor())))


def test_classes_are_texts_best_first(oip: Oip) -> None:
    request = wants(classification={"int64_param": 2})
    request.raw_input_contents[0] = rows(2).tobytes()
    request.inputs[0].shape[0] = 2
    answer = oip("ModelInfer", request)
    assert (answer.outputs[0].datatype, list(answer.outputs[0].shape)) == ("BYTES", [2, 2])
    first, second = strings(answer)[:2]
    assert strings(answer)[2:] == [first, second]
    value, index, label = first.split(":")
    assert (index, label) == ("1", "left")
    assert value == f"{floats(oip('ModelInfer', tensor()))[0, 1]:f}"
    assert second.endswith((":0:dark", ":2:bright"))
    # If k exceeds the number of classes, all are returned. Without labels, a text has only two parts.
    everything = wants(classification={"int64_param": 99})
    everything.model_name = "logits"
    texts = strings(oip("ModelInfer", everything))
    assert [len(text.split(":")) for text in texts] == [2, 2, 2]


def test_a_stream_answers_in_order_and_goes_on_after_errors(oip: Oip) -> None:
    def requests() -> Iterator[o.ModelInferRequest]:
        for index in range(200):
            request = tensor(rows(index % 8 + 1), id=str(index))
            if index % 7 == 3:
                request.model_name = "nobody"
            yield request

    answers = list(oip.stream(requests()))
    assert [answer.infer_response.id for answer in answers] == [str(index) for index in range(200)]
    for index, answer in enumerate(answers):
        if index % 7 == 3:
            assert "model 'nobody' is not in the model repository" in answer.error_message
            assert not answer.infer_response.outputs
        else:
            assert not answer.error_message
            assert answer.infer_response.outputs[0].shape[0] == index % 8 + 1


def test_a_stream_marks_final_responses_where_asked(oip: Oip) -> None:
    asks = with_parameter(tensor(), "triton_enable_empty_final_response", bool_param=True)
    plain, final = oip.stream(iter([tensor(), asks]))
    assert not plain.infer_response.parameters
    assert final.infer_response.parameters["triton_final_response"].bool_param


def test_a_stream_ends_with_a_status_where_asked(oip: Oip) -> None:
    stream = oip.stream(iter([tensor(id="good"), infer("nobody")]), metadata=[("triton_grpc_error", "true")])
    assert next(stream).infer_response.id == "good"
    with pytest.raises(grpc.RpcError) as caught:
        next(stream)
    assert caught.value.code() is Code.NOT_FOUND


def test_a_stream_that_nobody_reads_holds_its_requests_back(oip: Oip) -> None:
    """If the client does not read, flow control keeps the server from reading more requests than may be in flight."""
    sent = itertools.count()
    taken = []

    def requests() -> Iterator[o.ModelInferRequest]:
        for index in sent:
            taken.append(index)
            if index >= 20_000:
                return
            yield tensor(rows(8), id=str(index) * 1000)

    stream = oip.stream(requests())
    for _ in range(3):
        next(stream)
    stream.cancel()
    assert len(taken) < 20_000
    assert floats(oip("ModelInfer", tensor())).argmax() == 1


def test_a_stream_under_drain_answers_what_it_read(repository: Path, tmp_path: Path) -> None:
    with serving(tmp_path / "log", repository) as server, Oip(server.address) as oip:
        answered: list[str] = []

        def requests() -> Iterator[o.ModelInferRequest]:
            yield tensor(id="first")
            wait_until(lambda: bool(answered))
            server.process.terminate()
            server.wait_for("draining")
            yield tensor(id="late")

        stream = oip.stream(requests())
        answered.append(next(stream).infer_response.id)
        with pytest.raises(grpc.RpcError) as caught:
            list(stream)
        assert (answered[0], caught.value.code()) == ("first", Code.UNAVAILABLE)
        assert server.wait() == 0
        assert "Traceback" not in server.log


def test_the_config_in_force_says_what_was_derived(oip: Oip) -> None:
    config = oip("ModelConfig", o.ModelConfigRequest(name="logits")).config
    assert (config.name, config.platform, config.backend) == ("logits", "onnxruntime_onnx", "onnxruntime")
    assert (config.max_batch_size, config.default_model_filename) == (32, "model.onnx")
    [tensor_in], [tensor_out] = config.input, config.output
    assert (tensor_in.name, tensor_in.data_type, list(tensor_in.dims)) == (
        "image",
        model_config_pb2.TYPE_UINT8,
        [8, 8, 1],
    )
    assert (tensor_out.name, list(tensor_out.dims)) == ("probabilities", [3])
    [group] = config.instance_group
    assert (group.name, group.kind, group.count) == ("logits_0", model_config_pb2.ModelInstanceGroup.KIND_CPU, 1)
    assert list(config.dynamic_batching.preferred_batch_size) == [32]
    assert config.dynamic_batching.default_queue_policy.max_queue_size == 512
    assert config.version_policy.latest.num_versions == 1
    assert {name: value.string_value for name, value in config.parameters.items()} == {
        "cnnserve.verified": "false",
        "cnnserve.activation": "softmax, applied by Classify",
        "cnnserve.encoded_images": "no",
    }
    told = oip("ModelConfig", o.ModelConfigRequest(name="waiting")).config
    assert told.dynamic_batching.max_queue_delay_microseconds == 3_600_000_000
    assert told.parameters["cnnserve.verified"].string_value == "true"
    assert told.parameters["cnnserve.encoded_images"].string_value.startswith("input as BYTES")


def test_the_index_marks_what_is_unverified(oip: Oip) -> None:
    index = {f"{row.name}/{row.version}": row for row in oip("RepositoryIndex").models}
    assert index["logits/1"].state == "READY"
    assert index["logits/1"].reason.startswith(
        "unverified: no manifest; in batches of 1, 3 its output rows are not probab"
    )
    assert (index["tiny/3"].state, index["tiny/3"].reason) == ("READY", "")
    ready = oip("RepositoryIndex", o.RepositoryIndexRequest(ready=True)).models
    assert {row.name for row in ready} == {"tiny", "waiting", "hasty", "logits"}


def statistics(oip: Oip, model: str) -> o.ModelStatistics:
    [row] = oip("ModelStatistics", o.ModelStatisticsRequest(name=model)).model_stats
    return row


def test_statistics_count_requests_images_and_runs(oip: Oip) -> None:
    before = statistics(oip, "logits")
    for count in (1, 3, 3):
        oip("ModelInfer", tensor(rows(count), "logits"))
    oip.fails("ModelInfer", tensor(rows(33), "logits"))
    row = statistics(oip, "logits")
    assert (row.name, row.version) == ("logits", "1")
    assert row.inference_count - before.inference_count == 7
    assert row.execution_count - before.execution_count == 3
    assert row.last_inference > before.last_inference
    stats, old = row.inference_stats, before.inference_stats
    assert (stats.success.count - old.success.count, stats.fail.count - old.fail.count) == (3, 0)
    parts = ("queue", "compute_input", "compute_infer", "compute_output")
    for part in parts:
        assert getattr(stats, part).count - getattr(old, part).count == 3
    assert 0 < sum(getattr(stats, part).ns for part in parts) <= stats.success.ns
    sizes = {batch.batch_size: batch.compute_infer.count for batch in row.batch_stats}
    assert sizes[3] - {batch.batch_size: batch.compute_infer.count for batch in before.batch_stats}.get(3, 0) == 2


def test_statistics_count_what_the_queue_refused_and_images_too(oip: Oip) -> None:
    before = statistics(oip, "hasty")
    oip.fails("ModelInfer", with_parameter(tensor(model="hasty"), "timeout", int64_param=1))
    oip("ModelInfer", encoded(picture("left"), picture("dark"), model="hasty"))
    row = statistics(oip, "hasty")
    assert row.inference_stats.fail.count - before.inference_stats.fail.count == 1
    assert row.inference_count - before.inference_count == 2
    everyone = oip("ModelStatistics").model_stats
    assert [(item.name, item.version) for item in everyone] == [
        ("hasty", "1"),
        ("logits", "1"),
        ("tiny", "3"),
        ("waiting", "1"),
    ]


def test_trace_and_log_settings_can_be_read(oip: Oip) -> None:
    assert oip("TraceSetting").settings["trace_level"].value == ["OFF"]
    settings = oip("LogSettings").settings
    assert (settings["log_info"].bool_param, settings["log_verbose_level"].uint32_param) == (True, 0)


def test_a_load_may_bring_its_config(server: RunningServer, oip: Oip) -> None:
    """The client reads ModelConfig, changes it and sends it back, as users of Triton's client do."""

    def load(**parameters: str) -> o.RepositoryModelLoadRequest:
        request = o.RepositoryModelLoadRequest(model_name="logits")
        for name, value in parameters.items():
            request.parameters[name].string_param = value
        return request

    config = oip("ModelConfig", o.ModelConfigRequest(name="logits")).config
    config.max_batch_size = 4
    config.dynamic_batching.preferred_batch_size[:] = [4]
    oip("RepositoryModelLoad", load(config=json_format.MessageToJson(config)))
    assert oip("ModelConfig", o.ModelConfigRequest(name="logits")).config.max_batch_size == 4
    code, details = oip.fails("RepositoryModelLoad", load(config=json.dumps({"max_batch_sizes": 3})))
    assert (code, "max_batch_sizes" in details) == (Code.FAILED_PRECONDITION, True)
    assert oip("ModelConfig", o.ModelConfigRequest(name="logits")).config.max_batch_size == 4
    oip("RepositoryModelLoad", load())
    assert oip("ModelConfig", o.ModelConfigRequest(name="logits")).config.max_batch_size == 32
    unload = o.RepositoryModelUnloadRequest(model_name="logits")
    unload.parameters["unload_dependents"].bool_param = True
    oip("RepositoryModelUnload", unload)
    assert oip.fails("ModelInfer", infer("logits"))[0] is Code.UNAVAILABLE
    oip("RepositoryModelLoad", load())
    assert "Traceback" not in server.log
