"""A picture of the voting page for the documents, of two systems' clips.

    nearstep generate --prompts-file captions.txt --plan 1 --seed 7 -o one/
    nearstep generate --prompts-file captions.txt --plan 4 --seed 7 -o four/
    python benchmarks/study.py one/ four/ --out docs/study.png

Needs a Chromium (``--browser``) and playwright (``pip install "nearstep[browser,serve]"``).
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import tyro

SHOWN = 5
"""Trials that are voted on before the picture is taken."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Whose clips, and where the picture goes."""

    folders: tyro.conf.Positional[tuple[Path, Path]]
    out: Path = Path("docs/study.png")
    browser: str | None = None
    """Its program; chromium where it is not said."""


@contextmanager
def served(study: Path) -> Iterator[str]:
    """``nearstep study serve`` in a process of its own: its address."""
    command = [sys.executable, "-m", "nearstep.cli.main", "study"]
    with subprocess.Popen([*command, "serve", str(study), "--port", "0"], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            said = process.stderr.readline()
            found = re.search(r"http://\S+", said)
            if found is None:
                raise SystemExit(f"the server did not start: {said}")
            yield found[0]
        finally:
            process.terminate()


def main(options: Options) -> None:
    """Make a study, vote on some of it, and take the picture."""
    from playwright.sync_api import sync_playwright  # pyright: ignore[reportMissingImports]

    program = options.browser or shutil.which("chromium")
    with tempfile.TemporaryDirectory() as folder:
        study = Path(folder) / "study"
        make = ["study", "make", *map(str, options.folders), "-o", str(study), "--seed", "1"]
        subprocess.run([sys.executable, "-m", "nearstep.cli.main", *make], check=True)
        with served(study) as address, sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1000, "height": 780})
            page.goto(address)
            page.fill("#name", "ann")
            page.click("#who button")
            for done in range(SHOWN):
                page.get_by_text(f"{done} of ").wait_for()
                page.locator("[data-choice=left]:enabled").wait_for()
                page.keyboard.press("ArrowLeft" if done % 2 else "ArrowRight")
            page.get_by_text(f"{SHOWN} of ").wait_for()
            page.locator("[data-choice=left]:enabled").wait_for()
            page.screenshot(path=options.out)
            browser.close()


if __name__ == "__main__":
    main(tyro.cli(Options))
