"""Whether a codec makes latents that a denoiser can learn: rough ones hide the same picture behind unlike numbers.

    python benchmarks/latents.py runs/codec/model/vae

Three figures, each beside that of the pictures themselves at the latents' size. *Fine*: the share of energy above half
the highest frequency; a denoiser makes pictures from coarse to fine, and can only do so where coarse comes first.
*Between*: a picture moved by half a latent, against the mean of the latents before and behind, as a share of their
variance; where it is large, things have to be learnt anew at each place within a latent. *Noise*: the picture that is
left of latents that are a fifth noise, which is how wrong a denoiser may be.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import tyro
from torch import Tensor
from torch.nn.functional import avg_pool2d

from nearstep.nets.codec import VideoCodec
from nearstep.recipes.worlds import find_world

SEED = 11
"""Of pictures that no recipe learns from."""
NOISE = 0.2
_EDGE = 2
"""Latents at the rim, which a picture that is moved around its edge changes."""


class Roughness(NamedTuple):
    """How rough latents are, or pictures at their size."""

    fine: float
    """Share of energy above half the highest frequency."""
    between: float
    """Squared error of the mean of two neighbours, of what lies half-way between them, as a share of the variance."""


def roughness(here: Tensor, between: Tensor) -> Roughness:
    """Of maps [N, C, h, w], and those of the same pictures moved right by half a cell, around the edge."""
    error = (between - (here + here.roll(1, dims=-1)) / 2)[..., _EDGE:-_EDGE].square().mean(dim=(0, 2, 3))
    energy = torch.fft.fft2(here - here.mean(dim=(-2, -1), keepdim=True)).abs().square()
    rows, columns = (torch.fft.fftfreq(side).abs() for side in here.shape[-2:])
    high = torch.hypot(rows[:, None], columns[None]) > 0.25
    return Roughness(
        fine=float(energy[..., high].sum() / energy.sum()),
        between=float(error.mean() / here.var(dim=(0, 2, 3)).mean()),
    )


@torch.no_grad()
def main(codec: Annotated[Path, tyro.conf.Positional], *, world: str = "playground", pictures: int = 64) -> None:
    """Print the figures.

    Args:
        codec: folder of an AutoencoderKLWan.
        world: whose pictures.
        pictures: first frames of so many clips.
    """
    coder = VideoCodec.from_pretrained(codec).float().eval()
    video = find_world(world).clips(SEED, range(pictures), frames=1)
    stride = coder.spatial_stride
    moved = video.roll(stride // 2, dims=-1)
    latents, half = coder.encode(video), coder.encode(moved)
    of_latents = roughness(latents[:, 0], half[:, 0])
    of_pictures = roughness(avg_pool2d(video[:, 0], stride), avg_pool2d(moved[:, 0], stride))
    print("| | fine | between |\n|---|---|---|")
    for name, found in (("latents", of_latents), (f"pictures, {stride} times smaller", of_pictures)):
        print(f"| {name} | {found.fine:.3f} | {found.between:.3f} |")
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    for share in (0.0, NOISE):
        error = (coder.decode(latents + share * noise) - video).square().mean()
        print(f"{-10 * float(error.log10()):.2f} dB from latents with noise of deviation {share}")


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
