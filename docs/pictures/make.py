"""`make pictures`: runs the commands of README in a scratch folder and draws what they print, as SVG.

The ports 8000 and 8001 have to be free. Nothing in the picture comes from another host: GitHub and the documentation
show it as it is.
"""

import base64
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image, ImageOps
from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parents[2]
TARGET = Path(__file__).with_name("classify.svg")
PHOTOGRAPHS = "examples/photographs"
WIDTH = 100
# Space for a row of photographs below the terminal, in the drawing's units, and their pixels.
STRIP, MARGIN = 300, 20
PIXELS = (500, 300)
START_S = 60.0

EXPORT = r"""cnnserve export examples.efficientnet_lite0:efficientnet_lite0 --labels imagenet \
    --shape 3,224,224 --resize 256 --crop 224 --interpolation bicubic \
    --mean 0.498039,0.498039,0.498039 --std 0.501961,0.501961,0.501961 \
    --repository models"""
SERVE = "cnnserve serve --repository models"
CLASSIFY = f"cnnserve classify {PHOTOGRAPHS} --top-k 2"

SVG = """<svg viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace;
  font-size: {char_height}px; line-height: {line_height}px; }}
.{unique_id}-label {{ font-family: ui-sans-serif, "DejaVu Sans", Arial, sans-serif; font-size: 24px; fill: #ffffff; }}
{styles}
</style>
<defs>{lines}</defs>
BACKGROUND
{chrome}
<g transform="translate({terminal_x}, {terminal_y})">{backgrounds}<g class="{unique_id}-matrix">{matrix}</g></g>
PHOTOGRAPHS
</svg>
"""


def main() -> int:
    """Writes the picture."""
    console = Console(record=True, width=WIDTH, file=open(os.devnull, "w"), force_terminal=True)  # noqa: SIM115, PTH123
    with tempfile.TemporaryDirectory(prefix="cnnserve-pictures-") as name:
        folder = Path(name)
        shutil.copytree(ROOT / "examples", folder / "examples")
        show(console, EXPORT, run(EXPORT, folder))
        server = subprocess.Popen(SERVE.split(), cwd=folder, stderr=subprocess.PIPE, text=True, env=environment())
        try:
            show(console, f"{SERVE} &", wait_until_ready(server))
            table = run(CLASSIFY, folder)
            show(console, CLASSIFY, table)
            found = [json.loads(line) for line in run(f"{CLASSIFY} --json", folder).splitlines()]
        finally:
            server.send_signal(signal.SIGINT)
            server.communicate(timeout=START_S)
    TARGET.write_text(draw(console, found), encoding="utf-8")
    print(TARGET.relative_to(ROOT), f"{TARGET.stat().st_size:,} bytes")
    return 0


def environment() -> dict[str, str]:
    """Ours, with this Python's commands first."""
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "COLUMNS": str(WIDTH),
    }


def run(command: str, folder: Path) -> str:
    """What a command prints."""
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{command}\n{done.stdout}")
    return done.stdout


def wait_until_ready(server: subprocess.Popen[str]) -> str:
    """The server's log until it serves."""
    lines, end = [], time.monotonic() + START_S
    for line in server.stderr or ():
        lines.append(line)
        if "ready; models" in line or time.monotonic() > end:
            break
    return "".join(lines)


def show(console: Console, command: str, output: str) -> None:
    """Prints a prompt, the command, and its output cut to the width."""
    console.print(Text.assemble(("$ ", "bold green"), (command, "bold")), soft_wrap=True)
    for line in output.splitlines():
        # A log line's date says nothing here.
        text = Text(re.sub(r"^\d{4}-\d\d-\d\d (\d\d:\d\d:\d\d),\d+ ", r"\1 ", line))
        text.truncate(WIDTH, overflow="ellipsis")
        console.print(text, highlight=False)


def draw(console: Console, found: list[dict[str, object]]) -> str:
    """The terminal, and below it the photographs with what the server said of them."""
    svg = console.export_svg(title="cnnserve", code_format=SVG, unique_id="t")
    size = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    chrome = re.search(r'<rect fill="(#\w+)" stroke', svg)
    if size is None or chrome is None:
        sys.exit("rich draws terminals in another way than it did; adapt docs/pictures/make.py")
    width, height = float(size[1]), float(size[2])
    step = (width - MARGIN) / len(found)
    strip = "".join(photograph(result, MARGIN + n * step, height + 4, step - MARGIN) for n, result in enumerate(found))
    background = f'<rect fill="{chrome[1]}" width="{width:g}" height="{height + STRIP:g}" rx="8"/>'
    svg = svg.replace(size[0], f'viewBox="0 0 {width:g} {height + STRIP:g}"')
    svg = svg.replace("BACKGROUND", background).replace("PHOTOGRAPHS", strip)
    return "".join(f"{line.rstrip()}\n" for line in svg.splitlines() if line.strip())


def photograph(result: dict[str, object], x: float, y: float, width: float) -> str:
    """One photograph and its most probable class."""
    best = result["classes"][0]  # type: ignore[index]
    picture = io.BytesIO()
    with Image.open(ROOT / str(result["file"])) as image:
        ImageOps.fit(image, PIXELS).save(picture, "JPEG", quality=75, optimize=True)
    data = base64.b64encode(picture.getvalue()).decode()
    height = width * PIXELS[1] / PIXELS[0]
    return (
        f'<image x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" '
        f'href="data:image/jpeg;base64,{data}"/>'
        f'<text class="t-label" x="{x:.1f}" y="{y + height + 34:.1f}">'
        f"{best['label']}, {best['probability']:.0%}</text>"
    )


if __name__ == "__main__":
    sys.exit(main())
