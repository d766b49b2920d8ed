"""A real browser: Debian's chromium, driven by Playwright, and what axe-core finds on a page in it."""

import contextlib
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium in the path: apt install chromium")


@contextlib.contextmanager
def browsing() -> Iterator[Any]:
    """Yields Playwright's browser. Skips without Playwright."""
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


def check_accessible(page: Any) -> None:
    """Fails if axe-core finds something on a page of Playwright, however small. Skips without axe-playwright-python."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    found = axe.Axe().run(page).response["violations"]
    assert [f"{one['id']}: {one['help']}: {[node['html'][:200] for node in one['nodes'][:3]]}" for one in found] == []
