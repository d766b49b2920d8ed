"""Model control of real server processes: by calls, by polling, and without permission."""

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.message import Message
from onnx import TensorProto, helper, numpy_helper

from cnnserve.wire import classifier_pb2 as c
from cnnserve.wire import open_inference_pb2 as o
from support import CLASSES, HANG_S, RunningServer, picture, serving, spawn, tiny_onnx, wait_until, write_version

OIP = "inference.GRPCInferenceService"
CLASSIFIER = "cnnserve.v1.Classifier"
ANSWERS: dict[str, type[Message]] = {
    f"{CLASSIFIER}/Classify": c.ClassifyResponse,
    f"{CLASSIFIER}/ListModels": c.ListModelsResponse,
    f"{CLASSIFIER}/GetModel": c.GetModelResponse,
    f"{CLASSIFIER}/LoadModel": c.LoadModelResponse,
    f"{CLASSIFIER}/UnloadModel": c.UnloadModelResponse,
    f"{OIP}/RepositoryIndex": o.RepositoryIndexResponse,
    f"{OIP}/RepositoryModelLoad": o.RepositoryModelLoadResponse,
    f"{OIP}/RepositoryModelUnload": o.RepositoryModelUnloadResponse,
    f"{OIP}/ModelInfer": o.ModelInferResponse,
    f"{OIP}/ServerMetadata": o.ServerMetadataResponse,
    f"{OIP}/ServerReady": o.ServerReadyResponse,
}
Call = Callable[[str, Message], Any]
POLL = ("--model-control-mode", "poll", "--poll-interval-s", "0.1")
EXPLICIT = ("--model-control-mode", "explicit", "--allow-model-control")


@contextmanager
def calling(server: RunningServer) -> Iterator[Call]:
    with grpc.insecure_channel(server.address) as channel:

        def call(name: str, request: Message) -> Any:
            return channel.unary_unary(
                f"/{name}",
                request_serializer=type(request).SerializeToString,
                response_deserializer=ANSWERS[name].FromString,
            )(request, timeout=HANG_S)

        yield call


def refused(call: Call, name: str, request: Message) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call(name, request)
    return caught.value.code(), caught.value.details()


def classify(model: str = "m", version: str = "") -> c.ClassifyRequest:
    return c.ClassifyRequest(model=model, version=version, images=[c.Image(encoded=picture("left"))], top_k=1)


def index(call: Call, *, ready: bool = False) -> list[tuple[str, str, str]]:
    rows = call(f"{OIP}/RepositoryIndex", o.RepositoryIndexRequest(ready=ready)).models
    return [(row.name, row.version, row.state) for row in rows]


def control_requests(name: str) -> dict[str, Message]:
    return {
        f"{CLASSIFIER}/LoadModel": c.LoadModelRequest(model=name),
        f"{CLASSIFIER}/UnloadModel": c.UnloadModelRequest(model=name),
        f"{OIP}/RepositoryModelLoad": o.RepositoryModelLoadRequest(model_name=name),
        f"{OIP}/RepositoryModelUnload": o.RepositoryModelUnloadRequest(model_name=name),
    }


def test_without_permission_every_call_is_refused_alike(tiny_server: RunningServer) -> None:
    with calling(tiny_server) as call:
        answers = {
            refused(call, name, request)
            for model in ("tiny", "altered", "nobody", "", "../tiny")
            for name, request in control_requests(model).items()
        }
        # The server does not even say whether the request is valid.
        strange = o.RepositoryModelLoadRequest(repository_name="x", model_name="tiny")
        strange.parameters["config"].string_param = "{}"
        answers.add(refused(call, f"{OIP}/RepositoryModelLoad", strange))
        assert answers == {
            (
                grpc.StatusCode.PERMISSION_DENIED,
                "clients may not load or unload models; start the server with --model-control-mode explicit "
                "--allow-model-control",
            )
        }
        metadata = call(f"{OIP}/ServerMetadata", o.ServerMetadataRequest())
        assert not [name for name in metadata.extensions if name.startswith("model_repository")]
        assert call(f"{CLASSIFIER}/Classify", classify("tiny")).version == "1"


def test_the_index_says_why(tiny_server: RunningServer) -> None:
    with calling(tiny_server) as call:
        rows = call(f"{OIP}/RepositoryIndex", o.RepositoryIndexRequest()).models
        assert [(row.name, row.version, row.state) for row in rows] == [
            ("altered", "1", "UNAVAILABLE"),
            ("empty", "", "UNAVAILABLE"),
            ("plain", "1", "READY"),
            ("tiny", "1", "READY"),
        ]
        assert "labels.txt was altered" in rows[0].reason
        assert "holds no version folder" in rows[1].reason
        assert index(call, ready=True) == [("plain", "1", "READY"), ("tiny", "1", "READY")]
        code, details = refused(call, f"{OIP}/RepositoryIndex", o.RepositoryIndexRequest(repository_name="x"))
        assert (code, "leave it empty" in details) == (grpc.StatusCode.UNIMPLEMENTED, True)


@pytest.mark.parametrize(("flags", "mode"), [((), "none"), (POLL, "poll")])
def test_only_the_explicit_mode_has_calls(tmp_path: Path, flags: tuple[str, ...], mode: str) -> None:
    write_version(tmp_path / "r" / "m" / "1")
    with serving(tmp_path / "log", tmp_path / "r", "--allow-model-control", *flags) as server, calling(server) as call:
        for name, request in control_requests("m").items():
            code, details = refused(call, name, request)
            assert code is grpc.StatusCode.FAILED_PRECONDITION
            assert f"explicit model load / unload is not allowed in model control mode {mode}" in details


def test_models_come_and_go_by_call(tmp_path: Path) -> None:
    root = tmp_path / "r"
    folder = write_version(root / "m" / "1")
    write_version(root / "other" / "1")
    with serving(tmp_path / "log", root, *EXPLICIT) as server, calling(server) as call:
        # No model is loaded, but the server is ready, so that clients can load models.
        assert call(f"{OIP}/ServerReady", o.ServerReadyRequest()).ready
        assert index(call) == [("m", "", ""), ("other", "", "")]
        assert index(call, ready=True) == []
        code, details = refused(call, f"{CLASSIFIER}/Classify", classify())
        assert (code, "it is not loaded" in details) == (grpc.StatusCode.UNAVAILABLE, True)
        metadata = call(f"{OIP}/ServerMetadata", o.ServerMetadataRequest())
        assert {"model_repository", "model_repository(unload_dependents)"} <= {*metadata.extensions}

        for _ in range(2):
            model = call(f"{CLASSIFIER}/LoadModel", c.LoadModelRequest(model="m")).model
            [version] = model.versions
            assert (model.name, version.version, version.state) == ("m", "1", c.MODEL_STATE_READY)
            assert tuple(version.labels) == CLASSES
            assert version.self_test.startswith("self-test passed: ")
        assert server.log.count("READY in") == 1
        assert call(f"{CLASSIFIER}/Classify", classify()).results[0].classes[0].label == "left"
        assert index(call) == [("m", "1", "READY"), ("other", "", "")]

        # If a new version fails, the old version continues to serve, and the error has the reason.
        (write_version(root / "m" / "2") / "model.onnx").write_text("no model")
        for request_name in ("LoadModel", "RepositoryModelLoad"):
            service = CLASSIFIER if request_name == "LoadModel" else OIP
            code, details = refused(
                call, f"{service}/{request_name}", control_requests("m")[f"{service}/{request_name}"]
            )
            assert code is grpc.StatusCode.FAILED_PRECONDITION
            assert "model 'm': version 2: file model.onnx has 8 bytes" in details
            assert str(tmp_path) not in details
        assert call(f"{CLASSIFIER}/Classify", classify()).version == "1"
        assert index(call) == [("m", "1", "READY"), ("m", "2", "UNAVAILABLE"), ("other", "", "")]
        shutil.rmtree(root / "m" / "2")
        (folder / "golden.png").touch()
        call(f"{OIP}/RepositoryModelLoad", o.RepositoryModelLoadRequest(model_name="m"))
        assert index(call) == [("m", "1", "READY"), ("other", "", "")]

        unload = o.RepositoryModelUnloadRequest(model_name="m")
        unload.parameters["unload_dependents"].bool_param = True
        for _ in range(2):
            call(f"{OIP}/RepositoryModelUnload", unload)
            model = call(f"{CLASSIFIER}/UnloadModel", c.UnloadModelRequest(model="m")).model
            assert [(v.version, v.state, v.reason) for v in model.versions] == [
                ("1", c.MODEL_STATE_UNAVAILABLE, "unloaded")
            ]
        assert not call(f"{CLASSIFIER}/UnloadModel", c.UnloadModelRequest(model="other")).model.versions
        assert refused(call, f"{CLASSIFIER}/Classify", classify())[0] is grpc.StatusCode.UNAVAILABLE
        assert call(f"{OIP}/ServerReady", o.ServerReadyRequest()).ready

        # Models that are added to the repository later can be loaded, too.
        write_version(root / "later" / "1")
        assert ("later", "", "") in index(call)
        call(f"{CLASSIFIER}/LoadModel", c.LoadModelRequest(model="later"))
        assert call(f"{CLASSIFIER}/Classify", classify("later")).version == "1"


def test_what_control_calls_refuse(tmp_path: Path) -> None:
    write_version(tmp_path / "r" / "m" / "1")
    with serving(tmp_path / "log", tmp_path / "r", *EXPLICIT) as server, calling(server) as call:
        for model in ("nobody", "", "../m", "m/1", ".hidden"):
            for name, request in control_requests(model).items():
                code, details = refused(call, name, request)
                assert (name, model, code) == (name, model, grpc.StatusCode.NOT_FOUND)
                assert f"model {model!r} is not in the model repository" in details
        for parameter, code in {
            "config": grpc.StatusCode.INVALID_ARGUMENT,
            "file:1/model.onnx": grpc.StatusCode.UNIMPLEMENTED,
            "fast": grpc.StatusCode.INVALID_ARGUMENT,
        }.items():
            load = o.RepositoryModelLoadRequest(model_name="m")
            load.parameters[parameter].string_param = "x"
            told = refused(call, f"{OIP}/RepositoryModelLoad", load)
            assert (told[0], f"'{parameter}'" in told[1]) == (code, True)
        unload = o.RepositoryModelUnloadRequest(model_name="m")
        unload.parameters["fast"].bool_param = True
        assert refused(call, f"{OIP}/RepositoryModelUnload", unload)[0] is grpc.StatusCode.INVALID_ARGUMENT
        load = o.RepositoryModelLoadRequest(model_name="m", repository_name="r")
        assert refused(call, f"{OIP}/RepositoryModelLoad", load)[0] is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize(
    ("flags", "loaded"),
    [(["--load-model", "a,c"], "a (1), c (1)"), (["--load-model", "b", "--load-model", "c"], "b (1), c (1)")],
)
def test_the_start_loads_what_is_named(tmp_path: Path, flags: list[str], loaded: str) -> None:
    for name in ("a", "b", "c"):
        write_version(tmp_path / "r" / name / "1")
    with serving(tmp_path / "log", tmp_path / "r", "--model-control-mode", "explicit", *flags) as server:
        assert f" ready; models: {loaded}\n" in server.log


def test_the_start_can_load_all_and_names_what_is_missing(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_version(tmp_path / "r" / name / "1")
    explicit = ("--model-control-mode", "explicit", "--load-model")
    with serving(tmp_path / "log", tmp_path / "r", *explicit, "*") as server:
        assert " ready; models: a (1), b (1)\n" in server.log
    with serving(tmp_path / "log", tmp_path / "r", *explicit, "a,gone", "--strict-readiness") as server:
        assert "model gone is not served: its folder is not in the model repository" in server.log
        assert " NOT ready; models: a (1)\n" in server.log


def test_labels_choose_the_version_of_a_request(tmp_path: Path) -> None:
    model = tmp_path / "r" / "m"
    for number in (1, 2):
        write_version(model / str(number))
    (model / "config.pbtxt").write_text("version_policy { all {} }")
    (model / "version_labels.json").write_text('{"stable": 1, "canary": "2", "lost": 7}')
    with serving(tmp_path / "log", tmp_path / "r") as server, calling(server) as call:
        for word, version in {"stable": "1", "canary": "2", "1": "1", "": "2"}.items():
            assert call(f"{CLASSIFIER}/Classify", classify("m", word)).version == version
        for text, said in {
            "beta": "neither a version number nor a label; it has 1, 2 (labels: canary, lost, stable)",
            "lost": "version 7, for which the label 'lost' stands",
            "01": "'01', which is neither",
        }.items():
            code, details = refused(call, f"{CLASSIFIER}/Classify", classify("m", text))
            assert (code, said in details) == (grpc.StatusCode.NOT_FOUND, True)
        listed = call(f"{CLASSIFIER}/ListModels", c.ListModelsRequest()).models[0].versions
        assert [list(version.version_labels) for version in listed] == [["stable"], ["canary"]]
        (model / "version_labels.json").write_text('{"stable": 2}')
        wait_until(lambda: call(f"{CLASSIFIER}/Classify", classify("m", "stable")).version == "2")
        (model / "version_labels.json").write_text("{")
        server.wait_for("version_labels.json is ignored")
        assert call(f"{CLASSIFIER}/Classify", classify("m", "stable")).version == "2"


def test_polling_under_load_fails_no_request(tmp_path: Path) -> None:
    root = tmp_path / "r"
    folder = write_version(root / "m" / "1")
    write_version(root / "leaving" / "1")
    answered: list[str] = []
    failed: list[grpc.RpcError] = []
    stop = threading.Event()

    def client(address: str) -> None:
        with grpc.insecure_channel(address) as channel:
            ask = channel.unary_unary(
                f"/{CLASSIFIER}/Classify",
                request_serializer=c.ClassifyRequest.SerializeToString,
                response_deserializer=c.ClassifyResponse.FromString,
            )
            while not stop.is_set():
                try:
                    answer = ask(classify(), timeout=HANG_S)
                except grpc.RpcError as error:
                    failed.append(error)
                else:
                    assert answer.results[0].classes[0].label == "left"
                    answered.append(answer.version)

    with serving(tmp_path / "log", root, *POLL) as server, calling(server) as call:
        threads = [threading.Thread(target=client, args=(server.address,)) for _ in range(4)]
        for thread in threads:
            thread.start()

        def serves(version: str) -> None:
            wait_until(lambda: bool(answered) and answered[-1] == version)

        serves("1")
        # A version is published, one is copied in pieces, one is broken and then repaired.
        second = write_version(root / "m" / "2")
        serves("2")
        shutil.rmtree(folder)
        (root / "m" / "3").mkdir()
        made = write_version(tmp_path / "m" / "3")
        for file in sorted(made.iterdir()):
            shutil.copy2(file, root / "m" / "3")
            time.sleep(0.05)
        serves("3")
        (root / "m" / "3" / "labels.txt").write_text("dark\nleft\nblight\n")
        server.wait_for("version 3 did not load: file labels.txt was altered")
        wait_until(lambda: "the reload failed" in str(call(f"{CLASSIFIER}/GetModel", c.GetModelRequest(model="m"))))
        shutil.copy2(made / "labels.txt", root / "m" / "3")
        wait_until(lambda: "the reload failed" not in str(call(f"{CLASSIFIER}/GetModel", c.GetModelRequest(model="m"))))
        # A version is removed, so the older version serves again. A model is added, another one is removed.
        assert second.is_dir()
        shutil.rmtree(root / "m" / "3")
        serves("2")
        plain = root / "plain" / "1"
        plain.mkdir(parents=True)
        (plain / "model.onnx").write_bytes(tiny_onnx())
        server.wait_for("model plain version 1 READY")
        shutil.rmtree(root / "leaving")
        server.wait_for("model leaving was removed")
        assert refused(call, f"{CLASSIFIER}/Classify", classify("leaving"))[0] is grpc.StatusCode.NOT_FOUND
        stop.set()
        for thread in threads:
            thread.join()
    assert not failed
    assert {*answered} == {"1", "2", "3"}
    assert "Traceback" not in server.log


def slow_onnx(products: int) -> bytes:
    """Returns a small file that takes long to load: the optimizer multiplies large constants without interruption."""
    side = 2048
    large = helper.make_tensor("large", TensorProto.FLOAT, [1], [1e-4])
    nodes = [helper.make_node("ConstantOfShape", ["sizes"], ["p0"], value=large)]
    nodes += [helper.make_node("MatMul", [f"p{i}", "p0"], [f"p{i + 1}"]) for i in range(products)]
    nodes.append(helper.make_node("MatMul", ["rows", f"p{products}"], ["scores"]))
    graph = helper.make_graph(
        nodes,
        "slow",
        [helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["batch", side])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", side])],
        [numpy_helper.from_array(np.array([side, side], np.int64), "sizes")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return bytes(model.SerializeToString())


@pytest.fixture
def slow_repository(tmp_path: Path) -> Path:
    """A model repository with a model `slow`, whose load would take longer than any wait of a test."""
    folder = tmp_path / "r" / "slow" / "1"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(slow_onnx(5000))
    return tmp_path / "r"


def test_the_end_comes_in_the_middle_of_a_start(tmp_path: Path, slow_repository: Path) -> None:
    write_version(slow_repository / "tiny" / "1")
    server = spawn(tmp_path / "log", "--model-repository", slow_repository)
    server.wait_for("model tiny version 1 READY")
    assert server.terminate() == 0
    assert "Traceback" not in server.log


def test_the_end_comes_in_the_middle_of_a_load(tmp_path: Path, slow_repository: Path) -> None:
    with serving(tmp_path / "log", slow_repository, *EXPLICIT) as server, calling(server) as call:
        told: list[tuple[grpc.StatusCode, str]] = []
        name = f"{CLASSIFIER}/LoadModel"
        load = threading.Thread(target=lambda: told.append(refused(call, name, c.LoadModelRequest(model="slow"))))
        load.start()
        wait_until(lambda: index(call) == [("slow", "1", "LOADING")])
        for method, request in (("ModelInfer", o.ModelInferRequest(model_name="slow")), ("Classify", classify("slow"))):
            service = OIP if method == "ModelInfer" else CLASSIFIER
            code, details = refused(call, f"{service}/{method}", request)
            assert (code, details) == (grpc.StatusCode.UNAVAILABLE, "model 'slow' version 1 is LOADING")
        assert server.terminate() == 0
        load.join()
    reason = "the server is shutting down and loads no more models; send the request to another server"
    assert told == [(grpc.StatusCode.UNAVAILABLE, reason)]
    assert "Traceback" not in server.log
