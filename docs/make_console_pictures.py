"""Takes the pictures of the console in docs/pictures/, of a real bus while `python -m bus demo` plays.

    python docs/make_console_pictures.py [SECONDS]

The demo plays for SECONDS (330) before, so that the charts are full. Chromium must be on PATH. On a busy machine the
figures are that machine's: take them on a quiet one.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bus.testing import BusServer  # noqa: E402  # found by the line above

FOLDER = ROOT / "docs" / "pictures"
SHOTS = (
    ("overview-light", "overview", (1280, 800), "light"),
    ("overview-dark", "overview", (1280, 800), "dark"),
    ("feed-dark", "feed", (1280, 800), "dark"),
    ("message-light", "messages/{message}", (1280, 640), "light"),
    ("phone-light", "overview", (390, 844), "light"),
)
"""The name of each, its view, its size, its theme."""

COLOURS = 256
SETTLE_SECONDS = 4


def take(browser: Browser, address: str, size: tuple[int, int], theme: Any) -> Image.Image:
    """A picture of a view, in few colours."""
    context = browser.new_context(viewport={"width": size[0], "height": size[1]}, color_scheme=theme)
    page = context.new_page()
    page.goto(address)
    time.sleep(SETTLE_SECONDS)
    taken = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    context.close()
    return taken.quantize(COLOURS, dither=Image.Dither.NONE)


def a_dead_letter(server: BusServer) -> str:
    """The id of a message with much to tell: the youngest dead letter."""
    found = server.call("GET", "/api/dead-letters?limit=1000").body["dead_letters"]
    return str(found[-1]["id"]) if found else ""


def main() -> None:
    """Play, and take them."""
    seconds = int(sys.argv[1]) if len(sys.argv) > 1 else 330
    FOLDER.mkdir(exist_ok=True)
    with BusServer(workers=2, env={"WEBHOOK_ALLOWED_TARGETS": "127.0.0.0/8"}) as server:
        command = [sys.executable, "-m", "bus", "demo", "--seconds", str(seconds + 90), "--rate", "60", "--webhook"]
        with subprocess.Popen([*command, "--url", server.url], cwd=ROOT) as demo, sync_playwright() as play:
            time.sleep(seconds)
            browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            for name, view, size, theme in SHOTS:
                address = f"{server.url}/console#/{view.format(message=a_dead_letter(server))}"
                take(browser, address, size, theme).save(FOLDER / f"console-{name}.png", optimize=True)
            browser.close()
            demo.terminate()


if __name__ == "__main__":
    main()
