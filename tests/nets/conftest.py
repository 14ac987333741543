"""A network of two blocks with the shape of Wan."""

from __future__ import annotations

import pytest
import torch

from nearstep.nets.transformer import VideoTransformer

TINY = dict(
    patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=10,
    freq_dim=16, ffn_dim=32, num_layers=2, cross_attn_norm=True, rope_max_seq_len=64,
)  # fmt: skip


@pytest.fixture
def sizes() -> dict:
    return dict(TINY)


@pytest.fixture
def net() -> VideoTransformer:
    torch.manual_seed(0)
    return VideoTransformer(**TINY).eval()
