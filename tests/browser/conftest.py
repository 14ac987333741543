"""A Chromium that is installed, and a server of the embedded model."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest
from served import Site, running
from visits import Visit

from nearstep.stream.pipeline import CausalVideoPipeline

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="session")
def chromium():
    path = os.environ.get("BROWSER") or next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip(f"no browser here: none of {', '.join(NAMES)} is installed, and BROWSER names none")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def embedded() -> CausalVideoPipeline:
    pipe = CausalVideoPipeline.from_pretrained("playground", device="cpu")
    with pipe.open("a large red apple slides left slowly on snow", seed=0) as session:
        next(session)
    return pipe


@pytest.fixture(scope="module")
def site(embedded: CausalVideoPipeline, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with running(embedded, tmp_path_factory.mktemp("state")) as found:
        yield found


@pytest.fixture
def visit(chromium, site: Site) -> Iterator[Visit]:
    context = chromium.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True)
    found = Visit(context.new_page(), site)
    yield found
    context.close()
    for take in site.studio.takes:
        site.ask("DELETE", f"/api/takes/{take.origin.id}")
    assert not found.faults
