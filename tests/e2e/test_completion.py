"""Completion of the `cnnserve` command, requested as argcomplete's code in a shell requests it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cnnserve.cli import _COMMANDS, main
from cnnserve_client.commands.completion import _PARSERS
from support import HANG_S

NAMES = list(_COMMANDS)
BASH = shutil.which("bash")
# What bash does when Tab is pressed after `cnnserve ...`: it sets these variables and calls the function.
PRESS_TAB = """
eval "$(cnnserve completion bash)"
COMP_LINE=$1 COMP_POINT=${#1} COMP_TYPE=9
_python_argcomplete cnnserve
printf '%s\\n' "${COMPREPLY[@]}"
"""


def in_bash(line: str, folder: Path) -> list[str]:
    """What bash offers to complete `line`."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        [BASH, "--norc", "-c", PRESS_TAB, "bash", line],
        env={**os.environ, "PATH": path},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=True,
    )
    assert done.stderr == ""
    return [word.rstrip() for word in done.stdout.splitlines() if word]


@pytest.mark.skipif(BASH is None, reason="needs bash")
@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("cnnserve ", ["-h", "--help", "-V", "--version", *NAMES]),
        ("cnnserve mo", ["models"]),
        ("cnnserve srve --", ["--help", "--version"]),
        ("cnnserve serve --strict", ["--strict-readiness"]),
        ("cnnserve doctor --no-l", ["--no-load"]),
        ("cnnserve export --precision ", ["fp32", "fp16", "int8"]),
        ("cnnserve import --interp", ["--interpolation"]),
        ("cnnserve train-lenet --se", ["--seed"]),
        ("cnnserve show --js", ["--json"]),
        ("cnnserve classify --files", ["--files-from"]),
        ("cnnserve classify --json --model m --top", ["--top-k"]),
        ("cnnserve classify cat", ["cat.jpg"]),
        ("cnnserve models --root", ["--root-certificates"]),
        ("cnnserve labels m --ver", ["--version"]),
        ("cnnserve bench --conc", ["--concurrency"]),
        ("cnnserve load --time", ["--timeout-s"]),
        ("cnnserve unload --time", ["--timeout-s"]),
        ("cnnserve health --mod", ["--model"]),
        ("cnnserve completion z", ["zsh"]),
    ],
)
def test_bash_completes_commands_flags_and_files(line: str, offered: list[str], tmp_path: Path) -> None:
    (tmp_path / "cat.jpg").touch()
    assert in_bash(line, tmp_path) == offered


def test_every_command_is_completed() -> None:
    assert list(_PARSERS) == NAMES


def completed(line: str, output: Path) -> tuple[str, set[str]]:
    """The completions of a line that begins with python -m cnnserve, and the modules that Python imported for them."""
    variables = {"_ARGCOMPLETE": "3", "_ARGCOMPLETE_STDOUT_FILENAME": str(output), "_ARGCOMPLETE_IFS": " "}
    variables |= {"COMP_LINE": line, "COMP_POINT": str(len(line))}
    done = subprocess.run(
        [sys.executable, "-v", "-m", "cnnserve"],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=True,
    )
    assert done.stdout == ""
    return output.read_text(), set(re.findall(r"^import '([\w.]+)'", done.stderr, re.MULTILINE))


@pytest.mark.parametrize(
    ("line", "offered", "imported"),
    [
        ("python -m cnnserve lab", "labels", set()),
        ("python -m cnnserve labels --j", "--json", {"cnnserve_client.commands.cli"}),
        ("python -m cnnserve serve --grpc-p", "--grpc-port", {"cnnserve.config.settings"}),
        ("python -m cnnserve export --lab", "--labels", {"cnnserve_export.flags"}),
    ],
)
def test_only_the_module_of_the_completed_command_is_imported(
    line: str, offered: str, imported: set[str], tmp_path: Path
) -> None:
    words, modules = completed(line, tmp_path / "words")
    assert words.strip() == offered
    parsers = {
        "cnnserve_client.commands.cli",
        "cnnserve.config.settings",
        "cnnserve_export.flags",
        "cnnserve.repository.show",
    }
    assert modules & parsers == imported
    assert "argcomplete" in modules
    assert not modules & {"grpc", "numpy", "onnxruntime", "torch"}


@pytest.mark.parametrize(
    ("shell", "registration"),
    [
        ("bash", "complete -o nospace -o default -o bashdefault -F _python_argcomplete cnnserve"),
        ("zsh", "compdef _python_argcomplete cnnserve"),
        ("fish", "complete --command cnnserve"),
    ],
)
def test_each_shell_gets_its_code(shell: str, registration: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    assert registration in capsys.readouterr().out


def test_global_completion_finds_its_marker() -> None:
    for module in ("cnnserve.cli", "cnnserve"):  # of the installed script, and of python -m cnnserve
        command = [sys.executable, "-m", "argcomplete._check_module", module]
        subprocess.run(command, capture_output=True, timeout=HANG_S, check=True)


def test_without_argcomplete_the_extra_is_named() -> None:
    code = (
        "import sys; sys.modules['argcomplete'] = None\n"
        "from cnnserve.cli import main\n"
        "sys.exit(main(['completion', 'bash']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=HANG_S, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert 'pip install "cnnserve[completion]"' in done.stderr


def test_commands_that_nobody_completes_do_not_import_argcomplete() -> None:
    code = "import sys; from cnnserve.cli import main; main(['--help']); print('argcomplete' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=HANG_S, check=True)
    assert done.stdout.splitlines()[-1] == "False"
