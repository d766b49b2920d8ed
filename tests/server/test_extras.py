"""What cnnserve advises if an optional package is missing, with pip and in the project's images."""

import pytest

from cnnserve import cli, extras
from cnnserve.runtime import diagnosis


def test_with_pip_the_extra_is_named() -> None:
    assert extras.install("cpu,export") == 'pip install "cnnserve[cpu,export]"'


@pytest.mark.parametrize(
    ("here", "extra", "other"),
    [("cpu", "gpu", "gpu"), ("cpu", "cpu,export", "export"), ("gpu", "cpu,import", "export"), ("export", "gpu", "gpu")],
)
def test_in_an_image_the_image_that_has_it_is_named(
    monkeypatch: pytest.MonkeyPatch, here: str, extra: str, other: str
) -> None:
    monkeypatch.setenv(extras.IMAGE, here)
    assert extras.install(extra) == f"use the image {other} (deploy/docker/build.sh {other}) instead of {here}"


def test_what_no_image_has_is_an_argument_of_its_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(extras.IMAGE, "cpu")
    assert (
        extras.install("opencv") == "build the image with it: deploy/docker/build.sh cpu TAG --build-arg EXTRAS=opencv"
    )


def test_cuda_in_the_image_for_the_cpu_is_no_matter_of_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "pip uninstall" in diagnosis.not_built_in("X", ["onnxruntime"])
    monkeypatch.setenv(extras.IMAGE, "cpu")
    told = diagnosis.not_built_in("X", ["onnxruntime"])
    assert told == ("the installed onnxruntime has no X; use the image gpu (deploy/docker/build.sh gpu) instead of cpu")


def test_the_arguments_of_an_image_are_those_of_serve(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--grpc-port", "99999", "--repository", "."]
    assert cli.main(arguments) == 2
    assert "unknown command '--grpc-port'" in capsys.readouterr().err
    monkeypatch.setenv(extras.IMAGE, "cpu")
    assert cli.main(arguments) == 2
    assert "grpc_port is 99999, expected 0 to 65535" in capsys.readouterr().err
