"""The commands: what they send, print and exit with."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2

from cnnserve.wire import classifier_pb2 as pb
from cnnserve_client import cli


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Seven image files in the current folder; 4.png cannot be decoded."""
    monkeypatch.chdir(tmp_path)
    for number in range(7):
        (tmp_path / f"{number}.png").write_bytes(b"bad" if number == 4 else b"image %d" % number)
    return tmp_path


def run(capsys, command, *argv):
    status = command(list(argv))
    out, err = capsys.readouterr()
    return status, out, err


def test_classify_prints_a_table(peer, files, capsys):
    status, out, err = run(
        capsys, cli.classify, "0.png", "1.png", "--model", "digits", "--address", peer.address, "--top-k", "1"
    )
    assert (status, err) == (0, "")
    assert out.splitlines() == [
        "FILE   RANK  PROBABILITY  LABEL",
        "0.png     1       75.00%  seven",
        "1.png     1       75.00%  seven",
    ]
    assert [(asked.model, asked.version, asked.top_k) for asked in peer.of("Classify")] == [("digits", "", 1)]


def test_a_failed_image_fails_alone_and_is_named(peer, files, capsys):
    paths = ["0.png", "gone.png", "4.png", ".", "1.png"]
    status, out, err = run(capsys, cli.classify, *paths, "--model", "digits", "--address", peer.address)
    assert status == 1
    assert [line.split()[0] for line in out.splitlines()] == ["FILE", *paths]
    assert out.count("75.00%") == 2
    assert "gone.png     -            -  error: No such file or directory" in out
    assert err.splitlines() == [
        "error: gone.png: No such file or directory",
        "error: 4.png: cannot decode the image",
        "error: .: Is a directory",
    ]


def test_json_is_one_document_over_all_requests(peer, files, capsys):
    paths = [f"{number}.png" for number in range(7)]
    status, out, _ = run(capsys, cli.classify, *paths, "--model", "digits", "--json", "--address", peer.address)
    document = json.loads(out)
    assert status == 1
    assert (document["model"], document["version"], document["timings"]["total_us"]) == ("digits", "1", 27)
    assert [image["file"] for image in document["images"]] == paths
    assert [path for path, image in zip(paths, document["images"], strict=True) if "error" in image] == ["4.png"]


def test_requests_hold_no_more_than_the_models_batch(peer, files, capsys):
    paths = [f"{number}.png" for number in range(7)]
    run(capsys, cli.classify, *paths, "--model", "digits", "--address", peer.address)
    assert [len(request.images) for request in peer.of("Classify")] == [3, 3, 1]
    assert [image.encoded for request in peer.of("Classify") for image in request.images] == [
        (files / path).read_bytes() for path in paths
    ]
    assert len(peer.of("GetModel")) == 1


def test_requests_stay_below_the_servers_message_limit(peer, files, capsys):
    version = pb.ModelVersion(version="1", state=pb.MODEL_STATE_READY, max_batch_size=100)
    model = pb.Model(name="digits", versions=[version])
    peer.scripts["GetModel"] = lambda request, context: pb.GetModelResponse(model=model, max_message_bytes=1000)
    for number in range(5):
        (files / f"{number}.png").write_bytes(bytes(300))
    (files / "5.png").write_bytes(bytes(1000))
    status, _, err = run(
        capsys, cli.classify, *(f"{n}.png" for n in range(7)), "--model", "digits", "--address", peer.address
    )
    assert status == 1
    assert err == "error: 5.png: larger than the 930 bytes that one request may hold\n"
    assert [len(request.images) for request in peer.of("Classify")] == [2, 2, 2]
    assert all(request.ByteSize() <= 1000 for request in peer.of("Classify"))


def test_a_failed_request_fails_its_images_only(peer, files, capsys):
    script = peer.scripts["Classify"]

    def refuse_the_second(request, context):
        if len(peer.of("Classify")) == 2:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "queue full")
        return script(request, context)

    peer.scripts["Classify"] = refuse_the_second
    paths = ["0.png", "1.png", "2.png", "3.png", "5.png", "6.png", "0.png"]
    status, out, err = run(capsys, cli.classify, *paths, "--model", "digits", "--address", peer.address)
    assert status == 1
    assert out.count("75.00%") == 4
    assert err.splitlines() == [f"error: {path}: queue full" for path in ("3.png", "5.png", "6.png")]


def test_a_version_that_changes_midway_is_told(peer, files, capsys):
    script = peer.scripts["Classify"]

    def newer(request, context):
        answer = script(request, context)
        answer.version = str(len(peer.of("Classify")))
        return answer

    peer.scripts["Classify"] = newer
    argv = ["0.png"] * 4 + ["--model", "digits", "--json", "--address", peer.address]
    assert json.loads(run(capsys, cli.classify, *argv)[1])["version"] == "1, 2"


def test_the_only_ready_model_needs_no_name(peer, files, capsys):
    assert run(capsys, cli.classify, "0.png", "--address", peer.address)[0] == 0
    assert peer.of("Classify")[0].model == "digits"


def test_one_of_several_models_must_be_named(peer, files, capsys):
    version = pb.ModelVersion(version="1", state=pb.MODEL_STATE_READY)
    models = [pb.Model(name=name, versions=[version]) for name in ("a", "b\x1b")]
    peer.scripts["ListModels"] = lambda request, context: pb.ListModelsResponse(models=models)
    with pytest.raises(SystemExit) as stop:
        cli.classify(["0.png", "--address", peer.address])
    assert stop.value.code == 2
    assert f"error: --model is needed: {peer.address} serves a, b\\x1b" in capsys.readouterr().err


def test_no_ready_model_is_an_error(peer, files, capsys):
    peer.scripts["ListModels"] = lambda request, context: pb.ListModelsResponse()
    status, out, err = run(capsys, cli.classify, "0.png", "--address", peer.address)
    assert (status, out) == (1, "")
    assert "has no ready model" in err


def test_a_model_that_is_not_ready_says_why(peer, files, capsys):
    version = pb.ModelVersion(version="1", state=pb.MODEL_STATE_UNAVAILABLE, reason="model.onnx was altered")
    model = pb.Model(name="digits", versions=[version])
    peer.scripts["GetModel"] = lambda request, context: pb.GetModelResponse(model=model)
    status, _, err = run(capsys, cli.classify, "0.png", "--model", "digits", "--address", peer.address)
    assert status == 1
    assert err == "error: model digits is not ready: version 1 is UNAVAILABLE (model.onnx was altered)\n"
    assert peer.of("Classify") == []


def test_an_unknown_version_is_one_line(peer, files, capsys):
    argv = ["0.png", "--model", "digits", "--version", "9", "--address", peer.address]
    assert run(capsys, cli.classify, *argv) == (1, "", "error: model digits has no version 9\n")
    assert peer.of("Classify") == []


def test_an_unknown_model_is_one_line(peer, files, capsys):
    peer.refuse("GetModel", grpc.StatusCode.NOT_FOUND, "no model 'x'; there are: digits")
    assert run(capsys, cli.classify, "0.png", "--model", "x", "--address", peer.address) == (
        1,
        "",
        "error: no model 'x'; there are: digits\n",
    )


@pytest.mark.parametrize(
    ("command", "argv"),
    [
        (cli.classify, []),
        (cli.classify, ["a.png", "--top-k", "-1"]),
        (cli.classify, ["a.png", "--top-k", "many"]),
        (cli.classify, ["a.png", "--timeout-s", "0"]),
        (cli.classify, ["a.png", "--timeout-s", "inf"]),
        (cli.health, ["extra"]),
        (cli.models, ["--jso"]),
        (cli.load, []),
        (cli.unload, ["a", "b"]),
    ],
)
def test_wrong_usage_exits_2(command, argv, capsys):
    with pytest.raises(SystemExit) as stop:
        command(argv)
    assert stop.value.code == 2
    assert f"cnnserve {command.__name__}: error: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [
        lambda argv: cli.classify(["a.png", *argv]),
        cli.health,
        cli.models,
        lambda argv: cli.load(["m", *argv]),
        lambda argv: cli.unload(["m", *argv]),
    ],
)
def test_no_server_is_one_line_that_names_the_address(command, capsys):
    status, out, err = run(capsys, command, "--address", "127.0.0.1:1")
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("error: cannot reach a server at 127.0.0.1:1: check that `cnnserve serve` runs there")


def test_health(peer, capsys):
    peer.health.set("digits", health_pb2.HealthCheckResponse.NOT_SERVING)
    at = ["--address", peer.address]
    assert run(capsys, cli.health, *at) == (0, "SERVING\n", "")
    assert run(capsys, cli.health, *at, "--model", "digits") == (
        1,
        "",
        f"error: model digits at {peer.address} is NOT_SERVING\n",
    )
    status, _, err = run(capsys, cli.health, *at, "--model", "nothing")
    assert status == 1
    assert "nothing" in err


def test_models(peer, capsys):
    assert run(capsys, cli.models, "--address", peer.address)[1].splitlines() == [
        "NAME    VERSION  STATE        INPUT               CLASSES  MAX BATCH  VERIFIED  REASON",
        "digits  2        READY        UINT8 [-1,28,28,1]       10         32  yes",
        "photos  1        UNAVAILABLE  -                         -          -  -         model.onnx was altered",
    ]
    document = json.loads(run(capsys, cli.models, "--json", "--address", peer.address)[1])
    assert [model["name"] for model in document] == ["digits", "photos"]
    assert document[0]["versions"][0]["input"] == {"name": "image", "datatype": "UINT8", "shape": [-1, 28, 28, 1]}


def test_load_and_unload_print_the_model(peer, capsys):
    at = ["--address", peer.address]
    assert run(capsys, cli.load, "digits", *at)[:2] == (
        0,
        "NAME    VERSION             STATE  INPUT  CLASSES  MAX BATCH  VERIFIED  REASON\n"
        "digits  3 (stable, canary)  READY  -            0          0  no\n",
    )
    status, out, _ = run(capsys, cli.unload, "digits", "--json", *at)
    [model] = json.loads(out)
    assert (status, model["versions"][0]["reason"]) == (0, "unloaded")
    assert [asked.timeout_s > 500 for asked in peer.asked] == [True, True]


def test_a_load_that_fails_says_why(peer, capsys):
    peer.refuse("LoadModel", grpc.StatusCode.FAILED_PRECONDITION, "model 'm': version 2: file model.onnx is missing")
    assert run(capsys, cli.load, "m", "--address", peer.address) == (
        1,
        "",
        "error: model 'm': version 2: file model.onnx is missing\n",
    )


def started(command: str, *argv: str, **options) -> subprocess.Popen:
    code = f"import sys; from cnnserve_client import cli; sys.exit(cli.{command}(sys.argv[1:]))"
    return subprocess.Popen([sys.executable, "-c", code, *argv], stderr=subprocess.PIPE, text=True, **options)


def test_ctrl_c_exits_130(peer, files):
    peer.hang("Classify")
    process = started("classify", "0.png", "--model", "digits", "--address", peer.address)
    while not peer.of("Classify"):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=10)
    assert (process.returncode, err) == (130, "error: interrupted\n")


def test_a_reader_that_goes_away_is_no_traceback(peer):
    reading, writing = os.pipe()
    os.close(reading)
    process = started("models", "--address", peer.address, stdout=writing)
    os.close(writing)
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (141, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_one_line(peer):
    with Path("/dev/full").open("w") as full:
        process = started("models", "--address", peer.address, stdout=full)
        _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (1, "error: cannot write the output: No space left on device\n")


def test_text_the_terminal_cannot_show_is_escaped(peer, files):
    (files / "Größe.png").write_bytes(b"image")
    process = started(
        "classify",
        "Größe.png",
        "--model",
        "digits",
        "--address",
        peer.address,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "1"},
    )
    out, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (0, "")
    assert "Gr\\xf6\\xdfe.png" in out


def test_help_is_quick_to_load():
    code = (
        "import contextlib, sys\n"
        "import cnnserve_client.cli as cli\n"
        "with contextlib.suppress(SystemExit): cli.classify(['--help'])\n"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=20)
    text, _, loaded = done.stdout.strip().rpartition("\n")
    assert "usage: cnnserve classify" in text
    assert "IMAGE" in text
    assert not {"onnxruntime", "torch", "PIL", "grpc", "google", "numpy"} & set(loaded.split())


def test_a_whole_run_loads_neither_the_runtime_nor_torch_nor_pillow(peer, files):
    code = (
        "import sys\n"
        "from cnnserve_client import cli\n"
        "cli.classify(sys.argv[1:])\n"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    argv = [sys.executable, "-c", code, "0.png", "--address", peer.address]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=20)
    assert "75.00%" in done.stdout
    assert not {"onnxruntime", "torch", "PIL"} & set(done.stdout.rpartition("LABEL")[2].split())
