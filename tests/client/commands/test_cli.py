"""The commands: their requests, their output and their exit status."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2

from cnnserve.wire import classifier_pb2 as pb
from cnnserve_client.commands import cli, terminal
from peer import Peer, Refused
from support import HANG_S


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
    paths = ["0.png", "gone.png", "4.png", "1.png"]
    status, out, err = run(capsys, cli.classify, *paths, "--model", "digits", "--address", peer.address)
    assert status == 1
    assert [line.split()[0] for line in out.splitlines()] == ["FILE", *paths]
    assert out.count("75.00%") == 2
    assert "gone.png     -            -  error: No such file or directory" in out
    assert err.splitlines() == [
        "error: gone.png: No such file or directory",
        "error: 4.png: cannot decode the image",
    ]


def test_json_is_a_line_for_each_image(peer, files, capsys):
    paths = [f"{number}.png" for number in range(7)]
    status, out, _ = run(capsys, cli.classify, *paths, "--model", "digits", "--json", "--address", peer.address)
    records = [json.loads(line) for line in out.splitlines()]
    assert status == 1
    assert [record["file"] for record in records] == paths
    assert {(record["model"], record["version"]) for record in records} == {("digits", "1")}
    assert [record["file"] for record in records if "error" in record] == ["4.png"]


def test_csv_has_a_row_for_each_class(peer, files, capsys):
    status, out, _ = run(capsys, cli.classify, "0.png", "4.png", "--csv", "--address", peer.address)
    assert status == 1
    assert out.splitlines() == [
        "file,version,rank,index,label,probability,error",
        "0.png,1,1,7,seven,0.75,",
        "4.png,1,,,,,cannot decode the image",
    ]


@pytest.mark.parametrize(
    ("name", "flags", "start"),
    [("a.jsonl", [], '{"file"'), ("a.CSV", [], "file,"), ("a", ["--csv"], "file,"), ("a.csv", ["--json"], '{"file"')],
)
def test_output_goes_to_a_file(peer, files, capsys, name, flags, start):
    (files / name).write_text("old" * 1000)
    argv = [".", *flags, "--output", name, "--address", peer.address]
    status, out, err = run(capsys, cli.classify, *argv)
    assert (status, out, err) == (1, "", "error: ./4.png: cannot decode the image\n")
    lines = (files / name).read_text().splitlines()
    assert lines[0].startswith(start)
    assert len(lines) == 7 + (start == "file,")


def test_what_goes_wrong_at_the_start_leaves_the_output_file_alone(peer, files, capsys):
    (files / "out.csv").write_text("precious")
    peer.refuse("GetModel", grpc.StatusCode.NOT_FOUND, "no model 'x'")
    for address in (peer.address, "127.0.0.1:1"):
        argv = [".", "--output", "out.csv", "--model", "x", "--address", address]
        assert run(capsys, cli.classify, *argv)[0] == 1
    assert (files / "out.csv").read_text() == "precious"


@pytest.mark.parametrize(
    "images",
    [["0.csv"], ["./0.csv"], ["*.csv"], ["linked"], ["1.png", "--files-from", "0.csv"], ["--files-from", "list"]],
)
def test_no_input_is_written_over(peer, files, capsys, images):
    (files / "0.csv").write_text("1.png\n")
    (files / "list").write_text("1.png\n0.csv\n")
    (files / "linked").mkdir()
    (files / "linked" / "2.png").symlink_to("../0.csv")
    argv = [*images, "--output", "0.csv", "--address", peer.address]
    assert run(capsys, cli.classify, *argv) == (1, "", "error: --output 0.csv is also an input: name another file\n")
    assert (files / "0.csv").read_text() == "1.png\n"


def test_a_file_that_cannot_be_written_is_named(peer, files, capsys):
    argv = ["0.png", "--output", "no/such/folder.csv", "--address", peer.address]
    assert run(capsys, cli.classify, *argv) == (
        1,
        "",
        "error: cannot write no/such/folder.csv: No such file or directory\n",
    )


def test_folders_patterns_and_lists(peer, files, capsys):
    (files / "deep").mkdir()
    (files / "deep" / "8.png").write_bytes(b"image 8")
    (files / "list").write_text("2.png\n1.png\n")
    argv = ["deep", "[05].png", "--files-from", "list", "--json", "--address", peer.address]
    status, out, err = run(capsys, cli.classify, *argv)
    assert (status, err) == (0, "")
    names = [json.loads(line)["file"] for line in out.splitlines()]
    assert names == ["deep/8.png", "0.png", "5.png", "2.png", "1.png"]


@pytest.mark.parametrize(
    ("argument", "reason"),
    [
        ("none*.png", "no file matches this pattern"),
        ("empty", "the folder has no images (jpg, jpeg, jfif, jpe, pjpeg, pjp, png, apng, webp, bmp, dib, gif)"),
    ],
)
def test_what_leads_to_no_image_is_named(peer, files, capsys, argument, reason):
    (files / "empty").mkdir()
    status, _, err = run(capsys, cli.classify, argument, "--address", peer.address)
    assert (status, err) == (1, f"error: {argument}: {reason}\n")


def test_an_empty_list_is_told(peer, files, capsys):
    (files / "list").write_text("\n")
    argv = ["--files-from", "list", "--address", peer.address]
    assert run(capsys, cli.classify, *argv) == (1, "", "error: list contains no paths: write one path on each line\n")


@pytest.mark.parametrize(
    ("argv", "data", "names"),
    [(["-"], b"image", ["-"]), (["--files-from", "-"], b"0.png\n1.png\n", ["0.png", "1.png"])],
)
def test_standard_input_is_an_image_or_a_list(peer, files, argv, data, names):
    process = started(
        "classify", *argv, "--json", "--address", peer.address, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    out, err = process.communicate(data, timeout=HANG_S)
    assert (process.returncode, err) == (0, b"")
    assert [json.loads(line)["file"] for line in out.splitlines()] == names


def test_the_progress_bar_takes_no_line_from_a_list_in_a_pipe(peer, files, capsys, monkeypatch):
    monkeypatch.setattr(terminal, "is_terminal", lambda stream: stream is sys.stderr)
    reader, writer = os.pipe()
    lines = 5_000  # Many times the size of a pipe and of a file's buffer.

    def write() -> None:
        with os.fdopen(writer, "w") as pipe:
            pipe.write(f"{'./' * 200}0.png\n" * lines)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        argv = ["--files-from", f"/dev/fd/{reader}", "--output", "out.jsonl", "--address", peer.address]
        assert run(capsys, cli.classify, *argv)[0] == 0
    finally:
        os.close(reader)
        thread.join()
    assert len((files / "out.jsonl").read_text().splitlines()) == lines


def test_requests_hold_no_more_than_the_models_batch(peer, files, capsys):
    paths = [f"{number}.png" for number in range(7)]
    run(capsys, cli.classify, *paths, "--model", "digits", "--address", peer.address)
    assert [len(request.images) for request in peer.of("Classify")] == [3, 3, 1]
    assert [image.encoded for request in peer.of("Classify") for image in request.images] == [
        (files / path).read_bytes() for path in paths
    ]


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
    assert err == "error: 5.png: larger than the 866 bytes that one request may hold: use a smaller image\n"
    assert [len(request.images) for request in peer.of("Classify")] == [2, 2, 2]
    assert all(request.ByteSize() <= 1000 for request in peer.of("Classify"))


def test_a_failed_request_fails_its_images_only(peer, files, capsys):
    script = peer.scripts["Classify"]

    def refuse_the_second(request, context):
        if len(peer.of("Classify")) == 2:
            raise Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "too much")
        return script(request, context)

    peer.scripts["Classify"] = refuse_the_second
    paths = ["0.png", "1.png", "2.png", "3.png", "5.png", "6.png", "0.png"]
    status, out, err = run(capsys, cli.classify, *paths, "--model", "digits", "--address", peer.address)
    assert status == 1
    assert out.count("75.00%") == 4
    assert err.splitlines() == [f"error: {path}: too much" for path in ("3.png", "5.png", "6.png")]


def test_a_server_that_goes_away_leaves_what_was_done(peer, files, capsys):
    def stream(requests, context):
        yield next(Peer.stream(peer, requests, context))
        context.abort(grpc.StatusCode.INTERNAL, "broken")

    peer.stream = stream
    argv = ["0.png"] * 100 + ["--csv", "--address", peer.address]
    status, out, err = run(capsys, cli.classify, *argv)
    assert (status, out.count("seven"), err) == (1, 3, "error: stopped after 3 images: broken\n")


def test_a_version_that_changes_midway_is_told(peer, files, capsys):
    script = peer.scripts["Classify"]

    def newer(request, context):
        answer = script(request, context)
        answer.version = str(len(peer.of("Classify")))
        return answer

    peer.scripts["Classify"] = newer
    argv = ["0.png"] * 4 + ["--model", "digits", "--json", "--address", peer.address]
    lines = run(capsys, cli.classify, *argv)[1].splitlines()
    assert [json.loads(line)["version"] for line in lines] == ["1", "1", "1", "2"]


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
    assert f"error: --model is missing: {peer.address} serves a, b\\x1b; choose one" in capsys.readouterr().err


def test_no_ready_model_is_an_error(peer, files, capsys):
    peer.scripts["ListModels"] = lambda request, context: pb.ListModelsResponse()
    status, out, err = run(capsys, cli.classify, "0.png", "--address", peer.address)
    assert (status, out) == (1, "")
    assert "has no READY model: run `cnnserve models`" in err


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
    assert run(capsys, cli.classify, *argv) == (1, "", "error: model digits has no version 9: use one of 1\n")
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
        (cli.classify, ["a.png", "--json", "--csv"]),
        (cli.classify, ["a.png", "--output", "a.txt"]),
        (cli.classify, ["-", "-"]),
        (cli.classify, ["-", "--files-from", "-"]),
        (cli.labels, []),
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
        lambda argv: cli.labels(["m", *argv]),
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
        f"error: model digits at {peer.address} is NOT_SERVING: run `cnnserve models` to see why\n",
    )
    status, _, err = run(capsys, cli.health, *at, "--model", "nothing")
    assert status == 1
    assert "nothing" in err


def test_models(peer, capsys):
    assert run(capsys, cli.models, "--address", peer.address)[1].splitlines() == [
        "NAME    VERSION  STATE        INPUT               CLASSES  MAX BATCH  VERIFIED",
        "digits  2        READY        UINT8 [-1,28,28,1]       10         32  yes",
        "photos  1        UNAVAILABLE  -                         -          -  -",
        "    model.onnx was altered",
    ]
    document = json.loads(run(capsys, cli.models, "--json", "--address", peer.address)[1])
    assert [model["name"] for model in document] == ["digits", "photos"]
    assert document[0]["versions"][0]["input"] == {"name": "image", "datatype": "UINT8", "shape": [-1, 28, 28, 1]}


def test_labels(peer, capsys):
    versions = [
        pb.ModelVersion(version="9", state=pb.MODEL_STATE_READY, labels=["nine"]),
        pb.ModelVersion(version="10", state=pb.MODEL_STATE_READY, labels=["zero", "one"], version_labels=["stable"]),
        pb.ModelVersion(version="11", state=pb.MODEL_STATE_LOADING),
        pb.ModelVersion(version="3", state=pb.MODEL_STATE_READY, class_count=2),
    ]
    model = pb.Model(name="digits", versions=versions)
    peer.scripts["GetModel"] = lambda request, context: pb.GetModelResponse(model=model)
    at = ["digits", "--address", peer.address]
    assert run(capsys, cli.labels, *at) == (0, "INDEX  LABEL\n    0  zero\n    1  one\n", "")
    assert json.loads(run(capsys, cli.labels, *at, "--json", "--version", "9")[1]) == [{"index": 0, "label": "nine"}]
    assert "one" in run(capsys, cli.labels, *at, "--version", "stable")[1]
    assert run(capsys, cli.labels, *at, "--version", "3")[::2] == (
        1,
        "error: model digits version 3 has 2 classes without labels: add a label file to the model\n",
    )
    assert run(capsys, cli.labels, *at, "--version", "11")[::2] == (
        1,
        "error: model digits is not ready: version 11 is LOADING\n",
    )


@pytest.mark.parametrize("by", ["file", "variable"])
def test_a_token_comes_from_a_file_or_a_variable(peer, files, capsys, monkeypatch, by):
    (files / "token").write_text("s3cret\n")
    monkeypatch.setenv("CNNSERVE_TOKEN", "s3cret" if by == "variable" else "wrong")
    flags = ["--token-file", "token"] if by == "file" else []
    assert run(capsys, cli.models, "--address", peer.address, *flags)[0] == 0
    assert peer.metadata[0]["authorization"] == "Bearer s3cret"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--token-file", "gone"], "--token-file: cannot read 'gone': No such file or directory"),
        (["--root-certificates", "gone"], "root_certificates: cannot read 'gone': No such file or directory"),
        (["--key", "gone"], "certificate is missing: certificate and key must be given together"),
        (["--token-file", "0.png", "--address", "example.com:1"], "token has characters that a header cannot carry"),
    ],
)
def test_unusable_credentials_are_one_line(files, capsys, flags, expected):
    status, out, err = run(capsys, cli.models, *flags)
    assert (status, out) == (1, "")
    assert err.startswith(f"error: {expected}")


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
    code = f"import sys; from cnnserve_client.commands import cli; sys.exit(cli.{command}(sys.argv[1:]))"
    return subprocess.Popen([sys.executable, "-c", code, *argv], stderr=subprocess.PIPE, **options)


def test_ctrl_c_exits_130(peer, files):
    peer.hang("Classify")
    process = started("classify", "0.png", "--model", "digits", "--address", peer.address)
    while not peer.of("Classify"):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=HANG_S)
    assert (process.returncode, err) == (130, b"error: interrupted\n")


@pytest.mark.parametrize("kind", ["csv", "jsonl", "stdout"])
def test_ctrl_c_in_the_middle_leaves_whole_records(peer, files, kind):
    for number in range(10, 2000):
        (files / f"{number}.png").write_bytes(b"image")
    script = peer.scripts["Classify"]

    def slow(request, context):
        if len(peer.of("Classify")) > 100:
            time.sleep(0.01)
        return script(request, context)

    peer.scripts["Classify"] = slow
    output = files / f"out.{kind}"
    flags = ["--csv"] if kind == "stdout" else ["--output", output.name]
    with output.open("w") as file:
        process = started("classify", ".", *flags, "--address", peer.address, stdout=file)
        while len(peer.of("Classify")) < 150:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=HANG_S)
    assert process.returncode == 130
    last = err.decode().splitlines()[-1]
    done = int(re.fullmatch(r"error: interrupted after ([\d,]+) images", last)[1].replace(",", ""))
    text = output.read_text()
    assert text.endswith("\n")
    if kind == "jsonl":
        names = [json.loads(line)["file"] for line in text.splitlines()]
    else:
        rows = list(csv.reader(text.splitlines()))
        assert {len(row) for row in rows} == {7}
        names = [row[0] for row in rows[1:]]
    assert 300 <= len(names) == done < 1990
    assert names == sorted(f"./{number}.png" for number in range(2000) if (files / f"{number}.png").exists())[:done]


def test_a_hundred_thousand_files_need_no_more_memory_than_a_few(peer, files):
    code = (
        "import pathlib, re, sys\n"
        "from cnnserve_client.commands import cli\n"
        "status = cli.classify(sys.argv[1:])\n"
        # Not ru_maxrss: a child inherits it from its parent.
        "peak = re.search(r'VmHWM:\\s+(\\d+)', pathlib.Path('/proc/self/status').read_text())[1]\n"
        "print(status, peak, file=sys.stderr)\n"
    )
    version = pb.ModelVersion(version="1", state=pb.MODEL_STATE_READY, max_batch_size=64)
    model = pb.Model(name="digits", versions=[version])
    peer.scripts["GetModel"] = lambda request, context: pb.GetModelResponse(model=model, max_message_bytes=2**26)
    peaks = []
    for count in (1000, 100_000):
        (files / "list").write_text("0.png\n" * count)
        argv = ["--files-from", "list", "--output", "out.csv", "--address", peer.address]
        done = subprocess.run(
            [sys.executable, "-c", code, *argv], capture_output=True, text=True, timeout=HANG_S, check=True
        )
        status, peak = done.stderr.split()
        assert status == "0"
        assert (files / "out.csv").read_text().count("\n") == count + 1
        peaks.append(int(peak))
        peer.asked.clear()
    assert peaks[1] - peaks[0] < 10_000


def test_a_reader_that_goes_away_is_no_traceback(peer):
    reading, writing = os.pipe()
    os.close(reading)
    process = started("models", "--address", peer.address, stdout=writing)
    os.close(writing)
    _, err = process.communicate(timeout=HANG_S)
    assert (process.returncode, err) == (141, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_one_line(peer):
    with Path("/dev/full").open("w") as full:
        process = started("models", "--address", peer.address, stdout=full)
        _, err = process.communicate(timeout=HANG_S)
    assert (process.returncode, err) == (1, b"error: cannot write to standard output: No space left on device\n")


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
    out, err = process.communicate(timeout=HANG_S)
    assert (process.returncode, err) == (0, b"")
    assert b"Gr\\xf6\\xdfe.png" in out


def test_help_is_quick_to_load():
    code = (
        "import contextlib, sys\n"
        "import cnnserve_client.commands.cli as cli\n"
        "with contextlib.suppress(SystemExit): cli.classify(['--help'])\n"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=HANG_S)
    text, _, loaded = done.stdout.strip().rpartition("\n")
    assert "usage: cnnserve classify" in text
    assert "IMAGE" in text
    assert not {"onnxruntime", "torch", "PIL", "grpc", "google", "numpy"} & set(loaded.split())


def test_a_whole_run_loads_nothing_heavy(peer, files):
    code = (
        "import sys\n"
        "from cnnserve_client.commands import cli\n"
        "cli.classify(sys.argv[1:])\n"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    argv = [sys.executable, "-c", code, "0.png", "--address", peer.address]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=HANG_S)
    assert "75.00%" in done.stdout
    assert not {"onnxruntime", "torch", "PIL", "numpy"} & set(done.stdout.rpartition("LABEL")[2].split())
