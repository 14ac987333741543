"""Pictures of the page for the documents: a take with a fork beside it, and the page on a narrow screen in the dark.

    python benchmarks/page.py --out docs/serve.png --narrow docs/serve-narrow.png

Needs a Chromium (``--browser``) and playwright (``pip install "nearstep[browser]"``).
"""

from __future__ import annotations

import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro
from serve import served

if TYPE_CHECKING:
    from playwright.sync_api import Page  # pyright: ignore[reportMissingImports]

OTHER = "a small green frog drifts up quickly on a meadow"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Where the pictures go."""

    out: Path = Path("docs/serve.png")
    narrow: Path = Path("docs/serve-narrow.png")
    browser: str | None = None
    """Its program; chromium where it is not said."""


def until(page: Page, script: str, seconds: float = 30) -> None:
    """Wait until a script gives true."""
    ends = time.monotonic() + seconds
    while not page.evaluate(script):
        if time.monotonic() > ends:
            raise SystemExit(f"the page never came to {script}")
        time.sleep(0.05)


def picture(page: Page, path: Path) -> None:
    """What is seen at the top of the page."""
    page.mouse.move(0, 0)
    page.evaluate("scrollTo({top: 0, behavior: 'instant'})")
    time.sleep(0.3)
    page.screenshot(path=path)


def main(options: Options) -> None:
    """Serve the playground, and look at it."""
    from playwright.sync_api import sync_playwright  # pyright: ignore[reportMissingImports]

    program = options.browser or shutil.which("chromium")
    with (
        tempfile.TemporaryDirectory() as state,
        served("playground", Path(state)) as (_, address),
        sync_playwright() as driver,
    ):
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1100, "height": 1290})
        page.goto(f"http://{address}/")
        until(page, "document.querySelectorAll('#timeline li').length > 5")
        page.click("#timeline li:nth-child(4) button")
        page.click("#fork")
        until(page, "document.querySelectorAll('video').length == 2")
        page.fill("#prompt", OTHER)
        page.click("#change")
        until(page, "document.querySelector('.latency').textContent.includes('s')")
        time.sleep(2.5)
        picture(page, options.out)
        page.set_viewport_size({"width": 360, "height": 900})
        page.emulate_media(color_scheme="dark")
        page.click(".away:visible")
        time.sleep(1)
        picture(page, options.narrow)
        browser.close()


if __name__ == "__main__":
    main(tyro.cli(Options))
