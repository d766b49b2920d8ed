"""`cnnserve pack` and `cnnserve pull` as commands: output, exit status, what they import."""

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from certificates import Authority
from cnnserve.cli import main
from pulls import names, same
from signing import new_key, public_key
from support import HANG_S, REPOSITORY
from web_servers import Answer, Request, Site

VERSION = REPOSITORY / "lenet5" / "1"


def test_a_version_goes_from_one_repository_to_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["pack", str(VERSION), "--output", "lenet5.tar"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("lenet5.tar: lenet5 version 1, 16 files, 289211 bytes, sha256:")
    assert main(["pull", "lenet5.tar", "--repository", "models"]) == 0
    assert capsys.readouterr() == ("models/lenet5/1\n", "")
    same(REPOSITORY, tmp_path / "models")
    assert main(["pull", "lenet5.tar", "--repository", "models"]) == 0
    assert capsys.readouterr() == ("models/lenet5/1\n", "models/lenet5/1 is there already, with the same content\n")


@pytest.mark.parametrize("source", [VERSION, REPOSITORY, "lenet5.tar"])
def test_a_pull_leaves_no_descriptor(source: Path | str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["pack", str(VERSION), "--output", "lenet5.tar"]) == 0
    assert main(["pull", str(source), "--repository", "models"]) == 0
    left = [path.readlink() for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    assert not [path for path in left if path.is_relative_to(tmp_path) or path.is_relative_to(REPOSITORY)]


def test_errors_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    repository = ["--repository", str(tmp_path / "models")]
    assert main(["pull", str(tmp_path / "none\x1b[31m.tar"), *repository]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert "\x1b" not in error
    assert main(["pull", str(VERSION), *repository, "--trusted-keys", str(tmp_path / "keys")]) == 1
    assert "the trusted keys in" in capsys.readouterr().err
    assert main(["pack", str(REPOSITORY), "--output", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.startswith("error: ")
    assert names(tmp_path) == []


@pytest.mark.parametrize("size", ["0", "-1", "nan", "many", "1e9"])
def test_a_size_that_is_none(size: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["pull", str(VERSION), "--repository", str(tmp_path), "--max-size", size])
    assert f"'{size}' is no size in GiB" in capsys.readouterr().err


def test_a_limit_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pull", str(VERSION), "--repository", str(tmp_path), "--max-size", "0.0001"]) == 1
    assert "more than 107374 bytes, the limit" in capsys.readouterr().err


def test_a_key_that_has_not_signed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = public_key(new_key(tmp_path / "mine.key"))
    repository = tmp_path / "models"
    assert main(["pull", str(REPOSITORY), "--repository", str(repository), "--trusted-keys", str(key)]) == 1
    assert "has no model.sig, which --trusted-keys demands" in capsys.readouterr().err
    assert not repository.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_pull_that_is_stopped_leaves_nothing(
    number: signal.Signals, authority: Authority, trusted: Path, tmp_path: Path
) -> None:
    asked, ended = threading.Event(), threading.Event()

    def slow(_: Request) -> Answer:
        asked.set()
        ended.wait(HANG_S)
        return Answer(404)

    site = Site(authority, slow)
    repository = tmp_path / "models"
    # A shell without job control starts its background processes, and so their children, with SIGINT ignored.
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import sys; from cnnserve.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "pull", f"{site.url}/pack.tar", "--repository", str(repository)]
    try:
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            assert asked.wait(HANG_S)
            assert len(names(repository)) == 1
            process.send_signal(number)
            assert process.stderr is not None
            assert process.stderr.read() == "interrupted; nothing was published\n"
            assert process.wait(HANG_S) == 130
    finally:
        ended.set()
        site.close()
    assert not repository.exists()


def test_a_pull_imports_neither_the_client_nor_a_runtime(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom cnnserve.cli import main\n"
        f"assert main(['pull', {str(VERSION)!r}, '--repository', {str(tmp_path / 'models')!r}]) == 0\n"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=HANG_S, check=True)
    heavy = {"cnnserve_client", "cnnserve_export", "torch", "onnxruntime", "grpc", "google", "PIL", "fsspec"}
    assert not heavy & set(done.stdout.split())


@pytest.mark.parametrize("scheme", ["s3", "gs", "az", "hf"])
def test_a_missing_extra_is_named(scheme: str, tmp_path: Path) -> None:
    code = (
        "import sys\nsys.modules['fsspec'] = None\nfrom cnnserve.cli import main\n"
        f"sys.exit(main(['pull', '{scheme}://bucket/models', '--repository', {str(tmp_path / 'models')!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=HANG_S, check=False)
    assert done.returncode == 1
    assert done.stderr == (f'error: {scheme}:// needs fsspec, which is not installed: pip install "cnnserve[remote]"\n')


def test_a_repository_that_nobody_may_write(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "models").write_text("x")
    assert main(["pull", str(VERSION), "--repository", str(tmp_path / "models")]) == 1
    assert "cannot be written: " in capsys.readouterr().err
