"""A tiny video decoder: previews at a few per cent of the codec's work.

The architecture is TAEHV's (madebyollin/taehv, ``taehv.py``: ``TAEHV.decoder``), with the names of its published
weights, so that ``taew2_1`` for Wan 2.1 loads unchanged. All convolutions are of single frames; what a frame knows of
the past is the frame before it, in every :class:`MemoryBlock`. Each latent frame grows into four pixel frames; the
codec's first latent frame is one picture, so the first three pixel frames of a clip are dropped.

It reads NORMALISED latents, those the network makes: its author trained it on "exactly what diffusion models use",
without the codec's ``latents_mean`` and ``latents_std`` (the repository's readme, on diffusers).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from einops import rearrange
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle

from nearstep.errors import NearstepError
from nearstep.files import check_regular
from nearstep.shapes import TEMPORAL_STRIDE

WIDTHS = (256, 128, 64, 64)
GROWTH = (1, 2, 2)  # pixel frames that each stage makes of a frame


class MemoryBlock(nn.Module):
    """A residual block that sees the frame before beside its own."""

    def __init__(self, source: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            _conv(2 * source, width), nn.ReLU(), _conv(width, width), nn.ReLU(), _conv(width, width)
        )
        self.skip = nn.Conv2d(source, width, 1, bias=False) if source != width else nn.Identity()

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        """Frames x [N, C, h, w] and the frame before each of them."""
        return (self.conv(torch.cat([x, before], dim=1)) + self.skip(x)).relu()


class TimeGrowth(nn.Module):
    """Makes ``stride`` frames of each."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(width, width * stride, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, h, w] -> [N * stride, C, h, w], a frame's own beside each other."""
        return rearrange(self.conv(x), "n (s c) h w -> (n s) c h w", s=self.stride)


class SoftClamp(nn.Module):
    """Latents within -3 and 3."""

    def forward(self, x: Tensor) -> Tensor:
        return (x / 3).tanh() * 3


class TinyDecoder(nn.Module):
    """Normalised latents [B, F, C, h, w] -> video [B, T, 3, H, W] in [0, 1]; used like a VideoCodec that only decodes.

    Args:
        channels: latent channels C.
        widths: of the three stages and of the output.
        growth: frames that each stage makes of one; their product is the codec's temporal stride.
        patch: pixels along each side that the last convolution makes at once.
    """

    def __init__(
        self, channels: int = 16, widths: Sequence[int] = WIDTHS, growth: Sequence[int] = GROWTH, patch: int = 1
    ) -> None:
        super().__init__()
        self.channels, self.patch = channels, patch
        layers: list[nn.Module] = [SoftClamp(), _conv(channels, widths[0]), nn.ReLU()]
        for width, following, frames in zip(widths[:-1], widths[1:], growth, strict=True):
            layers += [MemoryBlock(width, width) for _ in range(3)]
            layers += [nn.Upsample(scale_factor=2), TimeGrowth(width, frames), _conv(width, following, bias=False)]
        self.decoder = nn.Sequential(*layers, nn.ReLU(), _conv(widths[-1], 3 * patch**2))

    @classmethod
    def from_file(cls, path: str | Path, dtype: torch.dtype = torch.float32) -> TinyDecoder:
        """The decoder of a TAEHV file, ``.safetensors`` or ``.pth``; the file's encoder is left out.

        Raises:
            NearstepError: if the file is missing or damaged, or holds another architecture.
        """
        path = Path(path)
        state = {name: tensor for name, tensor in _read(path).items() if name.startswith("decoder.")}
        try:
            decoder = cls(**_sizes(state))
            decoder.load_state_dict(state)
        except (KeyError, IndexError, ZeroDivisionError, RuntimeError, ValueError) as error:
            what = str(error).strip().splitlines()[-1].strip()
            raise NearstepError(
                f"{path} holds no TAEHV decoder for Wan 2.1 ({what}); use taew2_1.safetensors or taew2_1.pth"
            ) from error
        return decoder.to(dtype).eval().requires_grad_(False)

    @property
    def spatial_stride(self) -> int:
        """Pixels per latent along height and width."""
        return self.patch * 2 ** sum(isinstance(layer, nn.Upsample) for layer in self.decoder)

    def decode(self, latents: Tensor, *, clamp: bool = True) -> Tensor:
        """Normalised latents [B, F, C, h, w] -> video [B, T, 3, H, W] in [0, 1] (see TinyStream.decode)."""
        return self.stream().decode(latents, clamp=clamp)

    def stream(self) -> TinyStream:
        """A fresh stream for one clip; any number may be open at once."""
        return TinyStream(self)


class TinyStream:
    """Decodes one clip a chunk at a time, holding each memory block's last frame."""

    def __init__(self, tiny: TinyDecoder, last: Mapping[int, Tensor] | None = None, frames: int = 0) -> None:
        self._tiny = tiny
        self._last = dict(last or {})
        self.frames = frames
        """Latent frames decoded so far."""

    def copy(self) -> TinyStream:
        """A stream of its own that has decoded the same."""
        return TinyStream(self._tiny, self._last, self.frames)

    def decode(self, latents: Tensor, *, clamp: bool = True) -> Tensor:
        """The next normalised latents [B, f, C, h, w] -> pixel frames [B, T, 3, H, W] in [0, 1], float32 at least.

        T is 4f, or 4f - 3 for the first chunk of the clip.
        """
        channels = latents.shape[2]
        if channels != self._tiny.channels:
            raise NearstepError(f"this tiny decoder reads {self._tiny.channels} latent channels, got {channels}")
        # One latent frame a call: the floating-point work of a frame is then the same however a clip is cut.
        video = torch.cat([self._frame(frame) for frame in latents.unbind(1)], dim=1)
        video = video.to(torch.promote_types(video.dtype, torch.float32))
        return video.clamp(0, 1) if clamp else video

    def _frame(self, x: Tensor) -> Tensor:
        """A latent frame [B, C, h, w] -> its pixel frames [B, 1 or 4, 3, H, W]."""
        batch, weight = len(x), next(self._tiny.parameters())
        x = x.to(weight.device, weight.dtype)
        for index, layer in enumerate(self._tiny.decoder):
            x = layer(x, self._before(index, x, batch)) if isinstance(layer, MemoryBlock) else layer(x)
        video = pixel_shuffle(x, self._tiny.patch).unflatten(0, (batch, -1))
        self.frames += 1
        return video if self.frames > 1 else video[:, TEMPORAL_STRIDE - 1 :]

    def _before(self, index: int, x: Tensor, batch: int) -> Tensor:
        """The frame before each of a block's frames x [B * t, C, h, w]; nothing is zero."""
        frames = x.unflatten(0, (batch, -1))
        last = self._last.get(index)
        self._last[index] = frames[:, -1:]
        first = torch.zeros_like(frames[:, :1]) if last is None else last
        return torch.cat([first, frames[:, :-1]], dim=1).flatten(0, 1)


def _conv(source: int, width: int, *, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(source, width, 3, padding=1, bias=bias)


def _sizes(state: Mapping[str, Tensor]) -> dict:
    """The sizes of a decoder, from the shapes of its weights."""
    convs = [state[f"decoder.{index}.weight"].shape for index in (1, 8, 14, 20, 22)]
    growth = [state[f"decoder.{index}.conv.weight"].shape for index in (7, 13, 19)]
    frames = [out // width for out, width, *_ in growth]
    if frames[0] * frames[1] * frames[2] != TEMPORAL_STRIDE:
        raise ValueError(f"its latent frames grow into {frames[0] * frames[1] * frames[2]} pixel frames, not into 4")
    patch = round((convs[-1][0] / 3) ** 0.5)
    return dict(channels=convs[0][1], widths=[shape[0] for shape in convs[:4]], growth=frames, patch=patch)


def _read(path: Path) -> dict[str, Tensor]:
    check_regular(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        held = dict(torch.load(path, map_location="cpu", weights_only=True))
    except OSError as error:
        raise NearstepError(f"cannot read the tiny decoder {path}: {error.strerror or 'no such file'}") from error
    except Exception as error:  # of an unpickler, anything
        raise NearstepError(f"{path} is no .safetensors or .pth file of tensors: fetch it again") from error
    if not all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in held.items()):
        raise NearstepError(f"{path} holds other things than tensors by name: fetch it again")
    return held
