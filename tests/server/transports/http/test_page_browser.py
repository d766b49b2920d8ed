"""The page in a real browser: over TLS, with a token, on a server with 100 models. Needs chromium in the path."""

import base64
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from browsing import browsing, check_accessible, needs_browser
from certificates import Authority, flags
from support import CLASSES, RunningServer, picture, rewrite_manifest, serving, tiny_onnx, write_version

pytestmark = needs_browser

TOKEN = "web"
HANG_MS = 120_000
# A label that would run a script if it became HTML.
EVIL = "<img src=x onerror=document.title='broken'>"
# From right to left, so that a percentage beside it would change places.
HEBREW = "\u05d0\u05d5\u05e8 (1)"
LABELS = "\n".join((EVIL, CLASSES[1], f"{HEBREW} {'x' * 300}")) + "\n"
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("browser")
    root = folder / "models"
    for version in (1, 2):
        write_version(root / "evil" / str(version))
        (root / "evil" / str(version) / "labels.txt").write_text(LABELS)
        rewrite_manifest(root / "evil" / str(version))
    (root / "evil" / "config.pbtxt").write_text("version_policy { all {} }\n")
    (root / "evil" / "version_labels.json").write_text('{"stable": 1}')
    (root / "broken" / "1").mkdir(parents=True)
    (root / "broken" / "1" / "model.onnx").write_bytes(b"<b>no model</b>")
    for number in range(98):
        (root / f"model-{number:02}" / "1").mkdir(parents=True)
        (root / f"model-{number:02}" / "1" / "model.onnx").write_bytes(tiny_onnx())
    (folder / "tokens").write_text(f"{TOKEN} infer,read,metrics {hashlib.sha256(TOKEN.encode()).hexdigest()}\n")
    issued = flags(Authority(folder / "certificates").issue("server"))
    with serving(folder / "log", root, "--tokens-file", folder / "tokens", *issued) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with browsing() as running:
        yield running


class Watched:
    """A page, what it asked other hosts for, and what it complained about."""

    def __init__(self, page: Any, base: str) -> None:
        self.page = page
        self.base = base
        self.foreign: list[str] = []
        self.complaints: list[str] = []
        page.set_default_timeout(HANG_MS)
        page.on("request", self._asked)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", self._said)

    def _asked(self, request: Any) -> None:
        if not request.url.startswith((self.base, "blob:")):
            self.foreign.append(request.url)

    def _said(self, message: Any) -> None:
        # The browser's own line about an error response, which a test asks for.
        if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
            self.complaints.append(message.text)


Open = Callable[..., Any]


@pytest.fixture
def opened(browser: Any, server: RunningServer) -> Iterator[Open]:
    """Opens a view in a new tab, with the token unless `token` is empty."""
    base = f"https://127.0.0.1:{server.http_port}/"
    watched: list[Watched] = []
    contexts: list[Any] = []

    def open_view(view: str, *, token: str = TOKEN, **options: Any) -> Any:
        context = browser.new_context(ignore_https_errors=True, **options)
        contexts.append(context)
        if token:
            context.add_init_script(f"sessionStorage.setItem('cnnserve.token', '{token}')")
        page = context.new_page()
        watched.append(Watched(page, base))
        page.goto(f"{base}#{view}")
        return page

    yield open_view
    for one in watched:
        assert one.page.title() != "broken"
    for context in contexts:
        context.close()
    assert [(one.foreign, one.complaints) for one in watched] == [([], [])] * len(watched)


def hand_over(page: Any, view: str, event: str, files: dict[str, bytes]) -> None:
    """Drops or pastes files on a view."""
    given = [[name, base64.b64encode(data).decode()] for name, data in files.items()]
    page.evaluate(
        """([view, event, files]) => {
          const transfer = new DataTransfer();
          for (const [name, text] of files) {
            const data = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
            transfer.items.add(new File([data], name, {type: "image/png"}));
          }
          const place = document.querySelector(`section[data-view=${view}] .drop`);
          const options = {bubbles: true, cancelable: true, dataTransfer: transfer, clipboardData: transfer};
          place.dispatchEvent(event === "paste" ? new ClipboardEvent(event, options) : new DragEvent(event, options));
        }""",
        [view, event, given],
    )


def choose(page: Any, view: str, label: str, value: str) -> None:
    page.locator(f"section[data-view={view}]").get_by_label(label, exact=True).select_option(value)


def ready(page: Any, view: str) -> None:
    page.wait_for_selector(f"section[data-view={view}] option[value=evil]", state="attached")


def fits(page: Any) -> bool:
    wide: int = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    return wide <= 0


def test_a_token_is_asked_for_and_kept_for_the_tab_only(opened: Open) -> None:
    page = opened("models/model-07", token="")
    page.get_by_role("dialog").get_by_label("Token", exact=True).fill("sch\u00f6n")
    page.keyboard.press("Enter")
    page.get_by_text("A token has no spaces").wait_for()
    page.get_by_role("dialog").get_by_label("Token", exact=True).fill("wrong")
    page.keyboard.press("Enter")
    page.wait_for_selector("#token-error:has-text('not valid')")
    check_accessible(page)
    page.get_by_role("dialog").get_by_label("Token", exact=True).fill(TOKEN)
    page.keyboard.press("Enter")
    page.get_by_text("99 of 100 ready").wait_for()
    assert page.evaluate("Object.values(sessionStorage)") == [TOKEN]
    assert TOKEN not in page.evaluate("Object.values(localStorage)")
    assert page.evaluate("document.cookie") == ""
    page.get_by_role("heading", name="model-07").wait_for()


def test_100_models_can_be_searched_and_told_apart(opened: Open) -> None:
    page = opened("models")
    page.wait_for_selector(".model-list li:nth-child(100)")
    page.get_by_label("Filter models").fill("unavailable")
    page.wait_for_selector(".model-list li:nth-child(2)", state="detached")
    page.get_by_role("link", name="broken").focus()
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="broken").wait_for()
    assert page.evaluate("document.activeElement.hash") == "#models/broken"
    assert "no ONNX file" in page.inner_text(".detail .trouble")
    page.get_by_label("Filter models").fill("no model has this name")
    page.get_by_text("No model matches.").wait_for()


def test_a_version_shows_its_proof_and_its_labels_as_text(opened: Open) -> None:
    page = opened("models/evil/1")
    page.get_by_role("img", name="Golden image golden.png").wait_for()
    assert page.get_by_role("heading", name="Self-test on this machine").is_visible()
    page.get_by_label("Search labels").fill("onerror")
    assert page.inner_text("ol.labels li").split() == ["0", *EVIL.split()]
    assert page.locator("ol.labels img").count() == 0
    page.get_by_text("stable").wait_for()
    check_accessible(page)
    page.get_by_role("link", name="2", exact=True).click()
    page.wait_for_selector(".chip[aria-current]:has-text('2')")


def test_dropped_images_are_classified_and_bad_ones_fail_alone(opened: Open) -> None:
    page = opened("try")
    ready(page, "try")
    choose(page, "try", "Model", "evil")
    hand_over(page, "try", "drop", {"left.png": picture("left"), "dark.png": picture("dark"), "bad.png": b"no image"})
    page.locator(".bars").nth(1).wait_for()
    page.wait_for_selector(".result .trouble")
    results = {result.split("\n")[0].split(".png")[0]: result for result in page.locator(".result").all_inner_texts()}
    assert "left" in {line for result in results.values() for line in result.split("\n")}
    dark = page.locator(".result", has_text="dark.png")
    assert dark.locator(".bars .label").first.inner_text() == EVIL
    assert "image" in page.locator(".result", has_text="bad.png").locator(".trouble").inner_text()
    for step in ("queue", "preprocess", "compute", "total"):
        assert dark.locator("dt", has_text=step).is_visible()
    page.get_by_text("The same from a terminal").click()
    commands = page.locator(".command pre").all_inner_texts()
    assert all("/v1/models/evil/versions/2:classify?top_k=5" in command for command in commands)
    assert all(TOKEN not in command.replace("TOKEN", "") for command in commands)
    check_accessible(page)


def test_pasted_images_in_two_versions_and_as_the_network_sees_them(opened: Open) -> None:
    page = opened("try")
    ready(page, "try")
    choose(page, "try", "Model", "evil")
    choose(page, "try", "Compare with", "evil")
    choose(page, "try", "Version to compare", "1")
    hand_over(page, "try", "paste", {"left.png": picture("left")})
    page.locator(".answer .bars").nth(1).wait_for()
    assert [text.split("\n")[0] for text in page.locator(".answer").all_inner_texts()] == ["evil / 2", "evil / 1"]
    page.get_by_role("button", name="Network’s view").click()
    page.wait_for_selector("img.pixels")
    assert page.evaluate("document.querySelector('img.pixels').naturalWidth") == 8
    page.get_by_label("Top", exact=True).fill("0.6")
    page.get_by_label("Top", exact=True).press("Enter")
    page.locator(".answer:has(.bars li:only-child)").nth(1).wait_for()
    assert page.get_by_label("Top", exact=True).input_value() == "1"


def test_a_file_that_cannot_be_read_any_more_is_no_silent_server(opened: Open, tmp_path: Path) -> None:
    (tmp_path / "left.png").write_bytes(picture("left"))
    page = opened("try")
    ready(page, "try")
    choose(page, "try", "Model", "evil")
    page.set_input_files("section[data-view=try] input[type=file]:not([capture])", tmp_path / "left.png")
    page.wait_for_selector(".bars")
    (tmp_path / "left.png").unlink()
    choose(page, "try", "Version", "1")
    page.get_by_text("The browser cannot read this file").wait_for()


def test_nothing_runs_in_a_view_that_nobody_looks_at(opened: Open) -> None:
    page = opened("try")
    ready(page, "try")
    choose(page, "try", "Model", "evil")
    hand_over(page, "try", "drop", {"left.png": picture("left")})
    page.wait_for_selector(".bars")
    page.get_by_role("link", name="Models", exact=True).click()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if ":classify" in request.url else None)

    def without_version_2(route: Any) -> None:
        response = route.fetch()
        models = response.json()["models"]
        for model in models:
            model["versions"] = [one for one in model["versions"] if one["version"] != "2"]
        route.fulfill(response=response, json={"models": models})

    page.route("**/page/api/models", without_version_2)
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    page.wait_for_selector(".model-list a:has-text('evil'):has-text('version 1')")
    assert asked == []
    page.get_by_role("link", name="Try it", exact=True).click()
    page.wait_for_selector(".answer:has-text('evil / 1') .bars")
    assert len(asked) == 1


def test_what_comes_late_about_a_model_is_not_shown_with_another_one(opened: Open) -> None:
    page = opened("models")
    page.wait_for_selector(".model-list li")
    held: list[Any] = []

    def hold(route: Any) -> None:
        held.append(route)

    page.route("**/models/evil/versions/2", hold)
    page.get_by_role("link", name="evil").click()
    page.get_by_role("heading", name="evil").wait_for()
    while not held:
        page.wait_for_timeout(10)
    page.get_by_role("link", name="model-07").click()
    page.get_by_text("Not verified").wait_for()
    with page.expect_response("**/models/evil/versions/2"):
        held[0].continue_()
    page.wait_for_timeout(100)
    assert page.get_by_text("Instances").count() == 1


def test_a_server_that_hangs_does_not_answer(opened: Open) -> None:
    page = opened("models")
    page.get_by_text("99 of 100 ready").wait_for()
    page.route("**/page/api/models", lambda route: None)
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    page.get_by_text("No connection").wait_for()


def test_a_sample_that_does_not_come_is_told(opened: Open) -> None:
    page = opened("models")
    page.wait_for_selector(".model-list li")
    page.route("**/page/samples/index.json", lambda route: route.abort(), times=1)
    page.get_by_role("link", name="Try it", exact=True).click()
    ready(page, "try")
    page.route("**/page/samples/cat.jpg", lambda route: route.abort())
    page.get_by_role("button", name="Cat").click()
    page.wait_for_selector(".drop .trouble:has-text('does not answer')")


def test_a_browser_that_may_keep_nothing_shows_the_page(opened: Open) -> None:
    page = opened("models", token="")
    for name in ("localStorage", "sessionStorage"):
        page.add_init_script(f"Object.defineProperty(window, '{name}', {{get() {{ throw new DOMException('no'); }}}})")
    page.reload()
    page.get_by_role("dialog").get_by_label("Token", exact=True).fill(TOKEN)
    page.keyboard.press("Enter")
    page.get_by_text("99 of 100 ready").wait_for()


def test_why_shows_a_map(opened: Open) -> None:
    page = opened("try")
    ready(page, "try")
    choose(page, "try", "Model", "evil")
    page.get_by_role("button", name="Digit 5").click()
    page.wait_for_selector(".bars")
    page.get_by_role("button", name="Why?").click()
    page.wait_for_selector(".told strong")
    assert "65 runs" in page.inner_text(".told")
    assert page.get_by_role("img", name="The picture as the network sees it, with the parts that matter").is_visible()
    choose(page, "why", "Grid", "5")
    page.get_by_role("button", name="Explain").click()
    page.get_by_text("26 runs").wait_for()
    classes = page.locator("section[data-view=why] option").all_inner_texts()
    assert any(f"\u2068{HEBREW} xxx" in text and "xxx\u2069 \u00b7" in text for text in classes)
    choose(page, "why", "Class", "2")
    page.get_by_role("button", name="Explain").click()
    page.wait_for_selector(".told strong:has-text('xxx')")
    assert fits(page)
    check_accessible(page)
    hand_over(page, "why", "drop", {"bad.png": b"no image"})
    page.wait_for_selector(".stage .trouble")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_live_shows_what_happens(opened: Open, scheme: str) -> None:
    page = opened("live", color_scheme=scheme)
    page.wait_for_selector(".live tbody tr:nth-child(101)")
    page.evaluate(
        """async (body) => {
          const data = Uint8Array.from(atob(body), (letter) => letter.charCodeAt(0));
          const headers = {Authorization: `Bearer ${sessionStorage.getItem("cnnserve.token")}`};
          await fetch("/v1/models/evil:classify", {method: "POST", body: data, headers});
        }""",
        base64.b64encode(picture("left")).decode(),
    )
    # The model that did something is on top, with its last minute.
    page.wait_for_selector(".live tbody tr:first-child canvas.spark")
    assert page.inner_text(".live tbody tr:first-child th") == "evil/2"
    check_accessible(page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_fits_a_phone(opened: Open, scheme: str) -> None:
    page = opened("models", color_scheme=scheme, **PHONE)
    page.get_by_role("link", name="model-97").click()
    page.get_by_role("heading", name="model-97").wait_for()
    assert page.evaluate("[scrollY, document.activeElement.textContent]") == [0, "model-97"]
    page.get_by_role("link", name="All models").click()
    page.get_by_role("link", name="evil").click()
    page.wait_for_selector("ol.labels li")
    assert fits(page)
    assert not page.get_by_label("Filter models").is_visible()
    page.get_by_role("link", name="All models").click()
    page.get_by_label("Filter models").wait_for()
    for name, selector in (("Try it", ".sample"), ("Why", ".stage"), ("Live", ".live tbody tr")):
        page.get_by_role("link", name=name, exact=True).click()
        page.locator(f"section:not([hidden]) {selector}").first.wait_for()
        assert fits(page), name
        check_accessible(page)


def test_the_keyboard_reaches_everything(opened: Open) -> None:
    page = opened("models")
    page.wait_for_selector(".model-list li")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    assert page.evaluate("[document.activeElement.id, location.hash]") == ["main", "#models"]
    page.locator(".skip").focus()
    for _ in range(3):
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_selector("section[data-view=try]:not([hidden])")
    page.locator("#theme-button").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    page.evaluate("location.hash = '#constructor'")
    page.wait_for_selector("section[data-view=models]:not([hidden])")


def test_a_server_that_goes_away_is_told_once_and_the_past_is_kept(opened: Open) -> None:
    page = opened("live")
    page.locator("dd", has_text=" of ").first.wait_for()
    tries: list[Any] = []

    def refuse(route: Any) -> None:
        tries.append(route)
        route.abort()

    page.route("**/page/api/**", refuse)
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    page.get_by_text("No connection").wait_for()
    page.evaluate(
        """() => {
          window.alerts = 0;
          const added = (changes) => changes.flatMap((one) => [...one.addedNodes]);
          const count = (changes) => { alerts += added(changes).filter((node) => node.role === "alert").length; };
          const live = document.querySelector("section[data-view=live]");
          new MutationObserver(count).observe(live, {childList: true, subtree: true});
        }"""
    )
    page.get_by_role("link", name="Why", exact=True).click()
    page.get_by_role("link", name="Live", exact=True).click()
    page.wait_for_selector("section[data-view=live] [role=alert]")
    before = len(tries)
    while len(tries) < before + 2:
        page.wait_for_timeout(100)
    assert page.evaluate("window.alerts") == 1
    # What was measured is still drawn, but is no longer the present.
    assert page.locator("dd", has_text=" of ").count() == 0
