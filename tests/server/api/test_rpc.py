"""Every RPC of a real server process."""

import asyncio
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from cnnserve.access.scopes import Scope
from cnnserve.api.classifier import ClassifierService
from cnnserve.api.health import HealthService
from cnnserve.api.inspection import InspectionService
from cnnserve.api.methods import Kind, Method
from cnnserve.api.model_control import RepositoryService
from cnnserve.api.model_infer import Inference
from cnnserve.api.open_inference import InferenceService
from cnnserve.api.regions import SharedMemory
from cnnserve.api.shared_memory import SharedMemoryService
from cnnserve.api.streams import STREAM_LIMIT
from cnnserve.process.admission import MemoryBudget
from cnnserve.registry.control import ModelControl
from cnnserve.registry.health import Health
from cnnserve.wire import classifier_pb2 as c
from cnnserve.wire import open_inference_pb2 as o
from support import CLASSES, HANG_S, SIDE, RunningServer, make_registry, picture, png, wait_until

OIP = "inference.GRPCInferenceService"
CLASSIFIER = "cnnserve.v1.Classifier"


@pytest.fixture(scope="module")
def methods(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Method]:
    """The method table by name."""

    async def table() -> dict[str, Method]:
        root = tmp_path_factory.mktemp("none")
        registry = make_registry(root, None)  # type: ignore[arg-type]
        services = (
            InferenceService(registry, Inference(MemoryBudget(2**30), SharedMemory(), 2**20), lambda: True),
            InspectionService(registry),
            SharedMemoryService(SharedMemory()),
            ClassifierService(registry, MemoryBudget(2**30), 1),
            RepositoryService(ModelControl(registry, root, mode="none", allowed=False)),
            HealthService(Health(registry, strict=False)),
        )
        return {method.name: method for service in services for method in service.methods()}

    return asyncio.run(table())


class Caller:
    """Calls the methods of the table over a real channel."""

    def __init__(self, address: str, methods: dict[str, Method]) -> None:
        self.channel = grpc.insecure_channel(address, options=[("grpc.max_receive_message_length", -1)])
        self.methods = methods

    def __call__(self, name: str, request: Message, timeout: float = HANG_S) -> Any:
        method = self.methods[name]
        make = self.channel.unary_unary if method.kind is Kind.UNARY else self.channel.unary_stream
        return make(
            f"/{name}",
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.response.FromString,
        )(request, timeout=timeout)

    def stream(self, requests: Iterator[c.ClassifyStreamRequest], timeout: float = HANG_S) -> Any:
        return self.channel.stream_stream(
            f"/{CLASSIFIER}/ClassifyStream",
            request_serializer=c.ClassifyStreamRequest.SerializeToString,
            response_deserializer=c.ClassifyStreamResponse.FromString,
        )(requests, timeout=timeout)


@pytest.fixture(scope="module")
def call(tiny_server: RunningServer, methods: dict[str, Method]) -> Iterator[Caller]:
    caller = Caller(tiny_server.address, methods)
    yield caller
    caller.channel.close()


def fails(call: Caller, name: str, request: Message) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call(name, request)
    return caught.value.code(), caught.value.details()


def images(*contents: bytes) -> list[c.Image]:
    return [c.Image(encoded=content) for content in contents]


def tensor_request(
    array: np.ndarray, name: str = "image", datatype: str = "UINT8", **fields: Any
) -> o.ModelInferRequest:
    request = o.ModelInferRequest(model_name="tiny", **fields)
    request.inputs.add(name=name, datatype=datatype, shape=array.shape)
    request.raw_input_contents.append(array.tobytes())
    return request


def test_classify_answers_in_order_with_labels_and_probabilities(call: Caller) -> None:
    kinds = ["bright", "dark", "left", "bright"]
    response = call(f"{CLASSIFIER}/Classify", c.ClassifyRequest(model="tiny", images=images(*map(picture, kinds))))
    assert [result.classes[0].label for result in response.results] == kinds
    assert (response.model, response.version) == ("tiny", "1")
    for result in response.results:
        values = [item.probability for item in result.classes]
        assert values == sorted(values, reverse=True)
        assert sum(values) == pytest.approx(1, abs=1e-5)
        assert sorted(CLASSES[item.index] for item in result.classes) == sorted(item.label for item in result.classes)
    timings = response.timings
    assert timings.total_us >= max(timings.queue_us, timings.preprocess_us, timings.compute_us) > 0


@pytest.mark.parametrize(("top_k", "count"), [(0, 3), (1, 1), (3, 3), (4_000_000_000, 3)])
def test_top_k(call: Caller, top_k: int, count: int) -> None:
    request = c.ClassifyRequest(model="tiny", images=images(picture("left")), top_k=top_k)
    assert len(call(f"{CLASSIFIER}/Classify", request).results[0].classes) == count


def test_one_bad_image_of_four_fails_alone(call: Caller) -> None:
    contents = [picture("left"), b"this is text, not an image", picture("bright"), picture("left")]
    results = call(f"{CLASSIFIER}/Classify", c.ClassifyRequest(model="tiny", images=images(*contents))).results
    assert [result.classes[0].label for result in results if result.classes] == ["left", "bright", "left"]
    assert [result.error.code for result in results] == [0, 3, 0, 0]
    assert "b'this is '" in results[1].error.message
    assert not results[1].classes


def test_only_bad_images_are_an_answer_too(call: Caller) -> None:
    response = call(f"{CLASSIFIER}/Classify", c.ClassifyRequest(model="tiny", images=images(b"x", b"")))
    assert [result.error.code for result in response.results] == [3, 3]


def test_raw_pixels(call: Caller) -> None:
    raw = c.RawImage(data=b"\xff" * 30 * 20 * 3, height=30, width=20, channels=3)
    request = c.ClassifyRequest(model="tiny", images=[c.Image(raw=raw)])
    assert call(f"{CLASSIFIER}/Classify", request).results[0].classes[0].label == "bright"
    raw.channels = 4
    assert "1800 bytes, expected 2400" in call(f"{CLASSIFIER}/Classify", request).results[0].error.message or (
        request.images[0].raw.channels == 3
    )


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (c.ClassifyRequest(model="tiny"), "has no images; send 1 to 8"),
        (c.ClassifyRequest(model="tiny", images=images(*[b"x"] * 9)), "9 images, model 'tiny' takes at most 8"),
        (c.ClassifyRequest(model="tiny", images=[c.Image()]), "image 0 has no content"),
        (c.ClassifyRequest(model="tiny", version="one", images=images(b"x")), "version 'one'"),
    ],
)
def test_bad_classify_requests(call: Caller, request_: c.ClassifyRequest, said: str) -> None:
    code, details = fails(call, f"{CLASSIFIER}/Classify", request_)
    assert code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND)
    assert said in details


def test_every_rpc_on_an_unknown_model_answers_not_found(call: Caller, methods: dict[str, Method]) -> None:
    fields = {"model", "name", "model_name", "service"}
    asked = set()
    for name, method in methods.items():
        if method.kind is Kind.STREAM:
            continue
        named = fields & set(method.request.DESCRIPTOR.fields_by_name)
        # Without permission, loads and shared memory are refused before the name is looked up (see test_control).
        if (
            not named
            or "SharedMemory" in name
            or name.endswith(("Watch", "Load", "Unload", "LoadModel", "UnloadModel"))
        ):
            continue
        request = method.request(**{named.pop(): "nobody"})
        code, details = fails(call, name, request)
        assert (name, code) == (name, grpc.StatusCode.NOT_FOUND)
        assert "'nobody'" in details
        # Whoever has no token learns no names.
        assert method.scope is not Scope.OPEN or "tiny" not in details
        asked.add(name.rpartition("/")[2])
    assert {"ModelReady", "ModelMetadata", "ModelInfer", "Classify", "GetModel", "Check"} <= asked
    [answer] = call.stream(iter([c.ClassifyStreamRequest(id="7", request=c.ClassifyRequest(model="nobody"))]))
    assert (answer.id, answer.error.code) == ("7", 5)
    watch = call("grpc.health.v1.Health/Watch", health_pb2.HealthCheckRequest(service="nobody"))
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    watch.cancel()


def test_an_unknown_version_answers_not_found(call: Caller) -> None:
    for name, request in {
        f"{CLASSIFIER}/Classify": c.ClassifyRequest(model="tiny", version="9", images=images(picture("left"))),
        f"{OIP}/ModelReady": o.ModelReadyRequest(name="tiny", version="9"),
        f"{OIP}/ModelMetadata": o.ModelMetadataRequest(name="tiny", version="9"),
        f"{OIP}/ModelInfer": o.ModelInferRequest(model_name="tiny", model_version="9"),
    }.items():
        code, details = fails(call, name, request)
        assert code is grpc.StatusCode.NOT_FOUND
        assert "no version 9; it has 1" in details


def test_a_model_that_was_altered_says_why(call: Caller) -> None:
    request = c.ClassifyRequest(model="altered", images=images(picture("left")))
    code, details = fails(call, f"{CLASSIFIER}/Classify", request)
    assert code is grpc.StatusCode.UNAVAILABLE
    assert "file labels.txt was altered" in details
    assert not call(f"{OIP}/ModelReady", o.ModelReadyRequest(name="altered")).ready


def test_a_model_without_manifest_takes_tensors_only(call: Caller) -> None:
    code, details = fails(call, f"{CLASSIFIER}/Classify", c.ClassifyRequest(model="plain", images=images(b"x")))
    assert code is grpc.StatusCode.UNIMPLEMENTED
    assert "has no manifest" in details
    request = tensor_request(np.full((1, SIDE, SIDE, 1), 255, np.uint8))
    request.model_name = "plain"
    assert call(f"{OIP}/ModelInfer", request).model_version == "1"


def test_models_are_listed_and_described(call: Caller) -> None:
    models = {model.name: model for model in call(f"{CLASSIFIER}/ListModels", c.ListModelsRequest()).models}
    assert set(models) == {"tiny", "altered", "plain", "empty"}
    assert models["tiny"].versions[0].state == c.MODEL_STATE_READY
    assert not models["tiny"].versions[0].labels
    assert models["altered"].versions[0].state == c.MODEL_STATE_UNAVAILABLE
    assert "altered" in models["altered"].versions[0].reason
    assert not models["plain"].versions[0].verified
    answer = call(f"{CLASSIFIER}/GetModel", c.GetModelRequest(model="tiny"))
    [version] = answer.model.versions
    assert tuple(version.labels) == CLASSES
    assert (version.max_batch_size, version.class_count, version.verified) == (8, 3, True)
    assert (version.contract, models["plain"].versions[0].contract) == (2, 0)
    assert list(version.input.shape) == [-1, SIDE, SIDE, 1]
    assert sum(version.placement.values()) > 0
    assert answer.max_message_bytes == 64 * 2**20


def test_open_inference_metadata(call: Caller) -> None:
    assert call(f"{OIP}/ServerLive", o.ServerLiveRequest()).live
    assert call(f"{OIP}/ServerReady", o.ServerReadyRequest()).ready
    assert call(f"{OIP}/ModelReady", o.ModelReadyRequest(name="tiny", version="1")).ready
    server = call(f"{OIP}/ServerMetadata", o.ServerMetadataRequest())
    assert (server.name, list(server.extensions)) == (
        "cnnserve",
        [
            "classification",
            "model_configuration",
            "statistics",
            "schedule_policy",
            "binary_tensor_data",
            "encoded_images",
        ],
    )
    model = call(f"{OIP}/ModelMetadata", o.ModelMetadataRequest(name="tiny"))
    assert (model.name, list(model.versions), model.platform) == ("tiny", ["1"], "onnxruntime_onnx")
    assert [(t.name, t.datatype, list(t.shape)) for t in (*model.inputs, *model.outputs)] == [
        ("image", "UINT8", [-1, SIDE, SIDE, 1]),
        ("probabilities", "FP32", [-1, 3]),
    ]


def test_infer_raw_and_typed_give_the_same(call: Caller) -> None:
    array = np.random.default_rng(0).integers(0, 256, (5, SIDE, SIDE, 1), np.uint8)
    raw = call(f"{OIP}/ModelInfer", tensor_request(array, id="mine"))
    typed_request = o.ModelInferRequest(model_name="tiny")
    tensor = typed_request.inputs.add(name="image", datatype="UINT8", shape=array.shape)
    tensor.contents.uint_contents.extend(array.ravel().tolist())
    typed = call(f"{OIP}/ModelInfer", typed_request)
    assert raw.raw_output_contents == typed.raw_output_contents
    assert (raw.id, raw.model_name, raw.model_version) == ("mine", "tiny", "1")
    rows = np.frombuffer(raw.raw_output_contents[0], np.float32).reshape(raw.outputs[0].shape)
    assert rows.shape == (5, 3)
    np.testing.assert_allclose(rows.sum(axis=1), 1, atol=1e-5)


def test_a_row_in_a_batch_equals_the_row_alone(call: Caller) -> None:
    array = np.random.default_rng(1).integers(0, 256, (8, SIDE, SIDE, 1), np.uint8)

    def run(rows: np.ndarray) -> np.ndarray:
        answer = call(f"{OIP}/ModelInfer", tensor_request(rows))
        return np.frombuffer(answer.raw_output_contents[0], np.float32).reshape(-1, 3)

    np.testing.assert_allclose(run(array), np.concatenate([run(array[i : i + 1]) for i in range(8)]), atol=1e-6)


ROW = np.zeros((1, SIDE, SIDE, 1), np.uint8)


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (tensor_request(ROW, name="pixels"), "input 'pixels', but the input of model 'tiny' is 'image'"),
        (tensor_request(ROW.astype(np.float32), datatype="FP32"), "has type FP32, expected UINT8"),
        (tensor_request(ROW[0]), r"shape [8, 8, 1], expected [-1, 8, 8, 1]"),
        (tensor_request(ROW[:, :4]), r"shape [1, 4, 8, 1], expected [-1, 8, 8, 1]"),
        (tensor_request(ROW[:0]), "has no rows; send 1 to 8"),
        (tensor_request(ROW.repeat(9, 0)), "9 rows, model 'tiny' takes at most 8"),
        (o.ModelInferRequest(model_name="tiny"), "0 inputs, model 'tiny' takes 1"),
        (tensor_request(ROW, outputs=[{"name": "scores"}]), "output 'scores', but the model has probabilities"),
    ],
)
def test_bad_infer_requests(call: Caller, request_: o.ModelInferRequest, said: str) -> None:
    code, details = fails(call, f"{OIP}/ModelInfer", request_)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert said in details


def test_an_rpc_that_is_not_there_is_unimplemented(call: Caller) -> None:
    ask = call.channel.unary_unary(f"/{OIP}/CudaSharedMemoryStatus")
    with pytest.raises(grpc.RpcError) as caught:
        ask(b"", timeout=HANG_S)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_deadline_that_is_over_is_deadline_exceeded(call: Caller) -> None:
    request = c.ClassifyRequest(model="tiny", images=images(*[png(np.zeros((2000, 2000), np.uint8))] * 8))
    with pytest.raises(grpc.RpcError) as caught:
        call(f"{CLASSIFIER}/Classify", request, timeout=0.005)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_a_stream_answers_every_request_by_its_id_and_goes_on_after_errors(call: Caller) -> None:
    def requests() -> Iterator[c.ClassifyStreamRequest]:
        for index in range(3 * STREAM_LIMIT):
            content = [picture("bright"), b"bad", picture("left")][index % 3]
            model = "nobody" if index % 5 == 4 else "tiny"
            yield c.ClassifyStreamRequest(
                id=f"r{index}", request=c.ClassifyRequest(model=model, images=images(content), top_k=1)
            )

    answers = {answer.id: answer for answer in call.stream(requests())}
    assert set(answers) == {f"r{index}" for index in range(3 * STREAM_LIMIT)}
    for index in range(3 * STREAM_LIMIT):
        answer = answers[f"r{index}"]
        if index % 5 == 4:
            assert (answer.error.code, answer.WhichOneof("outcome")) == (5, "error")
        elif index % 3 == 1:
            assert answer.response.results[0].error.code == 3
        else:
            assert answer.response.results[0].classes[0].label == ["bright", "", "left"][index % 3]


def test_a_streams_own_timeout_fails_that_request_only(call: Caller) -> None:
    slow = c.ClassifyRequest(model="tiny", images=images(*[png(np.zeros((1500, 1500), np.uint8))] * 8))
    good = c.ClassifyRequest(model="tiny", images=images(picture("left")))
    requests = [
        c.ClassifyStreamRequest(id="late", timeout_us=1000, request=slow),
        c.ClassifyStreamRequest(id="fine", request=good),
    ]
    answers = {answer.id: answer for answer in call.stream(iter(requests))}
    assert answers["late"].error.code == 4
    assert answers["fine"].response.results[0].classes[0].label == "left"


def test_a_streams_work_in_flight_is_bounded(call: Caller) -> None:
    """If a client sends without pause and reads nothing, flow control stops it."""
    sent, all_of_them = 0, 5000
    request = c.ClassifyRequest(model="tiny", images=images(png(np.zeros((700, 700, 3), np.uint8) + 9)))

    def requests() -> Iterator[c.ClassifyStreamRequest]:
        nonlocal sent
        for index in range(all_of_them):
            sent += 1
            yield c.ClassifyStreamRequest(id=str(index) * 4000, request=request)

    stream = call.stream(requests(), timeout=HANG_S)
    other = c.ClassifyRequest(model="tiny", images=images(picture("left")))

    def is_held_back() -> bool:
        """Nothing more is sent while the server answers a hundred others."""
        before = sent
        for _ in range(100):
            assert call(f"{CLASSIFIER}/Classify", other).results[0].classes[0].label == "left"
        return sent == before

    wait_until(is_held_back)
    assert sent < all_of_them
    stream.cancel()
    assert call(f"{CLASSIFIER}/Classify", other).results[0].classes[0].label == "left"


def test_health(call: Caller) -> None:
    status = health_pb2.HealthCheckResponse
    expected = {
        "": status.SERVING,
        "tiny": status.SERVING,
        "altered": status.NOT_SERVING,
        "empty": status.NOT_SERVING,
    }
    for service, serving in expected.items():
        request = health_pb2.HealthCheckRequest(service=service)
        assert call("grpc.health.v1.Health/Check", request).status == serving
        watch = call("grpc.health.v1.Health/Watch", request)
        assert next(watch).status == serving
        watch.cancel()


def test_reflection_names_and_describes_every_service(call: Caller) -> None:
    database = ProtoReflectionDescriptorDatabase(call.channel)
    assert {CLASSIFIER, OIP, "grpc.health.v1.Health"} <= set(database.get_services())
    assert database.FindFileContainingSymbol(CLASSIFIER).package == "cnnserve.v1"


@pytest.mark.parametrize(
    ("path", "code", "said"),
    [
        ("/v2/health/live", 200, '{"live":true}'),
        ("/v2/health/ready", 200, '{"ready":true}'),
        ("/v2", 200, '"name":"cnnserve"'),
        ("/v2/models/tiny", 200, '"shape":[-1,8,8,1]'),
        ("/v2/models/tiny/versions/1", 200, '"versions":["1"]'),
        ("/v2/models/tiny/ready", 200, '"ready":true'),
        ("/v2/models/altered/ready", 503, '"ready":false'),
        ("/v2/models/nobody", 404, "'nobody' is not in the model repository"),
        ("/v2/models/tiny/versions/9/ready", 404, "no version 9"),
        ("/nothing", 404, ""),
    ],
)
def test_http(tiny_server: RunningServer, path: str, code: int, said: str) -> None:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{tiny_server.http_port}{path}", timeout=HANG_S) as response:
            status, body = response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            status, body = error.code, error.read().decode()
    assert status == code
    assert said in body


def test_nothing_was_logged_per_request(tiny_server: RunningServer, call: Caller) -> None:
    before = tiny_server.log
    for _ in range(20):
        call(f"{CLASSIFIER}/Classify", c.ClassifyRequest(model="tiny", images=images(picture("left"), b"bad")))
    assert tiny_server.log == before
    assert "INTERNAL" not in before
    assert "Traceback" not in before
