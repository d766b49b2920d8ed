"""The programs in examples/: the table of its README, then the docstring and the source of each."""

import ast
import re
from pathlib import Path

_FOLDER = Path(__file__).resolve().parents[2] / "examples"
_LINK = re.compile(r"\]\((\w+)\.py\)")


def page() -> str:
    """The page."""
    head = (_FOLDER / "README.md").read_text(encoding="utf-8")
    programs = [_FOLDER / f"{name}.py" for name in _LINK.findall(head)]
    return _LINK.sub(r"](#\1py)", head) + "".join(map(_section, programs))


def _section(path: Path) -> str:
    source = path.read_text(encoding="utf-8")
    module = ast.parse(source)
    about = ast.get_docstring(module)
    code = "\n".join(source.splitlines()[module.body[0].end_lineno :]).strip()
    return f'\n## {path.name}\n\n{about}\n\n```python title="examples/{path.name}"\n{code}\n```\n'
