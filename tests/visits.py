"""A page that is open in a browser, for the tests of the page."""

from __future__ import annotations

import time
from collections.abc import Callable

from served import Site


class Visit:
    """A page that is open, and what it complained of."""

    def __init__(self, page, site: Site) -> None:
        self.page, self.site, self.faults = page, site, []
        page.on("console", lambda said: self.faults.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: self.faults.append(str(error)))

    def open(self, path: str = "") -> None:
        self.page.goto(f"http://127.0.0.1:{self.site.port}/{path}")

    def ask(self, script: str):
        return self.page.evaluate(script)

    def until(self, script: str, seconds: float = 20):
        """Wait until a script gives something; the page's own rules forbid what playwright would do."""
        safe = f"(() => {{ try {{ return ({script}) }} catch (error) {{ return null }} }})()"  # not there yet
        return until(lambda: self.page.evaluate(safe), seconds, script)

    def frames(self) -> int:
        return self.ask("document.querySelector('video')?.getVideoPlaybackQuality().totalVideoFrames ?? 0")

    def playing(self) -> None:
        self.until("document.querySelector('video')?.getVideoPlaybackQuality().totalVideoFrames > 3")

    def told(self, words: str) -> str:
        return until(lambda: (text := self.page.inner_text("#told")) and words in text and text, 20, words)

    def take(self) -> str:
        return self.until("new URLSearchParams(location.hash.slice(1)).get('take')")


def until(holds: Callable, seconds: float, what: str):
    ends = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < ends, f"never: {what}"
        time.sleep(0.02)
    return found
