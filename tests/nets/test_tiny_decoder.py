"""The tiny decoder: published names, streamed equals whole, and agreement with a plain restatement."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import conv2d, interpolate, relu

from nearstep.errors import NearstepError
from nearstep.nets.tiny_decoder import TinyDecoder

SIZES = dict(channels=4, widths=(12, 8, 6, 6))
PLACES = (3, 4, 5, 9, 10, 11, 15, 16, 17)  # of the memory blocks in the published file


@pytest.fixture(scope="module", params=[1, 2], ids=["plain", "patched"])
def tiny(request) -> TinyDecoder:
    torch.manual_seed(0)
    return TinyDecoder(**SIZES, patch=request.param).eval().requires_grad_(False)


def latents_of(frames: int = 5, batch: int = 2) -> Tensor:
    return 2 * torch.randn(batch, frames, 4, 3, 5, generator=torch.Generator().manual_seed(1))


def restated(state: dict[str, Tensor], clip: Tensor, patch: int) -> Tensor:
    """One clip [F, C, h, w], layer by layer over all of its frames, from the weights alone."""

    def conv(x: Tensor, name: str) -> Tensor:
        weight = state[f"decoder.{name}.weight"]
        return conv2d(x, weight, state.get(f"decoder.{name}.bias"), padding=weight.shape[-1] // 2)

    x = relu(conv(torch.tanh(clip / 3) * 3, "1"))
    for stage, frames in enumerate((1, 2, 2)):
        for block in (3, 4, 5):
            name = f"{6 * stage + block}.conv"
            shifted = torch.cat([torch.zeros_like(x[:1]), x[:-1]])
            inner = relu(conv(relu(conv(torch.cat([x, shifted], 1), f"{name}.0")), f"{name}.2"))
            x = relu(x + conv(inner, f"{name}.4"))
        x = interpolate(x, scale_factor=2, mode="nearest")
        grown = conv(x, f"{6 * stage + 7}.conv")
        x = torch.stack(grown.chunk(frames, dim=1), dim=1).flatten(0, 1)
        x = conv(x, str(6 * stage + 8))
    x = conv(relu(x), "22")
    picture = x.new_zeros(len(x), 3, x.shape[-2] * patch, x.shape[-1] * patch)
    for row in range(patch):
        for column in range(patch):
            picture[..., row::patch, column::patch] = x[:, row * patch + column :: patch**2]
    return picture[3:].clamp(0, 1)


def test_agrees_with_a_restatement_of_the_whole_clip(tiny: TinyDecoder) -> None:
    latents, state = latents_of(), tiny.state_dict()
    expected = torch.stack([restated(state, clip, tiny.patch) for clip in latents])
    video = tiny.decode(latents)
    assert video.shape == (2, 17, 3, 3 * tiny.spatial_stride, 5 * tiny.spatial_stride)
    assert video.std() > 0 and tiny.spatial_stride == 8 * tiny.patch
    torch.testing.assert_close(video, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("lengths", [(1, 1, 1, 1, 1), (3, 2), (1, 4)], ids=str)
def test_streamed_is_bit_equal_to_whole(tiny: TinyDecoder, lengths: tuple[int, ...], dtype: torch.dtype) -> None:
    latents = latents_of()
    tiny.to(dtype)
    try:
        whole, stream, other = tiny.decode(latents), tiny.stream(), tiny.stream()
        parts = []
        for chunk in latents.split(lengths, dim=1):
            parts.append(stream.decode(chunk))
            other.decode(-chunk)  # beside it, on the same weights
        assert torch.equal(torch.cat(parts, dim=1), whole)
        assert stream.frames == 5 and whole.dtype == torch.float32
    finally:
        tiny.to(torch.float32)


def test_names_and_shapes_are_the_published_ones() -> None:
    """taew2_1: 16 latent channels, widths 256, 128, 64, 64 (madebyollin/taehv, taehv.py)."""
    shapes = {name: tuple(tensor.shape) for name, tensor in TinyDecoder().state_dict().items()}
    widths = dict(zip(PLACES, [256] * 3 + [128] * 3 + [64] * 3, strict=True))
    expected = {"decoder.1.weight": (256, 16, 3, 3), "decoder.1.bias": (256,)}
    for place, width in widths.items():
        for conv, source in (("0", 2 * width), ("2", width), ("4", width)):
            expected[f"decoder.{place}.conv.{conv}.weight"] = (width, source, 3, 3)
            expected[f"decoder.{place}.conv.{conv}.bias"] = (width,)
    grown = {7: (256, 256), 13: (256, 128), 19: (128, 64)}
    expected |= {f"decoder.{place}.conv.weight": (*shape, 1, 1) for place, shape in grown.items()}
    joined = {8: (128, 256), 14: (64, 128), 20: (64, 64), 22: (3, 64)}
    expected |= {f"decoder.{place}.weight": (*shape, 3, 3) for place, shape in joined.items()}
    assert shapes == expected | {"decoder.22.bias": (3,)}


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_loads_a_file_and_leaves_its_encoder_out(tiny: TinyDecoder, suffix: str, tmp_path: Path) -> None:
    state = tiny.state_dict() | {"encoder.0.weight": torch.zeros(6, 3, 3, 3)}
    path = tmp_path / f"tiny{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    loaded = TinyDecoder.from_file(path)
    assert torch.equal(loaded.decode(latents_of()), tiny.decode(latents_of()))


def spoilt(tiny: TinyDecoder, change) -> dict[str, Tensor]:
    state = dict(tiny.state_dict())
    change(state)
    return state


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.clear(), "no TAEHV decoder"),
        (lambda s: s.pop("decoder.22.weight"), "no TAEHV decoder.*decoder.22.weight"),
        (lambda s: s.pop("decoder.4.conv.2.bias"), "no TAEHV decoder.*decoder.4.conv.2.bias"),
        (lambda s: s.update({"decoder.23.weight": torch.zeros(1)}), "no TAEHV decoder.*decoder.23"),
        (lambda s: s.update({"decoder.7.conv.weight": torch.zeros(24, 12, 1, 1)}), "grow into 8 pixel frames"),
    ],
    ids=["nothing", "no output", "a missing bias", "one layer more", "another stride"],
)
def test_other_files_are_one_line(tiny: TinyDecoder, change, message: str, tmp_path: Path) -> None:
    path = tmp_path / "tiny.safetensors"
    save_file(spoilt(tiny, change), path)
    with pytest.raises(NearstepError, match=message) as caught:
        TinyDecoder.from_file(path)
    assert "\n" not in str(caught.value)


def test_files_that_are_none_are_one_line(tmp_path: Path) -> None:
    for name, content in (("a.safetensors", b"version https://git-lfs"), ("a.pth", b"not a pickle"), ("b.pth", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(NearstepError, match="no .safetensors or .pth file of tensors"):
            TinyDecoder.from_file(tmp_path / name)
    for number, content in enumerate([{1: torch.ones(2)}, {"decoder.1.weight": 3}, [("decoder.1.weight", None)]]):
        torch.save(content, tmp_path / f"{number}.pth")
        with pytest.raises(NearstepError, match="holds other things than tensors by name"):
            TinyDecoder.from_file(tmp_path / f"{number}.pth")
    for name in ("none.pth", "none.safetensors"):
        with pytest.raises(NearstepError, match="cannot read the tiny decoder"):
            TinyDecoder.from_file(tmp_path / name)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.pth")
    with pytest.raises(NearstepError, match="no regular file"):
        TinyDecoder.from_file(tmp_path / "a.pth")


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "harm",))

    torch.save({"decoder.1.weight": Harm()}, tmp_path / "harm.pth")
    with pytest.raises(NearstepError, match="no .safetensors or .pth file of tensors"):
        TinyDecoder.from_file(tmp_path / "harm.pth")
    assert not (tmp_path / "harm").exists()


def test_other_latents_are_named(tiny: TinyDecoder) -> None:
    with pytest.raises(NearstepError, match="reads 4 latent channels, got 16"):
        tiny.decode(torch.zeros(1, 1, 16, 3, 5))
