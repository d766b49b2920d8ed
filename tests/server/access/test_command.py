"""`cnnserve token new`."""

import re
from pathlib import Path

import pytest

from cnnserve.access.command import main
from cnnserve.access.lists import read_tokens
from cnnserve.access.scopes import Scope


def test_a_new_token_opens_what_its_line_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokens = []
    for name in ("web", "app"):
        assert main(["new", name, "--scope", "read,infer", "--scope", "infer"]) == 0
        said = re.fullmatch(r"token, shown only now: (\S+)\nline for --tokens-file: (.*)\n", capsys.readouterr().out)
        assert said
        # 256 bits are 43 characters of base64.
        assert re.fullmatch(r"cnnserve_[A-Za-z0-9_-]{43}", said[1])
        assert said[1] not in said[2]
        tokens.append(said[1])
        with (tmp_path / "tokens").open("a") as file:
            file.write(said[2] + "\n")
    assert len(set(tokens)) == 2
    found = read_tokens(tmp_path / "tokens").client(tokens[1])
    assert found is not None
    assert (found.name, found.scopes) == ("token app", {Scope.READ, Scope.INFER})


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["new", "a b", "--scope", "read"], "'a b' is not 1 to 64 letters"),
        (["new", "web", "--scope", "all"], "unknown scope 'all'; the scopes are infer, read, metrics, admin"),
        (["new", "web"], "required: --scope"),
        (["old", "web", "--scope", "read"], "invalid choice: 'old'"),
    ],
)
def test_bad_arguments_are_told(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert said in capsys.readouterr().err
