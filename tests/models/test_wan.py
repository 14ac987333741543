"""Wan's names and sizes, and agreement with numbers published by another implementation."""

from __future__ import annotations

import pytest
import torch
from diffusers import WanTransformer3DModel

from nearstep.errors import NearstepError
from nearstep.models.wan import SIZES, from_official, to_official, unwrapped, weights_in
from nearstep.nets.denoiser import TextDenoiser
from nearstep.nets.transformer import VideoTransformer


@pytest.fixture(scope="module")
def published(reference: dict) -> VideoTransformer:
    sizes = reference["config"]
    net = VideoTransformer(
        patch_size=sizes["patch_size"],
        num_attention_heads=sizes["num_heads"],
        attention_head_dim=sizes["dim"] // sizes["num_heads"],
        in_channels=sizes["in_dim"],
        out_channels=sizes["out_dim"],
        text_dim=sizes["text_dim"],
        freq_dim=sizes["freq_dim"],
        ffn_dim=sizes["ffn_dim"],
        num_layers=sizes["num_layers"],
        cross_attn_norm=sizes["cross_attn_norm"],
        eps=sizes["eps"],
    )
    net.load_state_dict(from_official(reference["state_dict"]))
    return net.eval()


def padded(context: torch.Tensor, length: int) -> torch.Tensor:
    return torch.nn.functional.pad(context, (0, 0, 0, length - context.shape[1]))


@torch.no_grad()
def test_the_published_bidirectional_forward_agrees(reference: dict, published: VideoTransformer) -> None:
    given = reference["bidirectional"]
    text = padded(given["context"], reference["config"]["text_len"])
    v = published(given["x"].transpose(1, 2), given["t"] / 1000, text)
    torch.testing.assert_close(v.transpose(1, 2), given["out"], rtol=0, atol=3e-5)


@torch.no_grad()
def test_the_published_causal_rollout_agrees(reference: dict, published: VideoTransformer) -> None:
    given, times = reference["rollout"], (reference["steps"].double() / 1000).tolist()
    denoiser = TextDenoiser(published, padded(given["context"], reference["config"]["text_len"]))
    batch, frames, _, height, width = given["noise"].shape
    cache = denoiser.new_cache(batch, frames, height, width)
    chunks = given["noise"].split(given["chunk_sizes"], dim=1)
    for chunk, eps in zip(chunks, given["eps"], strict=True):
        x, start = chunk, cache.end
        for step, time in enumerate(times):
            x0 = x - time * denoiser(x, torch.full(x.shape[:2], time), cache=cache, start=start)
            if step + 1 < len(times):
                x = (1 - times[step + 1]) * x0 + times[step + 1] * eps[step]
        denoiser.commit(x0, cache=cache, start=start)
        torch.testing.assert_close(x0, given["video"][:, start : cache.end], rtol=0, atol=3e-5)


def test_names_go_there_and_back(net: VideoTransformer) -> None:
    state = net.state_dict()
    official = to_official(state)
    assert len(official) == len(state)
    assert official.keys().isdisjoint({"scale_shift_table", "proj_out.weight"})
    back = from_official(official)
    assert back.keys() == state.keys()
    assert all(back[name] is state[name] for name in state)


def test_official_names_are_those_of_the_release(reference: dict) -> None:
    ours = from_official(reference["state_dict"])
    assert to_official(ours).keys() == reference["state_dict"].keys()


def test_wrapped_and_nested_checkpoints_open(net: VideoTransformer) -> None:
    official = to_official(net.state_dict())
    wrapped = {
        f"model._fsdp_wrapped_module.{name.replace('blocks.0.', 'blocks.0._fsdp_wrapped_module.')}": value
        for name, value in official.items()
    }
    assert unwrapped(wrapped).keys() == official.keys()
    other = {"patch_embedding.bias": torch.zeros(1)}
    checkpoint = {"generator": other, "generator_ema": wrapped, "critic": other, "step": 3}
    net.load_state_dict(from_official(weights_in(checkpoint)))
    assert weights_in(checkpoint, roles=("critic",)) is other
    assert weights_in(official) is official
    with pytest.raises(NearstepError, match="critic"):
        weights_in({"critic": other})


def test_a_foreign_weight_is_named() -> None:
    with pytest.raises(NearstepError, match=r"img_emb\.proj\.0\.weight"):
        from_official({"img_emb.proj.0.weight": torch.zeros(1)})


def test_wan_1_3b_is_the_network_that_diffusers_builds() -> None:
    with torch.device("meta"):
        ours, theirs = VideoTransformer(**SIZES["1.3B"]), WanTransformer3DModel(**SIZES["1.3B"])
    shapes = {name: value.shape for name, value in ours.state_dict().items()}
    assert shapes == {name: value.shape for name, value in theirs.state_dict().items()}
    assert sum(shape.numel() for shape in shapes.values()) == 1_418_996_800
