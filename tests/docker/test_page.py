"""The page in a real browser, on the real gateway, before real Tritons."""

import base64
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect

from tests.docker.gateway import ROOT, Gateway
from tests.serving.tiny import jpeg

PICTURES = ROOT / "artifacts/page"
VIEWS = {
    "desktop": {"viewport": {"width": 1280, "height": 900}},
    "phone": {
        "viewport": {"width": 390, "height": 844},
        "device_scale_factor": 2,
        "is_mobile": True,
        "has_touch": True,
    },
}
# As a browser does it: the files are made in the page, then let go over it.
DROP = """async ([type, files]) => {
    const transfer = new DataTransfer();
    for (const { name, kind, data } of files) {
        const bytes = Uint8Array.from(atob(data), (character) => character.charCodeAt(0));
        transfer.items.add(new File([bytes], name, { type: kind }));
    }
    const event = type === "paste"
        ? new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true })
        : new DragEvent(type, { dataTransfer: transfer, bubbles: true, cancelable: true });
    document.querySelector("#drop").dispatchEvent(event);
}"""


@pytest.fixture(params=VIEWS)
def view(request: pytest.FixtureRequest) -> str:
    return request.param


class Visit:
    """One open page; nothing on it may break its own rules or ask another host."""

    def __init__(self, browser: Browser, gateway: Gateway, **options: object) -> None:
        self.context: BrowserContext = browser.new_context(ignore_https_errors=True, **options)  # type: ignore[arg-type]
        self.complaints: list[str] = []
        self.hosts: set[str] = set()
        self.page: Page = self.context.new_page()
        self.page.set_default_timeout(15_000)
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.hosts.add(request.url.split("/")[2]))
        self.page.goto(gateway.url())

    def use_key(self, key: str) -> None:
        self.page.get_by_label("API key").fill(key)
        self.page.get_by_role("button", name="Use it").click()

    def let_go(self, *files: tuple[str, str, bytes], how: str = "drop") -> None:
        listed = [{"name": name, "kind": kind, "data": base64.b64encode(data).decode()} for name, kind, data in files]
        self.page.evaluate(DROP, [how, listed])

    def card(self, name: str) -> Locator:
        return self.page.locator(".card", has=self.page.get_by_role("heading", name=name, exact=True))

    def __enter__(self) -> "Visit":
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()


def picture(seed: int) -> tuple[str, str, bytes]:
    return f"picture {seed}.jpg", "image/jpeg", jpeg(seed)


def command_label(gateway: Gateway, image: bytes, folder: Path) -> tuple[str, float]:
    """What classify.py says of an image."""
    path = folder / "image.jpg"
    path.write_bytes(image)
    command = [sys.executable, "client/classify.py", str(path), "--format", "json", "--url", gateway.url()]
    command += ["--ca", gateway.ca, "--header", f"Authorization: Bearer {gateway.key()}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    top = json.loads(done.stdout)["top"][0]
    return top["label"], top["probability"]


def test_a_dropped_picture_gets_the_label_of_the_command(
    browser: Browser, gateway: Gateway, view: str, tmp_path: Path
) -> None:
    label, probability = command_label(gateway, jpeg(1), tmp_path)
    with Visit(browser, gateway, **VIEWS[view]) as visit:
        visit.use_key(gateway.key())
        visit.let_go(picture(1))
        rows = visit.card("picture 1.jpg").locator("li")
        expect(rows).to_have_count(5)
        expect(rows.first).to_contain_text(label)
        expect(rows.first).to_contain_text(f"{probability:.1%}")
        expect(visit.page.get_by_role("status")).to_contain_text(label)
        expect(visit.page.get_by_alt_text(f"picture 1.jpg, probably {label}")).to_be_visible()
        assert visit.complaints == []
        assert visit.hosts == {f"localhost:{gateway.port}"}


def test_screenshots(browser: Browser, gateway: Gateway, view: str) -> None:
    """A gallery with a refusal in it, light and dark, to be looked at."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    for scheme in ("light", "dark"):
        with Visit(browser, gateway, color_scheme=scheme, **VIEWS[view]) as visit:
            visit.page.screenshot(path=PICTURES / f"{view}-{scheme}-empty.png")
            visit.use_key(gateway.key())
            visit.let_go(*map(picture, range(1, 6)), ("notes.txt", "text/plain", b"not a picture at all"))
            expect(visit.page.locator(".card ol:visible")).to_have_count(5)
            expect(visit.card("notes.txt").locator(".error")).to_be_visible()
            visit.page.screenshot(path=PICTURES / f"{view}-{scheme}.png", full_page=view == "desktop")
            widths = visit.page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
            assert widths[0] <= widths[1], "wider than the window"


def test_pictures_come_in_their_order_the_latest_first(browser: Browser, gateway: Gateway) -> None:
    with Visit(browser, gateway) as visit:
        visit.use_key(gateway.key())
        visit.let_go(picture(1), picture(2))
        visit.let_go(picture(3), how="paste")
        expect(visit.page.locator(".card h2")).to_have_text(["picture 3.jpg", "picture 1.jpg", "picture 2.jpg"])
        expect(visit.page.locator(".card ol:visible")).to_have_count(3)


def test_refusals_are_said_in_words(browser: Browser, gateway: Gateway) -> None:
    with Visit(browser, gateway) as visit:
        visit.use_key(gateway.key())
        visit.let_go(("notes.txt", "text/plain", b"not a picture at all"))
        expect(visit.card("notes.txt")).to_contain_text("Not a JPEG, PNG, WebP, GIF or BMP image.")
        visit.let_go(("cut.jpg", "image/jpeg", jpeg(1)[:400]))
        expect(visit.card("cut.jpg").locator(".error")).to_contain_text("amaged")
        visit.page.evaluate(
            """() => {
                const transfer = new DataTransfer();
                transfer.items.add(new File([new Uint8Array(50 * 2 ** 20)], "huge.png", { type: "image/png" }));
                document.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, cancelable: true }));
            }"""
        )
        expect(visit.card("huge.png")).to_contain_text("This file has 50.0 MiB; at most 16 are taken.")
        expect(visit.card("huge.png").get_by_role("button")).to_have_count(0)


def test_a_wrong_key_is_asked_for_again(browser: Browser, gateway: Gateway) -> None:
    with Visit(browser, gateway) as visit:
        visit.use_key("0" * 64)
        visit.let_go(picture(1))
        card = visit.card("picture 1.jpg")
        expect(card).to_contain_text("No valid API key.")
        expect(visit.page.get_by_label("API key")).to_be_focused()
        visit.use_key(gateway.key())
        card.get_by_role("button", name="Try again").click()
        expect(card.locator("li")).to_have_count(5)
        visit.page.get_by_role("button", name="Forget it").click()
        assert visit.page.evaluate("sessionStorage.length") == 0


def test_a_stopped_triton_and_a_stopped_gateway(browser: Browser, new_gateway: type[Gateway]) -> None:
    gateway = new_gateway(triton_http=["127.0.0.1:9"])
    gateway.start()
    with Visit(browser, gateway) as visit:
        visit.page.clock.install()
        visit.use_key(gateway.key())
        visit.let_go(picture(1))
        card = visit.card("picture 1.jpg")
        deadline = time.monotonic() + 15
        while not card.locator(".error").is_visible():  # after its pauses between tries
            assert time.monotonic() < deadline
            visit.page.clock.run_for(500)
        expect(card).to_contain_text("The server does not answer at the moment.")
        gateway.stop()
        card.get_by_role("button", name="Try again").click()
        expect(card).to_contain_text("No connection to the server. Is it running?")


def test_keyboard_alone(browser: Browser, gateway: Gateway, tmp_path: Path) -> None:
    path = tmp_path / "picture.jpg"
    path.write_bytes(jpeg(2))
    with Visit(browser, gateway) as visit:
        keyboard = visit.page.keyboard
        # Listened for from the start: the browser takes a moment to hand choosers over, and opens its own meanwhile.
        with visit.page.expect_file_chooser() as chooser:
            keyboard.press("Tab")
            keyboard.type(gateway.key())
            keyboard.press("Enter")
            expect(visit.page.get_by_role("button", name="Choose pictures")).to_be_focused()
            keyboard.press("Enter")
        chooser.value.set_files(path)
        expect(visit.card("picture.jpg").locator("li")).to_have_count(5)


def test_camera_is_offered_to_fingers(browser: Browser, gateway: Gateway, view: str) -> None:
    with Visit(browser, gateway, **VIEWS[view]) as visit:
        button = visit.page.get_by_role("button", name="Take a picture")
        assert button.is_visible() == (view == "phone")
        assert visit.page.locator("#camera").get_attribute("capture") == "environment"


def test_screen_readers_find_everything(browser: Browser, gateway: Gateway) -> None:
    """Names and roles, as assistive technology reads them."""
    with Visit(browser, gateway) as visit:
        visit.use_key(gateway.key())
        visit.let_go(picture(1))
        expect(visit.page.locator(".card li")).to_have_count(5)
        tree = visit.page.locator("main").aria_snapshot()
    for part in (
        'heading "What is in the picture?" [level=1]',
        'region "Drop pictures here, or paste one"',
        'button "Choose pictures"',
        "- status:",
        'list "Pictures, the latest first"',
        'img "picture 1.jpg, probably Trouser"',
    ):
        assert part in tree, tree


def test_bound_is_the_gateways() -> None:
    start = (ROOT / "docker/gateway/start.sh").read_text()
    page = (ROOT / "docker/page/page.js").read_text()
    assert "GATEWAY_BODY_MIB:-16}" in start
    assert "MAX_MIB = 16;" in page
