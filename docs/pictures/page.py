"""`make pictures`: photographs the page of a real server in headless Chromium (Debian's package), light and dark.

The server has the repository's LeNet-5, the network of README, and a model that cannot be loaded. While "Live" is
photographed, clients send the sample images.
"""

import argparse
import contextlib
import shutil
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import make
from PIL import Image
from playwright.sync_api import sync_playwright

from cnnserve.tools.bench.serving import serving

ROOT = Path(__file__).resolve().parents[2]
TARGETS = Path(__file__).parent
SAMPLES = ROOT / "server" / "cnnserve" / "transports" / "http" / "page" / "web" / "samples"
DESKTOP = {"viewport": {"width": 1200, "height": 760}}
PHONE = {"viewport": {"width": 390, "height": 780}, "device_scale_factor": 2, "is_mobile": True, "has_touch": True}
LOAD_S = 40


def main() -> int:
    """Writes the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, help="a model repository with efficientnet_lite0 (default: export it)")
    chromium = shutil.which("chromium")
    if chromium is None:
        print("needs chromium: apt-get install chromium", file=sys.stderr)
        return 1
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cnnserve-page-")))
        models = repository(folder, parser.parse_args().models)
        base = f"http://{stack.enter_context(serving(models, '')).http}"
        playwright = stack.enter_context(sync_playwright())
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for scheme in ("light", "dark"):
            try_it(browser, base, scheme)
        why(browser, base)
        models_view(browser, base)
        live(browser, base)
        browser.close()
    return 0


def repository(folder: Path, given: Path | None) -> Path:
    """Returns a model repository for the pictures, in `folder`."""
    root = folder / "models"
    if given is None:
        shutil.copytree(ROOT / "examples", folder / "examples")
        make.run(make.EXPORT, folder)
    else:
        shutil.copytree(given / "efficientnet_lite0", root / "efficientnet_lite0")
    shutil.copytree(ROOT / "model_repo" / "lenet5", root / "lenet5")
    (root / "half_copied" / "1").mkdir(parents=True)
    data = (root / "lenet5" / "1" / "model.onnx").read_bytes()
    (root / "half_copied" / "1" / "model.onnx").write_bytes(data[: len(data) // 2])
    return root


def opened(browser: Any, base: str, view: str, scheme: str, shape: dict[str, Any] = DESKTOP) -> Any:
    """Opens a view in a new window."""
    page = browser.new_context(color_scheme=scheme, **shape).new_page()
    page.goto(f"{base}/#{view}")
    return page


def keep(page: Any, name: str) -> None:
    """Writes what a window shows."""
    path = TARGETS / f"page-{name}.png"
    page.screenshot(path=path)
    with Image.open(path) as picture:
        picture.convert("RGB").save(path, optimize=True)
    print(path)


def try_it(browser: Any, base: str, scheme: str) -> None:
    """Two samples, one of them as the network sees it."""
    page = opened(browser, base, "try", scheme)
    for name in ("Cat", "Coffee"):
        page.get_by_role("button", name=name, exact=True).click()
        page.locator(".bars").nth(0 if name == "Cat" else 1).wait_for()
    page.mouse.click(2, 400)
    keep(page, f"try-{scheme}")


def why(browser: Any, base: str) -> None:
    """What makes a cup of coffee one."""
    page = opened(browser, base, "why", "light")
    page.locator("section[data-view=why]").get_by_role("button", name="Coffee", exact=True).click()
    page.wait_for_selector(".told strong")
    keep(page, "why")


def models_view(browser: Any, base: str) -> None:
    """One verified version, on a screen and on a phone."""
    for name, shape in (("models", DESKTOP), ("phone", PHONE)):
        page = opened(browser, base, "models/lenet5", "light", shape)
        page.wait_for_selector("ol.labels li")
        page.wait_for_selector(".golden figure:nth-child(10) img")
        keep(page, name)


def live(browser: Any, base: str) -> None:
    """The measurements, with some load."""
    page = opened(browser, base, "live", "dark")
    end = time.monotonic() + LOAD_S
    clients = [threading.Thread(target=load, args=(base, end, number)) for number in range(3)]
    for client in clients:
        client.start()
    # A browser waits for events only while it is asked something.
    page.wait_for_timeout((LOAD_S - 1) * 1000)
    keep(page, "live")
    for client in clients:
        client.join()


def load(base: str, end: float, number: int) -> None:
    """Sends sample images until `end`, each client after a while of its own."""
    model, sample = ("efficientnet_lite0", "cat.jpg") if number else ("lenet5", "digit-5.png")
    body = (SAMPLES / sample).read_bytes()
    time.sleep(number * LOAD_S / 4)
    while time.monotonic() < end:
        urllib.request.urlopen(f"{base}/v1/models/{model}:classify", body).read()
        time.sleep(0.005)


if __name__ == "__main__":
    sys.exit(main())
