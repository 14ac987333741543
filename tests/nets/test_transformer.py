"""The transformer is diffusers' Wan where that exists, and keeps its own promises where it does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

import jaxtyping
import pytest
import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from nearstep.errors import NearstepError
from nearstep.nets.blocks import TransformerBlock
from nearstep.nets.masks import block_causal
from nearstep.nets.script import TextKeys
from nearstep.nets.transformer import VideoTransformer, sinusoid


def inputs(net: VideoTransformer, batch: int = 2, frames: int = 3, dtype: torch.dtype = torch.float32) -> tuple:
    x = torch.randn(batch, frames, net.config["in_channels"], 4, 6, dtype=dtype)
    return x, torch.rand(batch, frames), torch.randn(batch, 5, net.config["text_dim"], dtype=dtype)


def oracle_of(net: VideoTransformer) -> WanTransformer3DModel:
    known: Any = WanTransformer3DModel.load_config  # diffusers puts the names of its arguments there
    sizes = {name: net.config[name] for name in known if name in net.config}
    return WanTransformer3DModel(**sizes)


def call_oracle(oracle: WanTransformer3DModel, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
    return oracle(x.transpose(1, 2), t * 1000, text).sample.transpose(1, 2)


class ExactSinusoid(torch.nn.Module):
    """Stands in for diffusers' float32 sinusoid; what it computes is tested on its own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, timestep: Tensor) -> Tensor:
        return sinusoid(timestep / 1000, self.width)


@torch.no_grad()
def test_a_folder_that_diffusers_saved_loads_unchanged_and_agrees(sizes: dict, tmp_path: Path) -> None:
    oracle = WanTransformer3DModel(**sizes).eval()
    oracle.save_pretrained(tmp_path)
    net = VideoTransformer.from_pretrained(tmp_path).eval()
    x, t, text = inputs(net)
    for time in (0.0, 0.0625, 0.5, 1.0):
        t = torch.full((2,), time)
        torch.testing.assert_close(net(x, t, text), call_oracle(oracle, x, t, text), rtol=0, atol=1e-5)


@torch.no_grad()
def test_agreement_in_float64_is_exact(sizes: dict) -> None:
    # Diffusers casts norms, modulation, rotary tables and the sinusoid to float32. With `float` meaning double, and
    # the sinusoid (checked below) lent to it, nothing is left to differ by.
    with patch.object(Tensor, "float", Tensor.double):
        oracle = WanTransformer3DModel(**sizes).double().eval()
        net = VideoTransformer(**sizes).double().eval()
        net.load_state_dict(oracle.state_dict())
        oracle.condition_embedder.timesteps_proj = ExactSinusoid(sizes["freq_dim"])
        x, _, text = inputs(net, dtype=torch.float64)
        t = torch.tensor([0.3, 0.9], dtype=torch.float64)
        torch.testing.assert_close(net(x, t, text), call_oracle(oracle, x, t, text), rtol=0, atol=1e-12)


@torch.no_grad()
def test_times_per_frame_are_those_of_diffusers_per_token(sizes: dict) -> None:
    oracle = WanTransformer3DModel(**sizes).eval()
    net = VideoTransformer(**sizes).eval()
    net.load_state_dict(oracle.state_dict())
    x, t, text = inputs(net)
    per_token = t.repeat_interleave(2 * 3, dim=1)
    torch.testing.assert_close(net(x, t, text), call_oracle(oracle, x, per_token, text), rtol=0, atol=1e-5)


def test_the_sinusoid_is_the_closed_form() -> None:
    t = torch.tensor([0.0, 0.731], dtype=torch.float64)
    wave = sinusoid(t, 4)
    angles = 1000 * t[:, None] * torch.tensor([1.0, 0.01], dtype=torch.float64)
    torch.testing.assert_close(wave, torch.cat([angles.cos(), angles.sin()], -1), rtol=0, atol=1e-15)
    assert wave.dtype == torch.float64


@torch.no_grad()
def test_one_time_for_all_frames_is_that_time_on_each(net: VideoTransformer) -> None:
    x, _, text = inputs(net)
    t = torch.rand(2)
    torch.testing.assert_close(net(x, t, text), net(x, t[:, None].expand(2, 3), text))


@torch.no_grad()
def test_a_sample_does_not_depend_on_its_batch(net: VideoTransformer) -> None:
    net = net.double()
    x, t, text = inputs(net, batch=3, dtype=torch.float64)
    together = net(x, t, text)
    for i in range(3):
        torch.testing.assert_close(
            together[i : i + 1], net(x[i : i + 1], t[i : i + 1], text[i : i + 1]), atol=1e-13, rtol=0
        )


@torch.no_grad()
def test_text_keys_are_the_text(net: VideoTransformer) -> None:
    x, t, text = inputs(net)
    keys = net.text_keys(text)
    assert isinstance(keys, TextKeys)
    assert keys.batch == 2
    torch.testing.assert_close(net(x, t, keys), net(x, t, text), rtol=0, atol=0)


@torch.no_grad()
def test_zero_text_tokens_are_attended(net: VideoTransformer) -> None:
    x, t, text = inputs(net)
    padded = torch.nn.functional.pad(text, (0, 0, 0, 3))
    assert (net(x, t, padded) - net(x, t, text)).abs().max() > 1e-6


def test_features_are_the_outputs_of_the_asked_blocks(net: VideoTransformer) -> None:
    x, t, text = inputs(net)
    seen = {}
    for index, block in enumerate(net.blocks):
        block.register_forward_hook(lambda _, __, out, index=index: seen.update({index: out[0]}))
    v, features = net(x, t, text, features=(1,))
    assert set(features) == {1}
    assert features[1].shape == (2, 3 * 2 * 3, 24)
    assert torch.equal(features[1], seen[1].flatten(1, 2))
    assert torch.equal(v, net(x, t, text))


def test_gradient_checkpointing_changes_no_gradient(net: VideoTransformer) -> None:
    net = net.double().train()
    x, t, text = inputs(net, frames=4, dtype=torch.float64)
    grads = []
    for checkpointed in (False, True):
        if checkpointed:
            net.enable_gradient_checkpointing()
        given = x.clone().requires_grad_()
        cache = net.new_cache(2, 6, 4, 6, append_only=True)
        net(x[:, :2], t[:, :2], text, cache=cache, commit=2)
        v = net(given, t, text, cache=cache, start=2, visibility=block_causal((2, 2)))
        grads.append(torch.autograd.grad(v.square().sum(), [given, *net.parameters()]))
    for plain, recomputed in zip(*grads, strict=True):
        torch.testing.assert_close(plain, recomputed, rtol=0, atol=1e-12)


def test_every_parameter_gets_a_gradient(net: VideoTransformer) -> None:
    net(*inputs(net)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in net.parameters())


def test_double_backward_in_fp64(net: VideoTransformer) -> None:
    # The exact R1 penalty differentiates a gradient; torch's fused attention cannot.
    net = net.double()
    x, t, text = inputs(net, dtype=torch.float64)
    x.requires_grad_()
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        (slope,) = torch.autograd.grad(net(x, t, text).sum(), x, create_graph=True)
        slope.square().sum().backward()
    assert net.proj_out.weight.grad is not None


@torch.no_grad()
def test_bfloat16_stays_near_float32(net: VideoTransformer) -> None:
    x, t, text = inputs(net)
    exact = net(x, t, text)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = net(x, t, text)
    pure = net.to(torch.bfloat16)(x, t, text)
    for v in (mixed, pure):
        assert v.dtype == torch.float32  # that of x
        assert (v - exact).norm() / exact.norm() < 0.03


def test_bfloat16_training_on_a_cpu_has_the_float32_gradient(net: VideoTransformer) -> None:
    x, t, text = inputs(net, frames=4)
    slopes = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            v = net(x, t[:, :1].expand(2, 4), text, visibility=block_causal((2, 2)))
        slopes.append(torch.autograd.grad(v.square().mean(), net.blocks[0].attn1.to_k.weight)[0])
    assert (slopes[1] - slopes[0]).norm() / slopes[0].norm() < 0.1


@torch.no_grad()
def test_bfloat16_loading_keeps_norms_and_modulation_in_float32(net: VideoTransformer, tmp_path: Path) -> None:
    net.save_pretrained(tmp_path)
    loaded = VideoTransformer.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    assert loaded.blocks[0].attn1.to_q.weight.dtype == torch.bfloat16
    assert loaded.blocks[0].scale_shift_table.dtype == torch.float32
    x, t, text = inputs(net)
    v, exact = loaded(x, t, text), net(x, t, text)
    assert (v - exact).norm() / exact.norm() < 0.03


@torch.no_grad()
def test_saving_and_loading_changes_nothing(sizes: dict, tmp_path: Path) -> None:
    net = VideoTransformer(**sizes, chunk_frames=3, window_frames=6, sink_frames=1)
    net.save_pretrained(tmp_path)
    loaded = VideoTransformer.from_pretrained(tmp_path)
    assert (loaded.config["chunk_frames"], loaded.config["window_frames"], loaded.config["sink_frames"]) == (3, 6, 1)
    x, t, text = inputs(net)
    assert torch.equal(loaded(x, t, text), net(x, t, text))


def test_lora_adapters_attach(net: VideoTransformer) -> None:
    peft = pytest.importorskip("peft")
    net.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q", "to_out.0", "ffn.net.0.proj"]))
    net(*inputs(net)).square().sum().backward()
    trained = [name for name, parameter in net.named_parameters() if parameter.grad is not None]
    assert trained
    assert all("lora" in name for name in trained)


@pytest.fixture
def _no_type_checks():
    # Annotations are checked in tests only, and the checks are not for the compiler to see.
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@torch.no_grad()
@pytest.mark.usefixtures("_no_type_checks")
def test_a_block_is_one_graph_masked_or_cached(sizes: dict) -> None:
    net = VideoTransformer(**{**sizes, "num_layers": 1}).eval()
    x, t, text = inputs(net, frames=4)

    def halves() -> Tensor:
        cache = net.new_cache(2, 4, 4, 6)
        cuts = ((slice(0, 2), 0), (slice(2, 4), 2))
        made = []
        for c, i in cuts:
            made.append(net(x[:, c], 0 * t[:, c], text, cache=cache, start=i))
            net(x[:, c], 0 * t[:, c], text, cache=cache, start=i, commit=2)
        return torch.cat(made, 1)

    masked, cached = net(x, t, text, visibility=block_causal((2, 2))), halves()
    net.blocks[0].compile(fullgraph=True, backend="eager")
    torch.testing.assert_close(net(x, t, text, visibility=block_causal((2, 2))), masked)
    torch.testing.assert_close(halves(), cached)


@pytest.mark.parametrize(
    ("option", "value"),
    [("image_dim", 1280), ("added_kv_proj_dim", 64), ("pos_embed_seq_len", 514), ("qk_norm", None)],
)
def test_what_is_not_built_is_refused_by_name(sizes: dict, option: str, value: object) -> None:
    with pytest.raises(NearstepError, match=option):
        VideoTransformer(**{**sizes, option: value})


def test_patches_that_join_frames_are_refused(sizes: dict) -> None:
    with pytest.raises(NearstepError, match="first entry must be 1"):
        VideoTransformer(**{**sizes, "patch_size": (2, 2, 2)})


def test_wrong_calls_say_what_is_wrong(net: VideoTransformer) -> None:
    x, t, text = inputs(net)
    with pytest.raises(NearstepError, match="multiples of 2 and 2"):
        net(x[..., :5], t, text)
    with pytest.raises(NearstepError, match="one time per frame"):
        net(x, t[:, :2], text)
    with pytest.raises(NearstepError, match="needs a cache"):
        net(x, t, text, commit=3)
    with pytest.raises(NearstepError, match="the text has 1"):
        net(x, t, net.text_keys(text[:1]))
    with pytest.raises(NearstepError, match="batch 3"):
        net(x, t, text, cache=net.new_cache(3, 3, 4, 6))
    with pytest.raises(NearstepError, match="visibility is for 4 frames"):
        net(x, t, text, visibility=block_causal((2, 2)))
    with pytest.raises(NearstepError, match="distance 65 is out of range"):
        net(x.repeat(1, 22, 1, 1, 1), t.repeat(1, 22), text)


def test_blocks_are_repeated_and_not_split() -> None:
    assert VideoTransformer._repeated_blocks == VideoTransformer._no_split_modules == [TransformerBlock.__name__]
