"""`make pictures`: the plot of `cnnserve bench` and the report of `cnnserve evaluate`, made by these commands.

The digits are those of docs/evaluate.md, which makes them with its first Python block.
"""

import re
import shutil
import sys
import tempfile
from pathlib import Path

import make
from PIL import Image
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parents[2]
TARGETS = Path(__file__).parent
MODELS = ROOT / "model_repo"
BENCH = f"cnnserve bench lenet5 --repository {MODELS} --seconds 3 --concurrency 1,2,4,8,16,32 --rate 25%,50%,75%,90%"
EVALUATE = f"cnnserve evaluate lenet5 digits --local {MODELS} --report report.html"
SIZE = {"width": 1100, "height": 760}


def main() -> int:
    """Writes the pictures."""
    chromium = shutil.which("chromium")
    if chromium is None:
        print("needs chromium: apt-get install chromium", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="cnnserve-tools-") as name:
        folder = Path(name)
        print(make.run(f"{BENCH} --plot {TARGETS / 'bench.svg'}", folder))
        page = (ROOT / "docs" / "evaluate.md").read_text()
        block = re.search(r"```python\n(.*?)```", page, re.DOTALL)
        assert block is not None
        (folder / "digits.py").write_text(block[1])
        make.run(f"{sys.executable} digits.py", folder)
        make.run(EVALUATE, folder)
        photograph(chromium, folder / "report.html", TARGETS / "evaluate.png")
    return 0


def photograph(chromium: str, report: Path, target: Path) -> None:
    """Writes what a browser shows of a report."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport=SIZE)
        page.goto(report.as_uri())
        # The diagrams are below the table.
        page.evaluate("document.querySelector('h2').scrollIntoView()")
        page.screenshot(path=target)
        browser.close()
    with Image.open(target) as picture:
        picture.convert("RGB").save(target, optimize=True)


if __name__ == "__main__":
    sys.exit(main())
