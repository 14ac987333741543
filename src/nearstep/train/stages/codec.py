"""Stage 1: the codec, an AutoencoderKLWan trained from nothing on a world's clips.

Loss: mean absolute error + a share of squared error (large mistakes first) + error of the differences along time, rows
and columns (edges and motion stay sharp) + a little KL (latents keep their range) + the same errors of what latents of
half the size are decoded to (``CodecConfig.coarse``: they stay smooth, so that a denoiser can learn them). What it took
to converge in minutes, found by measuring:

- kernels start with unit gain and no bias. PyTorch's default shrinks the signal at each of a dozen convolutions on the
  way and adds a bias, so that the output begins as a constant and stays one for hundreds of steps;
- the posterior starts narrow: at unit variance the noise drowns the signal of untrained weights;
- the decoder's output is not clamped: a clamped pixel has no gradient;
- pictures before clips, windows before whole frames (``Phase.side``), and whole clips in the end: a decoder trained on
  two latent frames drifts off from the third one on.

A decoder may learn on by itself (``CodecConfig.start``): what an encoder has made stays as good as it was.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from nearstep import rng
from nearstep.data.ahead import Ahead
from nearstep.data.crops import cropped
from nearstep.errors import NearstepError, first_line
from nearstep.nets.codec import VideoCodec
from nearstep.nets.devices import device_of
from nearstep.precision import narrowed
from nearstep.protocols import World
from nearstep.ranges import check_count, check_number
from nearstep.shapes import spatial_stride
from nearstep.train.checkpoint import TrainState
from nearstep.train.ema import Ema
from nearstep.train.loop import LoopConfig, run
from nearstep.train.optim import OptimConfig, Optimizer
from nearstep.train.parallel import ranks
from nearstep.train.phases import Phase, check_phases, phase_at
from nearstep.train.preview import write_grid
from nearstep.train.recipe import recipe_of
from nearstep.train.stages.shared import check_sizes

_LOG_VARIANCE_START = -6.0
_CLIPS_A_STEP = 64
_STATISTICS_CLIPS = 256
_STATISTICS_SEED = 1
_ENCODES = ("encoder", "quant_conv")
"""Parts of AutoencoderKLWan that make latents."""


@dataclass(frozen=True, kw_only=True)
class CodecSize:
    """AutoencoderKLWan's own names."""

    base_dim: int
    decoder_base_dim: int
    z_dim: int
    dim_mult: tuple[int, ...]
    num_res_blocks: int
    temperal_downsample: tuple[bool, ...]
    patch_size: int

    def __post_init__(self) -> None:
        if not self.dim_mult:
            raise NearstepError("dim_mult is empty; give the factor of the width at each level")

    def build(self) -> AutoencoderKLWan:
        """The untrained network, its posterior narrow."""
        sizes: dict[str, Any] = {
            name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()
        }
        pixels = 3 * self.patch_size**2
        vae = AutoencoderKLWan(
            **sizes,
            attn_scales=[],
            in_channels=pixels,
            out_channels=pixels,
            latents_mean=[0.0] * self.z_dim,
            latents_std=[1.0] * self.z_dim,
            scale_factor_spatial=self.patch_size * 2 ** (len(self.dim_mult) - 1),
            scale_factor_temporal=2 ** sum(self.temperal_downsample),
        )
        for module in vae.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
                nn.init.zeros_(cast(Tensor, module.bias))
        with torch.no_grad():
            cast(Tensor, vae.quant_conv.bias)[self.z_dim :] = _LOG_VARIANCE_START
        return vae


@dataclass(frozen=True, kw_only=True)
class CodecConfig:
    """A codec run."""

    loop: LoopConfig
    optim: OptimConfig
    world: World
    """The world whose clips the codec learns."""
    size: CodecSize
    start: Path | None = None
    """A codec whose encoder and statistics are taken and stay as they are, so that latents made by it still fit: the
    decoder alone learns, from its weights if it is of the same width, else from nothing."""
    seed: int = 0
    phases: tuple[Phase, ...]
    """In order; together as long as the run."""
    square: float = 2.0
    """Weight of the squared error beside the absolute one."""
    edge: float = 0.3
    """Weight of the error of the differences along time, rows and columns."""
    first_weight: float = 1.0
    """Weight of a clip's first frame: it alone has no frames before it to lean on."""
    foreground_weight: float = 1.0
    """Weight of what a clip shows before its background, which comes easily and is not what is looked at."""
    kl: float = 3e-4
    """Weight of the KL to a standard normal, per latent number."""
    kl_rise: int = 300
    """Steps over which the KL comes in."""
    coarse: float = 0.0
    """Weight of the errors of a clip of half the height and width that is decoded from latents of half the height and
    width: the low frequencies of latents then hold those of the picture, and a denoiser learns them from coarse to fine
    (EQ-VAE, arXiv 2502.09509; Skorokhodov et al., arXiv 2502.14831; benchmarks/latents.py)."""
    ema: float = 0.99
    autocast: bool = True
    """Products in bfloat16, where the device has them."""

    def __post_init__(self) -> None:
        check_phases(self.phases, self.loop.steps)
        if any(phase.draws != 1 for phase in self.phases):
            raise NearstepError("a codec sees each clip once in a step: leave the draws of its phases at 1")
        for name in ("square", "edge", "kl", "coarse"):
            check_number(name, getattr(self, name), least=0)
        for name in ("first_weight", "foreground_weight"):
            check_number(name, getattr(self, name), above=0)
        check_count("kl_rise", self.kl_rise)
        check_number("ema", self.ema, above=0, below=1)
        self._check_halves()

    def _check_halves(self) -> None:
        """What ``coarse`` halves has an even number of latents along its height and width."""
        if not self.coarse:
            return
        step = 2 * spatial_stride(asdict(self.size))
        for side in [phase.side or self.world.size for phase in self.phases]:
            if side % step:
                raise NearstepError(
                    f"coarse={self.coarse} halves latents, and a side of {side} pixels has an odd number of them; give "
                    f"phases a side that is a multiple of {step}, or coarse=0"
                )

    def run(self) -> Path:
        """Train, or go on; returns the folder with ``vae/``."""
        return run(lambda: CodecStage(self), self.loop, recipe_of(self))


class CodecStage:
    """The codec's step, preview and export."""

    def __init__(self, config: CodecConfig) -> None:
        self.config, self.here = config, ranks()
        for phase in config.phases:
            self.here.share(phase.clips)  # refused before anything is made
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(rng.key("codec weights", config.seed))
            self.codec = VideoCodec(config.size.build())
        if config.start is not None:
            take_encoder(self.codec.vae, config.start)
        self.codec.to(self.here.device)
        self.batches = Ahead(self.batch, config.loop.workers)
        self.optimizer = Optimizer([self.codec], config.optim, config.loop.steps)
        self.ema = Ema(self.codec, config.ema)
        self.state = TrainState({"codec": self.codec, "optimizer": self.optimizer, "ema": self.ema})

    def batch(self, index: int) -> tuple[Tensor, Tensor]:
        """The clips of step ``index`` and their weights: a window in time and space of each.

        Returns:
            The clips [B, T, 3, side, side], and the weights of their pixels [B, T, 1, side, side], of mean 1.
        """
        world, seed = self.config.world, self.config.seed
        phase, _ = phase_at(self.config.phases, index)
        clips = range(index * _CLIPS_A_STEP, index * _CLIPS_A_STEP + phase.clips)
        draw = rng.generator("codec window", seed, index)
        first = int(torch.randint(world.frames - phase.frames + 1, (), generator=draw))
        video = world.clips(seed, clips, frames=phase.frames, first=first)
        weight = self._weight(clips, first, video)
        if phase.side is not None:
            focus = world.focus(seed, clips, frames=phase.frames, first=first)
            both = cropped(torch.cat([video, weight], dim=2), focus, phase.side, draw)
            video, weight = both[:, :, :3], both[:, :, 3:]
        return video, weight / weight.mean()

    def _weight(self, clips: range, first: int, video: Tensor) -> Tensor:
        config, frames = self.config, video.shape[1]
        weight = torch.ones_like(video[:, :, :1])
        if config.foreground_weight != 1:
            shown = config.world.foreground(config.seed, clips, frames=frames, first=first)
            weight = 1 + (config.foreground_weight - 1) * shown
        weight[:, 0] *= config.first_weight
        return weight

    def step(self, index: int) -> dict[str, Tensor]:
        """Make one update; each process has its share of the clips."""
        here, whole = self.here, self.batches(index)
        rows = here.share(len(whole[0]))
        video, weight = (part[rows.start : rows.stop].to(here.device) for part in whole)
        with narrowed(here.device.type, self.config.autocast):
            posterior = self.codec.posterior(video)
            mean, log_variance = posterior.mean.float(), posterior.logvar.float()
            # Drawn for the whole batch, so that the draws do not depend on how many processes share it.
            noise = rng.generator("codec noise", self.config.seed, index)
            eps = torch.randn(len(whole[0]), *mean.shape[1:], generator=noise)[rows.start : rows.stop]
            latents = self.codec.normalise(mean + torch.exp(0.5 * log_variance) * eps.to(here.device))
            decoded = self.codec.decode(latents, clamp=False).float()
            small = self.codec.decode(halved(latents), clamp=False).float() if self.config.coarse else None
        wrong, parts = self._wrong(decoded, video, weight)
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        config = self.config
        loss = wrong + min(1.0, index / config.kl_rise) * config.kl * kl
        if small is not None:
            parts["coarse"], _ = self._wrong(small, halved(video), halved(weight))
            loss = loss + config.coarse * parts["coarse"]
        loss.backward()
        moved = self.optimizer.apply(here.mean({"loss": loss})["loss"], index)
        self.ema.update(self.codec)
        by_frame = (decoded - video).detach().square().mean(dim=(0, 2, 3, 4))
        psnr, psnr_first = -10 * by_frame.mean().log10(), -10 * by_frame[0].log10()
        return {"loss": loss, **parts, "kl": kl, "psnr": psnr, "psnr_first": psnr_first, **moved}

    def _wrong(self, decoded: Tensor, video: Tensor, weight: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """How far a decoded clip [B, T, 3, H, W] is from the true one, and what that consists of."""
        error = decoded - video
        absolute, squared = (weight * error.abs()).mean(), (weight * error.square()).mean()
        edge = difference_error(decoded, video, weight)
        wrong = absolute + self.config.square * squared + self.config.edge * edge
        return wrong, {"absolute": absolute, "edge": edge}

    @torch.no_grad()
    def preview(self, path: Path) -> None:
        """Real clips and what comes back of them, in turns."""
        if not self.here.main:
            return
        video = self.config.world.clips(_STATISTICS_SEED, range(4))
        codec: VideoCodec = self.ema.module  # pyright: ignore[reportAssignmentType]
        with narrowed(self.here.device.type, self.config.autocast):
            decoded = codec.decode(codec.encode(video)).float().cpu()
        write_grid(torch.stack([video, decoded], dim=1).flatten(0, 1), path)

    @torch.no_grad()
    def export(self, folder: Path) -> None:
        """Write ``vae/``, its config holding each channel's mean and deviation over real clips."""
        if not self.here.main:
            return
        codec: VideoCodec = self.ema.module  # pyright: ignore[reportAssignmentType]
        if self.config.start is None:
            _measure(codec, self.config.world, narrow=self.config.autocast)
        codec.save_pretrained(folder / "vae")


@torch.no_grad()
def _measure(codec: VideoCodec, world: World, *, narrow: bool) -> None:
    """Note each channel's mean and deviation over real clips in the configuration."""
    raw = []
    for first in range(0, _STATISTICS_CLIPS, 16):
        video = world.clips(_STATISTICS_SEED, range(first, first + 16))
        with narrowed(device_of(codec).type, narrow):
            raw.append(codec.posterior(video).mode().float())
    std, mean = torch.std_mean(torch.cat(raw), dim=(0, 2, 3, 4))
    codec.vae.register_to_config(latents_mean=mean.tolist(), latents_std=std.tolist())


def halved(x: Tensor) -> Tensor:
    """Frames [B, T, C, H, W] at half their height and width, each number the mean of four."""
    return avg_pool2d(x.flatten(0, 1), 2).unflatten(0, x.shape[:2])


def take_encoder(vae: AutoencoderKLWan, start: Path) -> None:
    """Give a codec the encoder and the statistics of another, frozen, and its decoder's weights if they fit.

    Raises:
        NearstepError: if there is no codec, or its encoder is of another size.
    """
    try:
        own: Any = AutoencoderKLWan.from_pretrained(start)
    except Exception as error:  # of diffusers, anything
        raise NearstepError(f"start={start} holds no codec that can be read: {first_line(error)}") from error
    given, state = vae.state_dict(), own.state_dict()
    wanted, encoder = (
        {name: value for name, value in each.items() if name.split(".")[0] in _ENCODES} for each in (given, state)
    )
    check_sizes(encoder, wanted, f"start={start} has an encoder")
    same = state.keys() == given.keys() and all(state[name].shape == given[name].shape for name in given)
    vae.load_state_dict(state if same else given | encoder)
    vae.register_to_config(latents_mean=own.config["latents_mean"], latents_std=own.config["latents_std"])
    for name in _ENCODES:
        vae.get_submodule(name).requires_grad_(False)


def difference_error(decoded: Tensor, video: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean absolute first differences of the error along time, rows and columns, summed over all there are.

    Args:
        decoded: [B, T, 3, H, W].
        video: what it should be.
        weight: of each pixel [B, T, 1, H, W]; all alike by default.
    """
    error = decoded - video if weight is None else (decoded - video) * weight
    return torch.stack([error.diff(dim=dim).abs().mean() for dim in (1, 3, 4) if error.shape[dim] > 1]).sum()
