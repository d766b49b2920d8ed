"""The commands that the docstrings of `examples/` tell their readers to run."""

import ast
import textwrap
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"


def commands(name: str) -> list[str]:
    """Returns the shell commands in the docstring of an example, in order."""
    text = ast.get_docstring(ast.parse((EXAMPLES / f"{name}.py").read_text())) or ""
    blocks = [textwrap.dedent(block) for block in text.split("\n\n") if block.startswith("    ")]
    return [command for block in blocks for command in block.replace("\\\n", " ").splitlines()]
