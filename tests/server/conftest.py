"""A tiny model that is loaded once, and a server of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from served import running

from nearstep.server.studio import Limits
from nearstep.stream.pipeline import CausalVideoPipeline


@pytest.fixture(scope="session")
def tiny(model_folder: Path) -> CausalVideoPipeline:
    return CausalVideoPipeline.from_pretrained(str(model_folder))


@pytest.fixture(scope="module")
def site(tiny: CausalVideoPipeline, tmp_path_factory: pytest.TempPathFactory):
    """Whoever reaches it may use it."""
    with running(tiny, tmp_path_factory.mktemp("state"), limits=Limits(sessions=40)) as found:
        yield found
