"""What can be said of blocks that are not run: those with a note, and those that install."""

import re
import subprocess
import tomllib

from blocks import ROOT, Block, PageError, commands

# The environment of the tests is what these lines make; `check_install` compares them with pyproject.toml.
INSTALL = re.compile(r"(?:python3? -m venv|\. \S*/bin/activate|(?:python3? -m )?pip install|git clone|cd cnnserve$)")
_EXTRAS = re.compile(r"\.\[([\w,]+)\]")
_CONSTRAINTS = "constraints.txt"


def check_syntax(block: Block) -> None:
    """Of what is not run: that it could be."""
    if block.language == "python":
        try:
            compile(block.text, block.place, "exec")
        except SyntaxError as error:
            raise PageError(str(error)) from error
    elif block.language in ("sh", "console"):
        script = "\n".join(c.text for c in commands(block)) if block.language == "console" else block.text
        checked = subprocess.run(["bash", "-n", "-c", script], stderr=subprocess.PIPE, text=True, check=False)
        if checked.returncode:
            raise PageError(checked.stderr)


def check_install(line: str) -> None:
    """Raises `PageError` if the line names an unknown extra, or installs without the tested versions."""
    if "pip install" not in line:
        return
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    if _CONSTRAINTS not in line:
        raise PageError(f"{line}: without -c {_CONSTRAINTS} it installs versions that nobody tested")
    for extras in _EXTRAS.findall(line):
        if unknown := set(extras.split(",")) - project["optional-dependencies"].keys():
            raise PageError(f"{line}: there is no extra {', '.join(sorted(unknown))}")
