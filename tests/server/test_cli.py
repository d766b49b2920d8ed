"""The subcommands of `cnnserve`, as far as all of them do the same."""

import pytest

from cnnserve.cli import _COMMANDS, main


@pytest.mark.parametrize("name", _COMMANDS)
def test_every_command_tells_a_mistyped_flag_in_one_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--hlep"])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    # Some say first which argument is missing.
    assert line.startswith((f"cnnserve {name}: error: ", f"cnnserve {name} new: error: "))
    assert line.endswith(f"(see cnnserve {name} --help)")
