"""FLOPs in closed form against torch's counter, and against the published sizes of Wan2.1."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKLWan
from transformers import UMT5Config, UMT5EncoderModel

from nearstep.cost.flops import call_flops, counter, decode_flops, on_meta, text_encoder_flops, text_keys_flops
from nearstep.models.wan import SIZES
from nearstep.nets.codec import VideoCodec
from nearstep.nets.denoiser import TextDenoiser
from nearstep.nets.tiny_decoder import TinyDecoder
from nearstep.nets.transformer import VideoTransformer
from nearstep.reach import Reach

HEIGHT, WIDTH, TEXT = 4, 6, 5
WAN = dict(height=60, width=104, text=512)
TERA = 1e12


def network(**options) -> VideoTransformer:
    return VideoTransformer(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=10, freq_dim=16,
        ffn_dim=40, num_layers=3, chunk_frames=2, **options,
    ).eval()  # fmt: skip


def counted(function, *arguments, **options) -> int:
    with torch.no_grad(), counter() as count:
        function(*arguments, **options)
    return count.get_total_flops()


@pytest.mark.parametrize(("window", "sink"), [(None, 0), (3, 0), (3, 2)])
@pytest.mark.parametrize("batch", [1, 2])
def test_calls_cost_what_torch_counts(window: int | None, sink: int, batch: int) -> None:
    net = network(window_frames=window, sink_frames=sink)
    shape = dict(height=HEIGHT, width=WIDTH, text=TEXT, batch=batch, reach=Reach(window=window, sink=sink))
    text = torch.randn(batch, TEXT, 10)
    assert counted(net.text_keys, text) == text_keys_flops(net.config, TEXT, batch)
    denoiser = TextDenoiser(net, text)
    cache = denoiser.new_cache(batch, 12, HEIGHT, WIDTH)
    x, t = torch.randn(batch, 2, 4, HEIGHT, WIDTH), torch.ones(batch, 2)
    for start in (0, 2, 4):
        step = counted(denoiser, x, t, cache=cache, start=start)
        assert step == call_flops(net.config, lengths=(2,), start=start, **shape).total
        commit = counted(denoiser.commit, x, cache=cache, start=start)
        assert commit == call_flops(net.config, lengths=(2,), start=start, commit=2, **shape).total
        assert commit < step
    fused = counted(denoiser.commit_then, x, x, t, cache=cache, start=8)
    assert fused == call_flops(net.config, lengths=(2, 2), start=6, commit=2, **shape).total


def test_a_bidirectional_call_costs_what_torch_counts() -> None:
    net = network()
    x, t, text = torch.randn(1, 5, 4, HEIGHT, WIDTH), torch.ones(1, 5), torch.randn(1, TEXT, 10)
    keys = net.text_keys(text)
    made = call_flops(net.config, lengths=(5,), height=HEIGHT, width=WIDTH, text=TEXT)
    assert counted(net, x, t, keys) == made.total


def test_text_encoders_cost_what_torch_counts() -> None:
    config = UMT5Config(vocab_size=9, d_model=16, d_kv=6, d_ff=20, num_layers=2, num_heads=3, dropout_rate=0.0)
    encoder, ids = UMT5EncoderModel(config).eval(), torch.ones(2, 7, dtype=torch.long)
    assert counted(encoder, input_ids=ids) == text_encoder_flops(config.to_dict(), 7, 2)


@pytest.mark.parametrize("kind", ["codec", "tiny"])
def test_decoders_cost_what_torch_counts_and_compute_nothing(kind: str) -> None:
    decoder = TinyDecoder(channels=4, widths=(8, 8, 8, 8))
    if kind == "codec":
        vae = AutoencoderKLWan(base_dim=8, z_dim=4, dim_mult=[1, 1, 1], num_res_blocks=1, latents_mean=[0.0] * 4,
                               latents_std=[1.0] * 4, temperal_downsample=[True, True])  # fmt: skip
        decoder = VideoCodec(vae).eval()
    stream = decoder.stream()
    expected = [counted(stream.decode, torch.zeros(1, frames, 4, 4, 6)) for frames in (1, 2, 2)]
    assert decode_flops(decoder, (1, 2, 2), channels=4, height=4, width=6) == expected
    assert all(tensor.is_meta for tensor in on_meta(decoder).parameters())
    assert not any(tensor.is_meta for tensor in decoder.parameters())


def test_wan_costs_what_is_published() -> None:
    """The floor's figures: 11.7 TF linear, 0.44 text, 4.04 (context / 3 + 1) among frames; 16.2 to 40.4 in all."""
    first, last = (call_flops(SIZES["1.3B"], lengths=(3,), start=start, **WAN) for start in (0, 18))
    assert first.linear / TERA == pytest.approx(11.7, abs=0.05)
    assert first.text / TERA == pytest.approx(0.44, abs=0.005)
    assert first.frames / TERA == pytest.approx(4.04, abs=0.005) and last.frames == 7 * first.frames
    assert (first.total / TERA, last.total / TERA) == pytest.approx((16.2, 40.4), abs=0.05)


@pytest.mark.parametrize(("steps", "milliseconds"), [([4] * 7, 1254), ([4] + [2] * 6, 793), ([4] + [1] * 6, 563)])
def test_wan_plans_cost_what_is_published(steps: list[int], milliseconds: float) -> None:
    """At 790 TFLOP/s and with a commit of every chunk; ours leaves the last one out."""
    config, starts = SIZES["1.3B"], range(0, 21, 3)
    calls = [call_flops(config, lengths=(3,), start=start, **WAN).total for start in starts]
    made = sum((n + 1) * call for n, call in zip(steps, calls, strict=True))
    assert made / 790e12 * 1e3 == pytest.approx(milliseconds, rel=0.002)
    commits = [call_flops(config, lengths=(3,), commit=3, start=start, **WAN).total for start in starts]
    assert sum(commits[:-1]) < sum(calls[:-1])


def test_decoders_of_wans_size_cost_what_is_published() -> None:
    """A chunk after the first, 480 x 832: the codec 40.65 TF, TAEHV 1.63 TF."""
    with torch.device("meta"):
        decoders = VideoCodec(AutoencoderKLWan()), TinyDecoder()
    costs = [decode_flops(one, (3, 3), channels=16, height=60, width=104)[1] / TERA for one in decoders]
    assert costs == pytest.approx([40.65, 1.63], abs=0.005)


def test_a_fused_call_costs_the_sum_of_its_halves() -> None:
    """It saves a call, not FLOPs."""
    config = SIZES["1.3B"]
    fused = call_flops(config, lengths=(3, 3), commit=3, start=0, **WAN)
    commit = call_flops(config, lengths=(3,), commit=3, start=0, **WAN)
    step = call_flops(config, lengths=(3,), start=3, **WAN)
    assert fused.frames == commit.frames + step.frames and fused.text == commit.text + step.text
    assert 0 <= fused.linear - commit.linear - step.linear < 1e-4 * fused.linear  # times of frames, not of a chunk
