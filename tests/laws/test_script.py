"""Laws of prompts that take turns: the same masked and cached, and nothing but the prompt that holds is read."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nearstep.errors import NearstepError
from nearstep.nets.denoiser import TextDenoiser
from nearstep.nets.masks import block_causal, full, teacher_forcing
from nearstep.nets.script import Script, encoded, with_negative
from nearstep.nets.transformer import VideoTransformer

HEIGHT, WIDTH = 4, 6
LENGTHS, STARTS = (3, 3, 3), (3, 6)


def network() -> VideoTransformer:
    torch.manual_seed(0)
    return (
        VideoTransformer(
            num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=10, freq_dim=16,
            ffn_dim=32, num_layers=2, chunk_frames=3,
        )
        .double()
        .eval()
    )  # fmt: skip


def clip(frames: int = 9, batch: int = 2, prompts: int = 3) -> tuple[Tensor, Tensor, Script]:
    x = torch.randn(batch, frames, 4, HEIGHT, WIDTH, dtype=torch.float64)
    features = torch.randn(batch, prompts, 5, 10, dtype=torch.float64)
    return x, torch.rand(batch, frames, dtype=torch.float64), Script(features, STARTS[: prompts - 1])


@torch.no_grad()
def test_one_prompt_all_along_is_a_prompt() -> None:
    net = network()
    x, t, script = clip(prompts=1)
    same = Script(script.features.expand(-1, 3, -1, -1), STARTS)
    expected = net(x, t, script.features[:, 0])
    for text in (script, same, net.text_keys(same)):
        torch.testing.assert_close(net(x, t, text), expected, rtol=0, atol=1e-12)


@torch.no_grad()
def test_repeated_keys_are_the_keys_of_repeated_clips() -> None:
    net = network()
    _, _, script = clip()
    many = Script(script.features.repeat_interleave(3, dim=0), script.starts)
    for one, other in zip(net.text_keys(script).repeated(3).layers, net.text_keys(many).layers, strict=True):
        for part, expected in zip(one, other, strict=True):
            torch.testing.assert_close(part, expected, rtol=0, atol=1e-12)


@torch.no_grad()
def test_cached_under_a_script_equals_masked_and_every_chunk_reads_its_own_prompt() -> None:
    net = network()
    x, t, script = clip()
    clean = torch.randn_like(x)
    both = torch.cat([clean, x], 1), torch.cat([0 * t, t], 1)
    masked = net(*both, script, visibility=teacher_forcing(LENGTHS))[:, 9:]
    under_script = TextDenoiser(net, script)
    cache, bare = (under_script.new_cache(2, 9, HEIGHT, WIDTH) for _ in range(2))
    for number, part in enumerate(masked.split(3, 1)):
        rows = slice(3 * number, 3 * number + 3)
        start = 3 * number
        torch.testing.assert_close(
            under_script(x[:, rows], t[:, rows], cache=cache, start=start), part, rtol=0, atol=1e-10
        )
        own = TextDenoiser(net, script.features[:, number])  # as a stream does it, prompt by prompt
        torch.testing.assert_close(own(x[:, rows], t[:, rows], cache=bare, start=start), part, rtol=0, atol=1e-10)
        under_script.commit(clean[:, rows], cache=cache, start=start)
        own.commit(clean[:, rows], cache=bare, start=start)


@torch.no_grad()
def test_a_fused_commit_reads_both_prompts() -> None:
    net = network()
    x, t, script = clip()
    denoiser = TextDenoiser(net, script)
    apart, fused = (denoiser.new_cache(2, 9, HEIGHT, WIDTH) for _ in range(2))
    denoiser.commit(x[:, :3], cache=apart, start=0)
    expected = denoiser(x[:, 3:6], t[:, 3:6], cache=apart, start=3)
    together = denoiser.commit_then(x[:, :3], x[:, 3:6], t[:, 3:6], cache=fused, start=3)
    torch.testing.assert_close(together, expected, rtol=0, atol=1e-10)


@torch.no_grad()
@pytest.mark.parametrize("visibility", [full(9), block_causal(LENGTHS)])
def test_a_prompt_shows_where_it_is_read_and_where_that_is_seen(visibility) -> None:
    net = network()
    x, t, script = clip()
    other = script.features.clone()
    other[:, 1] += 1
    moved = (net(x, t, Script(other, STARTS), visibility=visibility) - net(x, t, script, visibility=visibility)).abs()
    by_chunk = moved.unflatten(1, (3, 3)).amax(dim=(0, 2, 3, 4, 5)) > 0
    sees_later = visibility == full(9)
    assert by_chunk.tolist() == [sees_later, True, True]


def test_gradients_reach_every_prompt_and_checkpointing_changes_none() -> None:
    net = network()
    x, t, script = clip()

    def gradient() -> Tensor:
        features = script.features.clone().requires_grad_()
        net(x, t, Script(features, STARTS)).square().sum().backward()
        assert features.grad is not None
        return features.grad

    plain = gradient()
    assert bool((plain.abs().amax(dim=(2, 3)) > 0).all())
    net.train().enable_gradient_checkpointing()
    torch.testing.assert_close(gradient(), plain, rtol=0, atol=1e-12)


def test_both_halves_of_guidance_under_a_script() -> None:
    def encode(prompts: list[str]) -> Tensor:
        return torch.stack([torch.full((5, 10), float(len(prompt))) for prompt in prompts])

    text = encoded(encode, [("a", "bb"), ("ccc", "dddd")], (3,), 9)
    assert isinstance(text, Script)
    assert text.features[..., 0, 0].tolist() == [[1.0, 2.0], [3.0, 4.0]]
    short = encoded(encode, [("a", "bb"), ("ccc", "dddd")], (3,), 3)
    assert isinstance(short, Tensor)
    assert short[:, 0, 0].tolist() == [1.0, 3.0]
    both = with_negative(text, encode, "12345")
    assert isinstance(both, Script)
    assert both.features[..., 0, 0].tolist() == [[1.0, 2.0], [3.0, 4.0], [5.0, 5.0], [5.0, 5.0]]
    plain = with_negative(encode(["a", "bb"]), encode, "")
    assert plain[:, 0, 0].tolist() == [1.0, 2.0, 0.0, 0.0]


@pytest.mark.parametrize("starts", [(3,), (6, 3), (0, 3), (3, 3), (3, 6, 9)])
def test_a_script_has_a_start_for_every_prompt_but_the_first(starts) -> None:
    with pytest.raises(NearstepError, match="a script of 3 prompts"):
        Script(torch.randn(2, 3, 5, 10), starts)
