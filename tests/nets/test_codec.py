"""The codec's laws: streams equal the whole decode, streams do not disturb each other, and diffusers agrees."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKLWan

from nearstep.errors import NearstepError
from nearstep.nets.codec import VideoCodec

WAN = dict(base_dim=8, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True])
PATCHED = dict(base_dim=8, decoder_base_dim=8, z_dim=8, dim_mult=[1, 2, 2], num_res_blocks=1,
               temperal_downsample=[True, True], in_channels=12, out_channels=12, patch_size=2)  # fmt: skip
CUTS = [(3, 3, 3), (1, 3, 3, 2), (1,) * 9, (9,), (2, 7)]


@pytest.fixture(scope="module", params=[WAN, PATCHED], ids=["wan", "patched"])
def codec(request) -> VideoCodec:
    torch.manual_seed(0)
    channels = request.param["z_dim"]
    statistics = dict(latents_mean=torch.randn(channels).tolist(), latents_std=(torch.rand(channels) + 0.5).tolist())
    return VideoCodec(AutoencoderKLWan(**request.param, **statistics)).eval().requires_grad_(False)


def latents_of(codec: VideoCodec, frames: int = 9, batch: int = 2, seed: int = 1) -> torch.Tensor:
    return torch.randn(batch, frames, codec.channels, 4, 3, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("lengths", CUTS, ids=str)
def test_streamed_is_bit_equal_to_whole(codec: VideoCodec, lengths: tuple[int, ...]) -> None:
    latents, stream = latents_of(codec), codec.stream()
    streamed = torch.cat([stream.decode(chunk) for chunk in latents.split(lengths, dim=1)], dim=1)
    assert torch.equal(streamed, codec.decode(latents))
    assert stream.frames == 9


def test_streams_share_a_codec_without_mixing(codec: VideoCodec) -> None:
    clips = [latents_of(codec, batch=1, seed=seed) for seed in (1, 2)]
    streams, outputs = [codec.stream(), codec.stream()], [[], []]
    for start in range(0, 9, 3):
        for clip, stream, output in zip(clips, streams, outputs, strict=True):
            output.append(stream.decode(clip[:, start : start + 3]))
    for clip, output in zip(clips, outputs, strict=True):
        assert torch.equal(torch.cat(output, dim=1), codec.decode(clip))


def test_decode_agrees_with_diffusers(codec: VideoCodec) -> None:
    latents = latents_of(codec)
    config = codec.vae.config
    mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1) for v in (config.latents_mean, config.latents_std))
    theirs = codec.vae.decode(latents.transpose(1, 2) * std + mean).sample
    torch.testing.assert_close(codec.decode(latents) * 2 - 1, theirs.transpose(1, 2), atol=2e-6, rtol=0)


def test_encode_agrees_with_diffusers_and_is_normalised(codec: VideoCodec) -> None:
    video = torch.rand(1, 9, 3, 16, 32, generator=torch.Generator().manual_seed(3))
    latents = codec.encode(video)
    assert latents.shape == (1, 3, codec.channels, 2, 4)
    raw = codec.vae.encode(video.transpose(1, 2) * 2 - 1).latent_dist.mode()
    torch.testing.assert_close(codec.denormalise(latents), raw, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("frames", [1, 9])
def test_its_faster_first_frame_is_what_an_untouched_network_makes(codec: VideoCodec, frames: int) -> None:
    untouched = AutoencoderKLWan.from_config(codec.vae.config)
    untouched.load_state_dict(codec.vae.state_dict())
    video = torch.rand(1, frames, 3, 16, 32, generator=torch.Generator().manual_seed(5)) * 2 - 1
    with torch.no_grad():
        latents = untouched.encode(video.transpose(1, 2)).latent_dist.mode()
        pixels = untouched.decode(latents).sample
        torch.testing.assert_close(codec.vae.encode(video.transpose(1, 2)).latent_dist.mode(), latents)
        torch.testing.assert_close(codec.vae.decode(latents).sample, pixels, atol=2e-6, rtol=0)


def test_causal_in_time(codec: VideoCodec) -> None:
    latents = latents_of(codec)
    changed = latents.clone()
    changed[:, 5:] += 1
    before, after = codec.decode(latents), codec.decode(changed)
    assert torch.equal(before[:, :17], after[:, :17])  # 5 latent frames are 17 pixel frames
    assert not torch.equal(before[:, 17:], after[:, 17:])


def test_gradients_reach_video_and_latents(codec: VideoCodec) -> None:
    video = torch.rand(1, 5, 3, 16, 16, requires_grad=True)
    posterior = codec.posterior(video)
    (posterior.sample(torch.Generator().manual_seed(0)).sum() + posterior.kl().sum()).backward()
    assert video.grad is not None and video.grad.abs().sum() > 0
    latents = latents_of(codec, frames=2).requires_grad_()
    codec.decode(latents).square().sum().backward()
    assert latents.grad is not None and latents.grad.abs().sum() > 0


def test_range_and_shapes(codec: VideoCodec) -> None:
    video = codec.decode(latents_of(codec) * 10)
    stride = codec.spatial_stride
    assert video.shape == (2, 33, 3, 4 * stride, 3 * stride)
    assert video.min() >= 0 and video.max() <= 1


def test_saved_and_loaded_is_the_same_codec(codec: VideoCodec, tmp_path) -> None:
    codec.save_pretrained(tmp_path)
    loaded = VideoCodec.from_pretrained(tmp_path)
    assert torch.equal(loaded.decode(latents_of(codec)), codec.decode(latents_of(codec)))


@pytest.mark.parametrize(
    ("size", "message"), [((8, 16, 16), "use 5 or 9"), ((9, 20, 16), "height=20"), ((9, 16, 0), "width=0")]
)
def test_bad_sizes_name_the_field(codec: VideoCodec, size: tuple[int, int, int], message: str) -> None:
    with pytest.raises(NearstepError, match=message):
        codec.latent_shape(*size)
    with pytest.raises(NearstepError, match=message):
        codec.encode(torch.zeros(1, size[0], 3, size[1], size[2]))


def test_other_temporal_strides_are_refused() -> None:
    with pytest.raises(NearstepError, match="temperal_downsample"):
        VideoCodec(AutoencoderKLWan(**{**WAN, "temperal_downsample": [False, False, True]}))
