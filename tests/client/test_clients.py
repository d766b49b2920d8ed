"""The requests, results and errors of both clients, with a real gRPC server that follows a script."""

import asyncio
import os
import pickle
import re
import socket
import subprocess
import sys
import threading

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2

import cnnserve_client as cc
from cnnserve.wire import classifier_pb2 as pb
from cnnserve_client.errors import from_status
from support import HANG_S

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


def test_classify_sends_what_was_asked(peer, ask):
    array = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    ask(peer.address, "classify", [b"jpeg", array], model="digits", version="3", top_k=2)
    expected = pb.ClassifyRequest(model="digits", version="3", top_k=2)
    expected.images.add(encoded=b"jpeg")
    expected.images.add(raw=pb.RawImage(data=array.tobytes(), height=2, width=2, channels=3))
    assert peer.of("Classify") == [expected]


def test_classify_reads_results_in_order_with_their_errors(peer, ask):
    answer = ask(peer.address, "classify", [b"one", b"bad", b"three"], model="digits")
    good, bad, third = answer.results
    assert (answer.model, answer.version) == ("digits", "1")
    assert answer.timings == cc.Timings(queue_us=1, total_us=9)
    assert good == third == cc.ImageResult((cc.Class(7, "seven", 0.75),), version="1")
    assert good.ok
    assert good.top.label == "seven"
    assert not bad.ok
    assert isinstance(bad.error, cc.InvalidInputError)
    with pytest.raises(cc.InvalidInputError, match="cannot decode the image"):
        _ = bad.top


def test_one_image_needs_no_list(peer, ask):
    assert len(ask(peer.address, "classify", b"one", model="digits").results) == 1


def test_files_are_read(peer, ask, tmp_path):
    (tmp_path / "a").write_bytes(b"jpeg")
    ask(peer.address, "classify", tmp_path / "a", model="digits")
    assert peer.of("Classify")[0].images[0].encoded == b"jpeg"


def test_a_file_that_no_message_holds_is_not_read_whole(peer, ask, tmp_path):
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(2**40)
    for endless in (tmp_path / "huge", "/dev/zero"):
        with pytest.raises(cc.InvalidInputError, match="images is larger than the 1048576 bytes"):
            ask(peer.address, "classify", endless, model="digits", limits={"max_message_mib": 1})
    assert peer.asked == []


@pytest.mark.parametrize(
    ("images", "parameters", "expected"),
    [
        ([], {}, "images is empty"),
        ([b"x", "gone.png"], {}, r"images\[1\]: cannot read 'gone.png'"),
        ((b"x" for _ in range(2)), {}, "images has type generator"),
        (b"x", {"top_k": -1}, "top_k is -1"),
        (b"x", {"model": "\udcff"}, "model is .*: expected the model's name, as valid Unicode text"),
        (5, {}, "images has type int: expected a path"),
        ([None], {}, r"images\[0\] has type NoneType: expected a path"),
        (b"x", {"model": 7}, "model is 7: expected the model's name, as text"),
        (b"x", {"version": 1}, "version is 1: expected a version's number or label, or empty, as text"),
        (b"x", {"top_k": "3"}, "top_k is '3': expected a number of classes, or 0 for the default of 5"),
        (b"x", {"top_k": None}, "top_k is None: expected a number"),
        (b"x", {"timeout_s": "5"}, "timeout_s is '5': expected a number of seconds"),
        (b"x", {"timeout_s": 0}, "timeout_s is 0"),
        (b"x", {"timeout_s": float("inf")}, "timeout_s is inf"),
        (b"x", {"timeout_s": float("nan")}, "timeout_s is nan"),
    ],
)
def test_bad_input_is_refused_before_anything_is_sent(peer, ask, images, parameters, expected):
    with pytest.raises(cc.InvalidInputError, match=expected):
        ask(peer.address, "classify", images, **{"model": "digits", **parameters})
    assert peer.asked == []


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"timeout_s": -1}, "timeout_s is -1"),
        ({"max_message_mib": 0}, "max_message_mib is 0: expected a whole number from 1 to 2047"),
        ({"max_message_mib": 2048}, "max_message_mib is 2048"),
        ({"retries": -1}, "retries is -1: expected a whole number from 0 to 1000"),
        ({"connections": 0}, "connections is 0: expected a whole number from 1 to 100"),
        ({"timeout_s": "5"}, "timeout_s is '5': expected a number of seconds"),
        ({"timeout_s": None}, "timeout_s is None: expected a number of seconds"),
        ({"timeout_s": True}, "timeout_s is True: expected a number of seconds"),
        ({"timeout_s": 10**400}, r"timeout_s is 1000.*\.\.\.: expected a number of seconds"),
        ({"retries": "3"}, "retries is '3': expected a whole number"),
        ({"retries": 1.5}, r"retries is 1\.5: expected a whole number"),
        ({"connections": None}, "connections is None: expected a whole number"),
        ({"tls": "ca.pem"}, r"tls is 'ca\.pem': expected True, False or Tls\(root_certificates="),
        ({"tls": cc.Tls(5)}, "root_certificates is 5: expected the path of a PEM file"),
        ({"token": None}, "token has type NoneType: expected text"),
    ],
)
def test_limits_that_are_none_are_refused(ask, limits, expected):
    with pytest.raises(cc.InvalidInputError, match=expected):
        ask("127.0.0.1:1", "list_models", limits=limits)


@pytest.mark.parametrize("address", ["", "a:1,,b:2", [], ["a:1", " "]])
def test_an_empty_address_is_refused(ask, address):
    with pytest.raises(cc.InvalidInputError, match="address is empty: expected HOST:PORT"):
        ask(address, "list_models")


@pytest.mark.parametrize("address", [None, 5, b"127.0.0.1:1", [5], [None]])
def test_an_address_that_is_no_text_is_refused(ask, address):
    with pytest.raises(cc.InvalidInputError, match=re.escape(f"address is {address!r}: expected HOST:PORT, or")):
        ask(address, "list_models")


def test_numbers_of_numpy_are_numbers(peer, ask):
    limits = {
        "timeout_s": np.float32(9),
        "retries": np.int64(1),
        "max_message_mib": np.uint8(64),
        "connections": np.int8(2),
    }
    assert ask(peer.address, "classify", b"x", model="digits", top_k=np.uint8(2), limits=limits).results[0].ok
    assert peer.of("Classify")[0].top_k == 2


@pytest.mark.parametrize(
    "address",
    ["a", "a:", "a:x", "a:0", "a:65536", "a:-1", ":1", "http://a:1", "::1:1", "[::1]", "a b:1", "a:1/x", "a:١"],
)
def test_a_malformed_address_is_refused(ask, address):
    expected = re.escape(f"address is {address!r}: expected HOST:PORT with a port from 1 to 65535")
    with pytest.raises(cc.InvalidInputError, match=expected):
        ask(["127.0.0.1:1", address], "list_models")


@pytest.mark.parametrize(
    "address", ["a:1,b.c:65535", "[::1]:8001", "dns:///a", "unix:///run/a", "ipv4:127.0.0.1:1,127.0.0.1:2"]
)
def test_what_grpc_understands_is_an_address(address):
    with cc.Client(address) as client:
        assert str(client) == f"Client({address!r})"


def test_list_models_reads_every_field(peer, ask):
    digits, photos = ask(peer.address, "list_models")
    assert digits == cc.ModelInfo(
        "digits",
        (
            cc.VersionInfo(
                version="2",
                state="READY",
                input=cc.TensorInfo("image", "UINT8", (-1, 28, 28, 1)),
                class_count=10,
                max_batch_size=32,
                verified=True,
                placement={"CPUExecutionProvider": 12},
                accepts_images=True,
                architecture="lenet5",
                precision="fp32",
            ),
        ),
    )
    assert digits.ready
    assert photos.versions == (cc.VersionInfo("1", "UNAVAILABLE", "model.onnx was altered"),)
    assert not photos.ready


def test_get_model_has_labels_and_the_message_limit(peer, ask):
    version = pb.ModelVersion(version="1", state=pb.MODEL_STATE_READY, labels=["zero", "one"])
    model = pb.Model(name="digits", versions=[version])
    peer.scripts["GetModel"] = lambda request, context: pb.GetModelResponse(model=model, max_message_bytes=99)
    answer = ask(peer.address, "get_model", "digits")
    assert peer.of("GetModel") == [pb.GetModelRequest(model="digits")]
    assert answer.versions[0].labels == ("zero", "one")
    assert answer.max_message_bytes == 99


def test_load_and_unload_answer_the_model_as_it_is_then(peer, ask):
    model = ask(peer.address, "load_model", "digits", timeout_s=60)
    assert model == cc.ModelInfo(
        "digits",
        (cc.VersionInfo("3", "READY", self_test="within 1e-7", version_labels=("stable", "canary")),),
    )
    assert peer.asked[0].timeout_s > 30
    assert ask(peer.address, "unload_model", "digits").versions == (cc.VersionInfo("3", "UNAVAILABLE", "unloaded"),)
    assert peer.of("LoadModel") == [pb.LoadModelRequest(model="digits")]
    assert peer.of("UnloadModel") == [pb.UnloadModelRequest(model="digits")]


@pytest.mark.parametrize("name", ["\udcff", 5, None, b"digits"])
@pytest.mark.parametrize("method", ["get_model", "load_model", "unload_model", "is_healthy"])
def test_a_model_name_that_is_no_text_is_refused(peer, ask, method, name):
    with pytest.raises(cc.InvalidInputError, match=f"(name|service) is {re.escape(repr(name))}: "):
        ask(peer.address, method, name)
    assert not peer.asked


def test_a_state_from_a_newer_server_is_kept(peer, ask):
    model = pb.Model(name="digits")
    model.versions.add(version="1", state=17)
    peer.scripts["GetModel"] = lambda request, context: pb.GetModelResponse(model=model)
    assert ask(peer.address, "get_model", "digits").versions[0].state == "STATE_17"


@pytest.mark.parametrize(("status", "healthy"), [(SERVING, True), (NOT_SERVING, False)])
@pytest.mark.parametrize("service", ["", "digits"])
def test_health_speaks_the_standard_protocol(peer, ask, service, status, healthy):
    peer.health.set(service, status)
    assert ask(peer.address, "is_healthy", service) is healthy


def test_health_of_an_unknown_name_is_not_found(peer, ask):
    with pytest.raises(cc.NotFoundError, match="health of model 'nothing': NOT_FOUND"):
        ask(peer.address, "is_healthy", "nothing")


@pytest.mark.parametrize(
    ("status", "error"),
    [
        ("INVALID_ARGUMENT", cc.InvalidInputError),
        ("NOT_FOUND", cc.NotFoundError),
        ("UNAVAILABLE", cc.UnavailableError),
        ("RESOURCE_EXHAUSTED", cc.ResourceExhaustedError),
        ("DEADLINE_EXCEEDED", cc.DeadlineExceededError),
        ("UNAUTHENTICATED", cc.UnauthenticatedError),
        ("PERMISSION_DENIED", cc.PermissionDeniedError),
        ("UNIMPLEMENTED", cc.UnsupportedError),
        ("INTERNAL", cc.InternalError),
        ("UNKNOWN", cc.CnnserveError),
        ("ALREADY_EXISTS", cc.CnnserveError),
        ("FAILED_PRECONDITION", cc.FailedPreconditionError),
        ("ABORTED", cc.CnnserveError),
        ("OUT_OF_RANGE", cc.CnnserveError),
        ("DATA_LOSS", cc.CnnserveError),
    ],
)
def test_every_status_has_its_error(peer, ask, status, error):
    peer.refuse("Classify", grpc.StatusCode[status], "what the server said")
    with pytest.raises(cc.CnnserveError, match="what the server said") as caught:
        ask(peer.address, "classify", b"x", model="digits", limits={"retries": 0})
    assert type(caught.value) is error
    assert caught.value.code == status


def test_a_call_cut_off_by_a_stopping_server_is_unavailable(peer, ask):
    def stop(request, context):
        peer.server.stop(HANG_S)  # The server tells its clients, and answers its calls.
        context.abort(grpc.StatusCode.CANCELLED, "stopping")

    peer.scripts["Classify"] = stop
    with pytest.raises(cc.UnavailableError, match=r"the server cancelled the call \(stopping\)"):
        ask(peer.address, "classify", b"x", model="digits", limits={"retries": 0})


def test_a_cancelled_call_on_a_living_connection_is_not_sent_again(peer, ask):
    peer.refuse("Classify", grpc.StatusCode.CANCELLED, "a proxy gave it up")
    with pytest.raises(cc.CnnserveError, match="a proxy gave it up") as caught:
        ask(peer.address, "classify", b"x", model="digits")
    assert (type(caught.value), caught.value.code) == (cc.CnnserveError, "CANCELLED")
    assert len(peer.asked) == 1


def test_a_full_queue_says_when_to_come_back(peer, ask):
    peer.refuse("Classify", grpc.StatusCode.RESOURCE_EXHAUSTED, "queue full", (("grpc-retry-pushback-ms", "250"),))
    with pytest.raises(cc.QueueFullError) as caught:
        ask(peer.address, "classify", b"x", model="digits", limits={"retries": 0})
    assert caught.value.retry_after_s == 0.25
    assert caught.value.code == "RESOURCE_EXHAUSTED"


@pytest.mark.parametrize("pushback", ["-1", "soon", ""])
def test_a_pushback_that_forbids_a_retry_is_no_full_queue(peer, ask, pushback):
    peer.refuse("Classify", grpc.StatusCode.RESOURCE_EXHAUSTED, "no", (("grpc-retry-pushback-ms", pushback),))
    with pytest.raises(cc.ResourceExhaustedError) as caught:
        ask(peer.address, "classify", b"x", model="digits")
    assert not isinstance(caught.value, cc.QueueFullError)


def test_a_request_over_the_message_limit_says_what_to_do(peer, ask):
    with pytest.raises(cc.ResourceExhaustedError, match=r"larger than max .*send fewer images or rows at once"):
        ask(peer.address, "classify", bytes(2**20), model="digits", limits={"max_message_mib": 1})
    assert peer.asked == []


def test_the_limit_is_64_mib_not_the_4_of_grpc(peer, ask):
    peer.scripts["ListModels"] = lambda request, context: pb.ListModelsResponse(models=[pb.Model(name="x" * 2**23)])
    assert len(ask(peer.address, "list_models")[0].name) == 2**23
    assert len(ask(peer.address, "classify", bytes(2**23), model="digits").results) == 1


def test_the_deadline_reaches_the_server(peer, ask):
    ask(peer.address, "classify", b"x", model="digits")
    ask(peer.address, "classify", b"x", model="digits", timeout_s=200)
    ask(peer.address, "list_models", limits={"timeout_s": 7000})
    # What is left of it on arrival, as exact as grpc sends it.
    assert [asked.timeout_s for asked in peer.asked] == pytest.approx([30, 200, 7000], rel=0.4)


def test_a_passed_deadline_is_a_timeout(peer, ask):
    peer.hang("Classify")
    with pytest.raises(TimeoutError, match=rf"no response from {peer.address} within 0\.1 s") as caught:
        ask(peer.address, "classify", b"x", model="digits", timeout_s=0.1)
    assert isinstance(caught.value, cc.DeadlineExceededError)


@pytest.mark.parametrize("host", ["127.0.0.1:1", "no-such-host.invalid:8001"])
def test_no_server_names_the_address_and_what_to_check(ask, host):
    with pytest.raises(
        ConnectionError, match=rf"cannot reach a server at {host}: check that `cnnserve serve`"
    ) as caught:
        ask(host, "list_models", timeout_s=20, limits={"retries": 0})
    assert type(caught.value) is cc.ConnectionFailedError
    assert caught.value.code == "UNAVAILABLE"


def test_an_http_port_is_no_server(ask):
    def answer_like_http() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(100)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        web = threading.Thread(target=answer_like_http)
        web.start()
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        try:
            with pytest.raises(cc.ConnectionFailedError, match="not its HTTP port"):
                ask(address, "list_models", limits={"retries": 0})
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            web.join()


def test_a_method_the_server_does_not_have_is_unsupported(ask):
    server = grpc.server(None)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with pytest.raises(cc.UnsupportedError):
            ask(f"127.0.0.1:{port}", "list_models")
    finally:
        server.stop(None).wait()


def test_too_few_results_are_the_servers_fault(peer, ask):
    peer.scripts["Classify"] = lambda request, context: pb.ClassifyResponse()
    with pytest.raises(cc.InternalError, match="0 results for 2 images"):
        ask(peer.address, "classify", [b"x", b"y"], model="digits")


def test_a_result_without_content_is_an_error(peer, ask):
    peer.scripts["Classify"] = lambda request, context: pb.ClassifyResponse(results=[pb.ImageResult()])
    (result,) = ask(peer.address, "classify", b"x", model="digits").results
    assert isinstance(result.error, cc.InternalError)


def test_an_image_error_with_an_unknown_code_is_kept(peer, ask):
    failed = pb.ImageResult(error=pb.Error(code=99, message="odd"))
    peer.scripts["Classify"] = lambda request, context: pb.ClassifyResponse(results=[failed])
    (result,) = ask(peer.address, "classify", b"x", model="digits").results
    assert (result.error.code, str(result.error)) == ("UNKNOWN", "odd")


def test_an_answer_that_is_no_protobuf_is_internal(peer, ask):
    peer.scripts["ListModels"] = lambda request, context: b"\xff\xff\xff"
    with pytest.raises(cc.InternalError, match="list of models: the response is no valid ListModelsResponse"):
        ask(peer.address, "list_models")


def test_a_closed_client_says_so(peer):
    client = cc.Client(peer.address)
    client.close()
    client.close()
    assert repr(client) == f"Client({peer.address!r}, closed)"
    with pytest.raises(RuntimeError, match="this Client is closed"):
        client.list_models()


async def test_a_closed_async_client_says_so(peer):
    client = cc.AsyncClient(peer.address)
    await client.close()
    await client.close()
    assert repr(client) == f"AsyncClient({peer.address!r}, closed)"
    with pytest.raises(RuntimeError, match="this AsyncClient is closed"):
        await client.list_models()


def test_an_async_client_outside_a_loop_says_so():
    with pytest.raises(RuntimeError, match="no running event loop"):
        cc.AsyncClient("127.0.0.1:1")


async def test_a_cancelled_call_is_cancelled_on_the_server_too(peer):
    asked, gone = threading.Event(), threading.Event()

    def wait_for_the_caller(request, context):
        context.add_callback(gone.set)
        asked.set()
        gone.wait(HANG_S)

    peer.scripts["Classify"] = wait_for_the_caller
    async with cc.AsyncClient(peer.address) as client:
        call = asyncio.create_task(client.classify(b"x", model="digits"))
        assert await asyncio.to_thread(asked.wait, HANG_S)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert await asyncio.to_thread(gone.wait, HANG_S)


def test_threads_share_a_client(peer):
    with cc.Client(peer.address) as client:
        answers = []
        threads = [
            threading.Thread(target=lambda: answers.append(client.classify([b"x"] * 3, model="digits")))
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [len(answer.results) for answer in answers] == [3] * 8


def test_every_name_of_the_package_is_there():
    for name in cc.__all__:
        assert getattr(cc, name).__name__ == name
    with pytest.raises(AttributeError, match="'cnnserve_client' has no attribute 'Nothing'"):
        _ = cc.Nothing


def test_errors_survive_pickling():
    for error in (
        cc.QueueFullError("full", retry_after_s=0.5),
        cc.ConnectionFailedError("gone"),
        from_status("X", "y"),
    ):
        copy = pickle.loads(pickle.dumps(error))
        assert type(copy) is type(error)
        assert (str(copy), vars(copy)) == (str(error), vars(error))


def behind_a_proxy(variable: str, address: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Runs `cnnserve health` with an environment that names a proxy which does not exist."""
    environment = os.environ | {variable: "http://127.0.0.1:9"} | more
    command = [sys.executable, "-m", "cnnserve", "health", "--address", address, "--timeout-s", "5"]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.parametrize("variable", ["http_proxy", "https_proxy", "grpc_proxy"])
def test_a_proxy_is_not_in_the_way_to_this_machine(peer, variable):
    """Docker puts http_proxy into every container if its client is configured so; HEALTHCHECK must not fail for it."""
    ended = behind_a_proxy(variable, peer.address)
    assert (ended.returncode, ended.stdout) == (0, "SERVING\n"), ended.stderr


def test_a_proxy_that_may_be_in_the_way_is_named():
    ended = behind_a_proxy("http_proxy", "models.example:8001")
    assert ended.returncode == 1
    assert "the environment variable http_proxy names a proxy for it: if it is in the way, add the host" in ended.stderr
    # It may contain a password.
    assert "cannot reach a server at models.example:8001" in ended.stderr.partition("(")[0]
    assert "http://127.0.0.1:9" not in ended.stderr
