"""Causal laws of the network: cached equals masked, the future does not show, gradients stay in their chunk."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from nearstep.errors import NearstepError
from nearstep.nets import denoiser as denoisers
from nearstep.nets.cache import KVCache
from nearstep.nets.denoiser import TextDenoiser
from nearstep.nets.masks import block_causal, teacher_forcing
from nearstep.nets.transformer import VideoTransformer
from nearstep.reach import Reach

CHUNKS = [(3, 3, 3), (1, 3, 3), (1,) * 6, (2, 2, 2, 2, 1)]
REACH = [(None, 0), (4, 0), (3, 1), (5, 2)]
SINKS = [(0, False), (1, True), (1, False)]
HEIGHT, WIDTH = 4, 6


def network(window: int | None = None, sink: int = 0, layers: int = 2) -> VideoTransformer:
    torch.manual_seed(0)
    return (
        VideoTransformer(
            num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=10, freq_dim=16,
            ffn_dim=32, num_layers=layers, window_frames=window, sink_frames=sink,
        )
        .double()
        .eval()
    )  # fmt: skip


def clip(frames: int, batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(batch, frames, 4, HEIGHT, WIDTH, dtype=torch.float64)
    return x, torch.rand(batch, frames, dtype=torch.float64), torch.randn(batch, 5, 10, dtype=torch.float64)


def cached(
    net: VideoTransformer,
    lengths: tuple[int, ...],
    x: Tensor,
    t: Tensor,
    text: Tensor,
    clean: Tensor,
    reach: Reach | None = None,
) -> Tensor:
    """Chunk by chunk: velocity of x given the chunks of `clean` committed so far."""
    denoiser = TextDenoiser(net, text)
    cache = denoiser.new_cache(x.shape[0], x.shape[1], HEIGHT, WIDTH, reach=reach)
    out = []
    for part, times, context in zip(x.split(lengths, 1), t.split(lengths, 1), clean.split(lengths, 1), strict=True):
        out.append(denoiser(part, times, cache=cache, start=cache.end))
        denoiser.commit(context, cache=cache, start=cache.end)
    return torch.cat(out, 1)


@torch.no_grad()
@pytest.mark.parametrize(("window", "sink"), [(4, 1), (3, 2), (4, 4)])
@pytest.mark.parametrize("lengths", [(3, 3, 3, 3), (1, 3, 3, 3), (1,) * 9, (2,) * 6])
def test_cached_equals_masked_with_a_relative_sink(lengths: tuple[int, ...], window: int, sink: int) -> None:
    net = network()
    x, t, text = clip(sum(lengths))
    reach, fixed = (Reach(window=window, sink=sink, relative_sink=relative) for relative in (True, False))
    whole = net(x, 0 * t, text, visibility=block_causal(lengths, reach))
    assert not torch.allclose(whole, net(x, 0 * t, text, visibility=block_causal(lengths, fixed)))
    torch.testing.assert_close(cached(net, lengths, x, 0 * t, text, x, reach), whole, rtol=0, atol=1e-10)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize(("window", "sink"), REACH)
@pytest.mark.parametrize("lengths", CHUNKS)
def test_cached_equals_masked(lengths: tuple[int, ...], window: int | None, sink: int, grad: bool) -> None:
    net = network(window, sink)
    x, _, text = clip(sum(lengths))
    with torch.set_grad_enabled(grad):
        t = torch.zeros(x.shape[:2], dtype=torch.float64)
        whole = net(x, t, text, visibility=block_causal(lengths, net.reach))
        torch.testing.assert_close(cached(net, lengths, x, t, text, x), whole, rtol=0, atol=1e-10)


@torch.no_grad()
@pytest.mark.parametrize(("window", "sink"), REACH)
@pytest.mark.parametrize("lengths", CHUNKS)
def test_teacher_forced_equals_cached_on_clean_context(lengths: tuple[int, ...], window: int | None, sink: int) -> None:
    net = network(window, sink)
    noisy, t, text = clip(sum(lengths))
    clean = torch.randn_like(noisy)
    both = net(
        torch.cat([clean, noisy], 1),
        torch.cat([torch.zeros_like(t), t], 1),
        text,
        visibility=teacher_forcing(lengths, net.reach),
    )
    expected = cached(net, lengths, noisy, t, text, clean)
    torch.testing.assert_close(both[:, sum(lengths) :], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize(("window", "sink"), [(4, 1), (3, 2), (4, 4)])
@pytest.mark.parametrize("lengths", [(3, 3, 3, 3), (1, 3, 3, 3), (1,) * 9, (2,) * 6])
def test_teacher_forced_equals_cached_with_a_relative_sink(
    lengths: tuple[int, ...], window: int, sink: int, grad: bool
) -> None:
    net, reach = network(), Reach(window=window, sink=sink, relative_sink=True)
    noisy, t, text = clip(sum(lengths))
    clean = torch.randn_like(noisy)
    both, times = torch.cat([clean, noisy], 1), torch.cat([torch.zeros_like(t), t], 1)
    with torch.set_grad_enabled(grad):
        masked = net(both, times, text, visibility=teacher_forcing(lengths, reach))
        fixed = net(both, times, text, visibility=teacher_forcing(lengths, replace(reach, relative_sink=False)))
    with torch.no_grad():
        expected = cached(net, lengths, noisy, t, text, clean, reach)
    torch.testing.assert_close(masked[:, sum(lengths) :], expected, rtol=0, atol=1e-10)
    assert not torch.allclose(masked, fixed)


@torch.no_grad()
def test_two_chunks_in_one_cached_call_equal_two_calls() -> None:
    net = network(window=5, sink=1)
    x, t, text = clip(8)
    t[:] = 0
    whole = net(x, t, text, visibility=block_causal((2,) * 4, net.reach))
    cache = net.new_cache(2, 8, HEIGHT, WIDTH)
    pair = block_causal((2, 2), net.reach)
    halves = []
    for i in (0, 4):
        half = x[:, i : i + 4], t[:, i : i + 4], text
        halves.append(net(*half, visibility=pair, cache=cache, start=i))
        assert net(*half, visibility=pair, cache=cache, start=i, commit=4).shape[1] == 0
    torch.testing.assert_close(torch.cat(halves, 1), whole, rtol=0, atol=1e-10)


@torch.no_grad()
@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize(("window", "sink"), REACH)
@pytest.mark.parametrize("lengths", CHUNKS)
def test_a_fused_commit_is_a_commit_and_a_call(
    lengths: tuple[int, ...], window: int | None, sink: int, relative: bool
) -> None:
    net = network(window, sink)
    x, t, text = clip(sum(lengths))
    reach = Reach(window=window, sink=sink, relative_sink=relative)
    apart, fused = (net.new_cache(2, x.shape[1], HEIGHT, WIDTH, reach=reach) for _ in range(2))
    denoiser, before = TextDenoiser(net, text), None
    for part, times in zip(x.split(lengths, 1), t.split(lengths, 1), strict=True):
        start = apart.end + (0 if before is None else before.shape[1])
        if before is None:
            together = denoiser(part, times, cache=fused, start=start)
        else:
            denoiser.commit(before, cache=apart, start=apart.end)
            together = denoiser.commit_then(before, part, times, cache=fused, start=start)
        expected = denoiser(part, times, cache=apart, start=start)
        torch.testing.assert_close(together, expected, rtol=0, atol=1e-10)
        assert fused.positions == apart.positions
        again = denoiser(part, times, cache=fused, start=start)  # what was committed is what a commit writes
        torch.testing.assert_close(again, expected, rtol=0, atol=1e-10)
        before = part


@torch.no_grad()
@pytest.mark.parametrize(("largest", "calls"), [(10**6, 1), (1, 2)])
def test_a_large_commit_is_a_call_of_its_own_on_a_cpu(monkeypatch, largest: int, calls: int) -> None:
    monkeypatch.setattr(denoisers, "LARGEST_FUSED", largest)
    net, made = network(), []
    x, t, text = clip(4)
    cache, bound = net.new_cache(2, 4, HEIGHT, WIDTH), TextDenoiser(net, text)
    net.register_forward_hook(lambda *_: made.append(1))
    bound.commit_then(x[:, :2], x[:, 2:], t[:, 2:], cache=cache, start=2)
    assert len(made) == calls and cache.end == 2


@torch.no_grad()
def test_a_relative_sink_lies_just_before_the_window() -> None:
    # In one layer a frame's keys depend on the frame alone, so the past can be laid out anew as one short clip.
    net = network(layers=1)
    x, t, text = clip(40)
    cache = net.new_cache(2, None, HEIGHT, WIDTH, reach=Reach(window=6, sink=2, relative_sink=True))
    denoiser = TextDenoiser(net, text)
    for start in range(0, 40, 2):
        part, times = x[:, start : start + 2], t[:, start : start + 2]
        v = denoiser(part, times, cache=cache, start=start)
        seen = [*range(min(2, start)), *range(max(2, start - 4), start)]
        short = torch.cat([x[:, seen], part], 1), torch.cat([0 * t[:, seen], times], 1), text
        torch.testing.assert_close(v, net(*short)[:, -2:], rtol=0, atol=1e-10)
        denoiser.commit(part, cache=cache, start=start)


@torch.no_grad()
def test_an_endless_stream_passes_the_last_position_where_its_sink_is_relative() -> None:
    net = network()
    x, t, text = clip(2, batch=1)
    denoiser = TextDenoiser(net, text)
    caches = [net.new_cache(1, None, HEIGHT, WIDTH, reach=Reach(window=4, sink=s, relative_sink=f)) for s, f in SINKS]
    for cache in caches:
        for _ in range(515):  # of two frames; positions are 1024
            if cache is caches[-1] and cache.end == 1024:
                break
            denoiser.commit(x, cache=cache, start=cache.end)
    for cache in caches[:-1]:
        assert denoiser(x, t, cache=cache, start=cache.end).isfinite().all()
    with pytest.raises(NearstepError, match="distance 1025 is out of range"):
        denoiser(x, t, cache=caches[-1], start=1024)


@torch.no_grad()
@pytest.mark.parametrize("lengths", CHUNKS)
def test_the_future_does_not_show(lengths: tuple[int, ...]) -> None:
    net = network()
    x, t, text = clip(sum(lengths))
    seen = block_causal(lengths)
    before = net(x, t, text, visibility=seen)
    end = sum(lengths[:2])
    changed = x.clone()
    changed[:, end:] += 1
    after = net(changed, t, text, visibility=seen)
    assert torch.equal(after[:, :end], before[:, :end])
    assert (after[:, end:] - before[:, end:]).abs().amax(dim=(0, 2, 3, 4)).min() > 1e-3
    # and of two lengths: the shorter clip is the beginning of the longer
    short = net(x[:, :end], t[:, :end], text, visibility=block_causal(lengths[:2]))
    torch.testing.assert_close(short, before[:, :end], rtol=0, atol=1e-12)


@torch.no_grad()
def test_beyond_the_window_only_the_sink_shows() -> None:
    net = network()
    x, t, text = clip(8)
    seen = block_causal((2,) * 4, Reach(window=2, sink=1))
    before = net(x, t, text, visibility=seen)[:, 6:]
    for frames, shows in ((slice(0, 1), True), (slice(2, 6), False)):
        changed = x.clone()
        changed[:, frames] += 1
        after = net(changed, t, text, visibility=seen)[:, 6:]
        assert torch.equal(after, before) is not shows


def test_a_chunks_loss_reaches_no_earlier_chunk() -> None:
    net = network()
    lengths = (2, 2, 2)
    x, t, text = clip(6)
    parts = [part.clone().requires_grad_() for part in x.split(lengths, 1)]
    denoiser = TextDenoiser(net, text)
    cache = denoiser.new_cache(2, 6, HEIGHT, WIDTH, append_only=True)
    losses = []
    for part in parts:
        v = denoiser(part, t[:, :2], cache=cache, start=cache.end)
        losses.append(v.square().sum())
        denoiser.commit(part - v, cache=cache, start=cache.end)
    assert not any(buffer.requires_grad for buffer in (*cache.keys, *cache.values))
    for j, loss in enumerate(losses):
        grads = torch.autograd.grad(loss, parts, retain_graph=True, allow_unused=True)
        assert [grad is not None and bool(grad.any()) for grad in grads] == [i == j for i in range(3)]


def test_a_commit_under_grad_is_detached_too() -> None:
    net = network()
    x, t, text = clip(4)
    first = x[:, :2].clone().requires_grad_()
    cache = net.new_cache(2, 4, HEIGHT, WIDTH, append_only=True)
    assert net(first, t[:, :2], text, cache=cache, commit=2).requires_grad
    second = net(x[:, 2:], t[:, 2:], text, cache=cache, start=2)
    (grad,) = torch.autograd.grad(second.sum(), first, allow_unused=True)
    assert grad is None


@torch.no_grad()
def test_reads_change_nothing() -> None:
    net = network()
    x, t, text = clip(6)
    denoiser = TextDenoiser(net, text)
    cache = denoiser.new_cache(2, 6, HEIGHT, WIDTH)
    denoiser.commit(x[:, :3], cache=cache, start=0)
    held = [buffer[:, : 3 * 6].clone() for buffer in (*cache.keys, *cache.values)]
    first = denoiser(x[:, 3:], t[:, 3:], cache=cache, start=3)
    denoiser(torch.randn_like(x[:, 3:5]), t[:, 3:5], cache=cache, start=3)
    denoiser(x[:, 1:3], t[:, 1:3], cache=cache, start=1)  # a look back, at an earlier start
    assert cache.end == 3
    for before, after in zip(held, (*cache.keys, *cache.values), strict=True):
        assert torch.equal(before, after[:, : 3 * 6])
    assert torch.equal(denoiser(x[:, 3:], t[:, 3:], cache=cache, start=3), first)


@torch.no_grad()
def test_a_long_stream_needs_no_more_than_window_and_sink() -> None:
    net = network(window=4, sink=1)
    x, t, text = clip(20, batch=1)
    t[:] = 0
    cache = net.new_cache(1, 20, HEIGHT, WIDTH)
    assert cache.capacity_frames == 5
    lengths = (2,) * 10
    whole = net(x, t, text, visibility=block_causal(lengths, net.reach))
    torch.testing.assert_close(cached(net, lengths, x, t, text, x), whole, rtol=0, atol=1e-10)


def test_training_refuses_to_drop_frames() -> None:
    net = network(window=2)
    x, _, text = clip(4)
    denoiser = TextDenoiser(net, text)
    cache: KVCache = denoiser.new_cache(2, 2, HEIGHT, WIDTH, append_only=True)
    denoiser.commit(x[:, :2], cache=cache, start=0)
    with pytest.raises(NearstepError, match="append-only"):
        denoiser.commit(x[:, 2:], cache=cache, start=2)
    assert cache.end == 2


@torch.no_grad()
def test_a_cached_sample_does_not_depend_on_its_batch() -> None:
    net = network()
    x, t, text = clip(6, batch=3)
    together = cached(net, (3, 3), x, t, text, x)
    alone = cached(net, (3, 3), x[1:2], t[1:2], text[1:2], x[1:2])
    torch.testing.assert_close(together[1:2], alone, rtol=0, atol=1e-12)


def test_as_many_prompts_as_samples() -> None:
    denoiser = TextDenoiser(network(), clip(1)[2])
    with pytest.raises(NearstepError, match="needs 3 prompts, not 2"):
        denoiser.new_cache(3, 1, HEIGHT, WIDTH)
