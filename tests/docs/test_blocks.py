"""The rules for blocks."""

from pathlib import Path

import pytest

from blocks import Command, PageError, commands, read


def _page(folder: Path, text: str) -> Path:
    page = folder / "page.md"
    page.write_text(text)
    return page


def test_blocks_come_in_order_with_their_places(tmp_path: Path) -> None:
    text = 'One\n\n```sh\ntrue\n```\n\n- two\n\n    ```python title="a/b.py"\n    if 1:\n        print(2)\n    ```\n'
    first, second = read(_page(tmp_path, text))
    assert (first.language, first.lines, first.is_file, first.not_run) == ("sh", ("true",), False, "")
    assert (second.title, second.text, second.is_file) == ("a/b.py", "if 1:\n    print(2)\n", True)
    assert second.place.endswith("page.md:9")


def test_marks(tmp_path: Path) -> None:
    text = "*Not run by our tests: needs a GPU.*\n\n<!-- numbers vary -->\n```sh\nnvidia-smi\n```\n"
    (block,) = read(_page(tmp_path, text))
    assert block.not_run == "needs a GPU"
    assert block.varies


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("```\nls\n```\n", "says none"),
        ("```sh skip\nls\n```\n", "says none"),
        ("```\n", "no end"),
        ("<!-- skip -->\n```sh\nls\n```\n", "readers do not see it"),
        ("<!-- Not run by our tests: needs a GPU. -->\n\n```sh\nls\n```\n", "readers do not see it"),
        ("```text\nsome layout\n```\n", "text is not run"),
        ("```rust\nfn main() {}\n```\n", "rust is not run"),
        ('```sh title="run.sh"\nls\n```\n', "sh is not saved"),
        ('```text title="Output"\n1\n```\n', "follow the block that prints it"),
        ('```python title="a.py"\n1\n```\n\n```text title="Output"\n1\n```\n', "follow the block that prints it"),
        ('```json title="Output"\n1\n```\n', "an output is text"),
        ('*Not run by our tests: x.*\n\n```text title="Output"\n1\n```\n', "what was not run has no output"),
    ],
)
def test_what_is_refused(text: str, expected: str, tmp_path: Path) -> None:
    with pytest.raises(PageError, match=r"page\.md:\d+: ") as refused:
        read(_page(tmp_path, text))
    assert expected in str(refused.value)


def test_commands_of_a_console_block(tmp_path: Path) -> None:
    (block,) = read(_page(tmp_path, "```console\n$ one \\\n    --flag\nout\n\n$ two\n```\n"))
    assert commands(block) == [Command("one \\\n    --flag", ["out", ""]), Command("two", [])]


def test_a_console_block_without_a_command(tmp_path: Path) -> None:
    (block,) = read(_page(tmp_path, "```console\nout\n```\n"))
    with pytest.raises(PageError, match="begins with a command"):
        commands(block)
