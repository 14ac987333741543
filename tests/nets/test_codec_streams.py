"""Tiled, narrow and encoding streams: bit-equal to the whole however a clip is cut, and no seams."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKLWan

from nearstep.errors import NearstepError
from nearstep.nets import tiles
from nearstep.nets.codec import VideoCodec

WAN = dict(base_dim=8, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True])
PATCHED = dict(base_dim=8, decoder_base_dim=8, z_dim=8, dim_mult=[1, 2, 2], num_res_blocks=1,
               temperal_downsample=[True, True], in_channels=12, out_channels=12, patch_size=2)  # fmt: skip


@pytest.fixture(params=[WAN, PATCHED], ids=["wan", "patched"])
def codec(request) -> VideoCodec:
    torch.manual_seed(0)
    channels = request.param["z_dim"]
    statistics = dict(latents_mean=torch.randn(channels).tolist(), latents_std=(torch.rand(channels) + 0.5).tolist())
    return VideoCodec(AutoencoderKLWan(**request.param, **statistics)).eval().requires_grad_(False)


def tiled(codec: VideoCodec, size: int, overlap: int) -> VideoCodec:
    codec.vae.enable_tiling(size, size, size - overlap, size - overlap)
    return codec


def waves(codec: VideoCodec, frames: int = 3, height: int = 6, width: int = 10) -> torch.Tensor:
    """Latents that change slowly over time and place."""
    t, y, x = (torch.linspace(0, 3, n) for n in (frames, height, width))
    phases = torch.arange(codec.channels).view(1, -1, 1, 1)
    return torch.sin(t.view(-1, 1, 1, 1) + y.view(-1, 1) + x + phases)[None]


def in_parts(decode, x: torch.Tensor, lengths: tuple[int, ...]) -> torch.Tensor:
    return torch.cat([decode(part) for part in x.split(lengths, dim=1)], dim=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [None, 32], ids=["whole", "tiled"])
def test_a_stream_is_bit_equal_to_the_whole(codec, size: int | None, dtype: torch.dtype) -> None:
    codec = tiled(codec.to(dtype), size, 16) if size else codec.to(dtype)
    latents = waves(codec)
    whole = codec.decode(latents)
    for lengths in ((1, 1, 1), (2, 1)):
        assert torch.equal(in_parts(codec.stream().decode, latents, lengths), whole)
    assert whole.dtype == torch.float32 and whole.shape == (1, 9, 3, 48, 80)


def test_one_tile_is_no_tiling(codec) -> None:
    latents = waves(codec, frames=2)
    plain = codec.decode(latents)
    assert torch.equal(tiled(codec, 80, 16).decode(latents), plain)
    assert not torch.equal(tiled(codec, 32, 16).decode(latents), plain)


@pytest.mark.parametrize("codec", [WAN], indirect=True, ids=["wan"])
def test_no_seams_on_smooth_latents(codec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blended, the picture steps no more where tiles meet than elsewhere; cut hard, it does."""
    latents = waves(codec, frames=2)
    smooth = steps(tiled(codec, 32, 16).decode(latents, clamp=False))
    monkeypatch.setattr(tiles, "weights", lambda places: {span: hard(span) for span in places})
    rough = steps(codec.decode(latents, clamp=False))
    assert smooth < 1.3 and rough > 2 * smooth


def hard(span: tuple[int, int]) -> torch.Tensor:
    """Weights of tiles that do not blend: each shows its middle."""
    weight, shared = torch.ones(span[1] - span[0], dtype=torch.float64), (span[1] - span[0]) // 4
    weight[: shared if span[0] else 0] = 0
    weight[-shared:] *= 0 if span[1] < 48 else 1
    return weight


def steps(video: torch.Tensor) -> float:
    """Mean step across the row where hard tiles of 32 that share 16 meet, in units of the step between other latents.

    Between latents only, because an untrained decoder draws a pattern of its own inside each.
    """
    step = (video[..., 1:, :] - video[..., :-1, :]).abs().mean((0, 1, 2, 4))
    return float(step[23] / step[[7, 15, 31, 39]].mean())


def test_tiles_that_share_what_a_decoder_sees_make_the_same_picture(codec) -> None:
    """Without its one global layer a decoder sees some latents far; tiles that share as many differ nowhere else."""
    torch.nn.init.zeros_(codec.vae.decoder.mid_block.attentions[0].proj.weight)
    torch.nn.init.zeros_(codec.vae.decoder.mid_block.attentions[0].proj.bias)
    latents = waves(codec, frames=1, height=4, width=39)
    plain = codec.decode(latents, clamp=False)
    errors = [(tiled(codec, 160, overlap).decode(latents, clamp=False) - plain).abs() for overlap in (8, 80)]
    assert errors[1].mean() < 0.02 * plain.std() < errors[0].mean()


def test_narrow_decoding_is_near_the_wide_one(codec) -> None:
    latents = waves(codec)
    wide = codec.decode(latents)
    narrow = codec.to(torch.bfloat16).decode(latents)
    assert 0 < (narrow - wide).abs().mean() < 0.01


@pytest.mark.parametrize("size", [None, 32], ids=["whole", "tiled"])
def test_an_encoding_stream_is_bit_equal_to_the_whole(codec, size: int | None) -> None:
    if size:
        tiled(codec, size, 16)
    video = torch.rand(2, 9, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    whole = codec.encode(video)
    for lengths in ((1, 4, 4), (5, 4)):
        stream = codec.encoder_stream()
        assert torch.equal(in_parts(stream.encode, video, lengths), whole)
    assert stream.frames == 3 and whole.shape[:3] == (2, 3, codec.channels)


def test_mistakes_are_one_line(codec) -> None:
    stream = codec.stream()
    stream.decode(waves(codec, frames=1))
    with pytest.raises(NearstepError, match="6 x 10 latents a frame, got 6 x 4; open a stream"):
        stream.decode(waves(codec, frames=1, width=4))
    encoder = codec.encoder_stream()
    with pytest.raises(NearstepError, match="num_frames=4"):
        encoder.encode(torch.rand(1, 4, 3, 32, 32))
    encoder.encode(torch.rand(1, 5, 3, 32, 32))
    with pytest.raises(NearstepError, match="5 frames go on"):
        encoder.encode(torch.rand(1, 5, 3, 32, 32))
    codec.vae.enable_tiling(60, 60, 30, 30)
    with pytest.raises(NearstepError, match="multiples of"):
        codec.decode(waves(codec, frames=1))
