"""`cnnserve health --here` against real servers: it asks where the server really listens."""

from pathlib import Path

import pytest

from cnnserve_client.commands import cli, nearby
from cnnserve_client.errors import InvalidInputError, UnavailableError
from support import REPOSITORY, serving


def urls(process: int) -> list[str]:
    return nearby._urls(Path("/proc", str(process)))


@pytest.mark.parametrize(
    ("flags", "scheme"),
    [((), "http"), (("--host", "0.0.0.0"), "http"), (("--health-grpc-port", "0"), "grpc")],
)
def test_it_finds_the_port_that_the_system_chose(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: tuple[str, ...],
    scheme: str,
) -> None:
    with serving(tmp_path / "log", REPOSITORY, *flags) as server:
        (url,) = urls(server.process.pid)
        assert url.startswith(f"{scheme}://127.0.0.1:")
        if flags == ():
            port = server.wait_for(r"HTTP port (\d+)")[1]
            assert url.endswith(f":{port}")
        # Other tests may run servers on this machine.
        monkeypatch.setattr(nearby, "server_url", lambda: url)
        assert cli.health(["--here"]) == 0
        assert capsys.readouterr().out == "SERVING\n"
    assert urls(server.process.pid) == []
    assert cli.health(["--here", "--timeout-s", "1"]) == 1


def processes(folder: Path, *texts: str) -> Path:
    """A /proc in which each process has one open file in memory with a text."""
    for number, text in enumerate(texts, 1):
        (folder / str(number) / "fd").mkdir(parents=True)
        (folder / str(number) / "fd" / "3").symlink_to(f"/memfd:other-{text} (deleted)")
    return folder


def test_without_a_server_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="no server of this user listens here"):
        nearby.server_url(processes(tmp_path, "a", "b"))


def test_two_servers_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearby, "_urls", lambda process: [f"http://127.0.0.1:{process.name}"])
    with pytest.raises(
        InvalidInputError, match=r"http://127\.0\.0\.1:1, http://127\.0\.0\.1:2; choose one with --address"
    ):
        nearby.server_url(processes(tmp_path, "a", "b"))


def test_the_port_of_another_protocol_does_not_count_as_ready(tmp_path: Path) -> None:
    with serving(tmp_path / "log", REPOSITORY) as server, pytest.raises(UnavailableError, match="does not answer"):
        nearby.is_ready(f"http://{server.address}", 5)


def test_here_is_the_whole_server(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.health(["--here", "--model", "lenet5"])
    assert left.value.code == 2
    assert "not allowed with argument" in capsys.readouterr().err
