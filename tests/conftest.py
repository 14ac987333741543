"""Shared by every test: annotations checked as the code runs, one thread, no network, repeatable draws."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from hypothesis import settings
from jaxtyping import install_import_hook

# Before anything imports nearstep: from here on each of its functions checks its arguments, shapes included.
# The tower lets an int stand for a float, as everywhere else in Python's typing.
install_import_hook("nearstep", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

torch.set_num_threads(1)  # pytest-xdist has one worker per core

settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=50)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def _repeatable():
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True, warn_only=True)
