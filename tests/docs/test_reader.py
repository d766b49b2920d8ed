"""That a page which does not do what it says is told so, with the place."""

import subprocess
import sys
from pathlib import Path

import pytest

import reader


def _read(folder: Path, text: str) -> tuple[int, str]:
    page = folder / "page.md"
    page.write_text(text)
    home, memory = folder / "home", folder / "memory"
    home.mkdir()
    memory.mkdir()
    command = [sys.executable, reader.__file__, str(page), str(home), str(memory)]
    finished = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return finished.returncode, finished.stdout


GOOD = """
```sh
python3 -m venv .venv
pip install -c constraints.txt '.[cpu]'
cd model_repo
ls
```

```text title="Output"
lenet5
```

```text title="notes/a.txt"
one
two
```

```console
$ cat notes/a.txt
one
...
$ false
$ echo $?
1
```

```python
from pathlib import Path

print(Path("notes/a.txt").read_text(), end="")
```

```text title="Output"
one
two
```

*Not run by our tests: it would end the machine.*

```sh
shutdown now
```
"""


def test_a_page_that_is_right(tmp_path: Path) -> None:
    code, said = _read(tmp_path, GOOD)
    assert code == 0, said


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("```sh\nfalse\n```\n", "page.md:1: exit code 1 of: false"),
        ("\n```sh\nexit 3\ntrue\n```\n", "page.md:2: exit code 3"),
        ("```console\n$ false\n```\n", "exit code 1 of: false"),
        ("```console\n$ echo 1\n2\n```\n", "-2\n+1"),
        ("```console\n$ true\n$ echo $?\n1\n```\n", "-1\n+0"),
        ("```python\nraise SystemExit(2)\n```\n", "exit code 2"),
        ('```python\nprint(1)\n```\n\n```text title="Output"\n2\n```\n', "-2\n+1"),
        ("```sh\npip install '.[cpu]'\n```\n", "without -c constraints.txt"),
        ("```sh\npip install -c constraints.txt '.[cpus]'\n```\n", "no extra cpus"),
        ("```sh\ncnnserve serve --model-repository nowhere\n```\n", "exit code 2 of: cnnserve serve"),
        ("*Not run by our tests: a reason.*\n\n```sh\nif\n```\n", "syntax error"),
    ],
)
def test_a_page_that_is_wrong(text: str, expected: str, tmp_path: Path) -> None:
    code, said = _read(tmp_path, text)
    assert code == 1
    assert expected in said
