"""Stage 2: the bidirectional many-step teacher, and the text encoder with it.

Flow matching on the latents of whole clips, the same time for all frames, captions dropped now and then so that
guidance has an unconditional side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import UMT5Config, UMT5EncoderModel

from nearstep import rng
from nearstep.data.captions import caption, vocabulary
from nearstep.data.latents import LatentsConfig, load_latents
from nearstep.data.playground import FRAMES, sample_scenes
from nearstep.flow.guidance import Guided
from nearstep.flow.plan import make_plan
from nearstep.flow.times import training_times
from nearstep.losses.denoising import flow_matching
from nearstep.nets.codec import VideoCodec
from nearstep.nets.denoiser import TextDenoiser
from nearstep.nets.text import PromptEncoder, build_tokenizer
from nearstep.nets.transformer import VideoTransformer
from nearstep.rollout.rollout import generate
from nearstep.shapes import latent_frames
from nearstep.train.checkpoint import TrainState
from nearstep.train.ema import Ema
from nearstep.train.export import export_model
from nearstep.train.loop import LoopConfig, recipe_of, run
from nearstep.train.optim import OptimConfig, Optimizer
from nearstep.train.preview import write_grid

PREVIEWS = 8
_PREVIEW_SEED = 2


@dataclass(frozen=True, kw_only=True)
class NetworkSize:
    """VideoTransformer's own names; channels and text width follow from codec and encoder."""

    num_attention_heads: int
    attention_head_dim: int
    ffn_dim: int
    num_layers: int


@dataclass(frozen=True, kw_only=True)
class TextSize:
    """UMT5's own names; the vocabulary follows from the world."""

    d_model: int
    d_kv: int
    d_ff: int
    num_heads: int
    num_layers: int
    length: int
    """Text tokens a caption is padded to."""

    def build(self) -> PromptEncoder:
        """The untrained encoder with a tokenizer of the world's words."""
        sizes = asdict(self)
        length = sizes.pop("length")
        tokenizer = build_tokenizer(vocabulary(), length=length)
        config = UMT5Config(vocab_size=len(tokenizer), dropout_rate=0.0, **sizes)
        return PromptEncoder(tokenizer, UMT5EncoderModel(config))


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """A teacher run."""

    loop: LoopConfig
    optim: OptimConfig
    network: NetworkSize
    text: TextSize
    codec: Path
    """Folder of the trained AutoencoderKLWan."""
    latents: LatentsConfig
    batch: int = 32
    caption_dropout: float = 0.1
    shift: float = 3.0
    """Of the training times, and of the schedules of the model that is exported."""
    ema: float = 0.999
    seed: int = 0
    autocast: bool = True
    """bfloat16 matrix products."""
    compile: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Defaults for using the model (stream/folder.py Settings)."""

    def run(self) -> Path:
        """Train, or go on; returns the model folder."""
        return run(TeacherStage(self), self.loop, recipe_of(self))


class TeacherStage:
    """The teacher's step, preview and export."""

    def __init__(self, config: TeacherConfig) -> None:
        self.config = config
        self.codec = VideoCodec.from_pretrained(config.codec).eval().requires_grad_(False)
        self.clips = load_latents(config.latents, self.codec, codec_name(self.codec))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(rng.key("teacher weights", config.seed))
            self.text = config.text.build()
            self.network = VideoTransformer(
                **asdict(config.network),
                in_channels=self.codec.channels,
                out_channels=self.codec.channels,
                text_dim=config.text.d_model,
            )
        self.both = torch.nn.ModuleDict({"network": self.network, "text": self.text})
        self.optimizer = Optimizer([self.both], config.optim, config.loop.steps)
        self.ema = Ema(self.both, config.ema)
        self.state = TrainState({"model": self.both, "optimizer": self.optimizer, "ema": self.ema})
        if config.compile:
            compile_blocks(self.network)

    def step(self, index: int) -> dict[str, Tensor]:
        """One update."""
        config = self.config
        x0, captions = self.clips.batch(index, config.batch)
        draw = rng.generator("teacher", config.seed, index)
        eps = torch.randn(x0.shape, generator=draw)
        t = training_times(stratified(config.batch, draw), shift=config.shift)
        prompts = dropped(captions, config.caption_dropout, draw)
        with torch.autocast("cpu", torch.bfloat16, enabled=config.autocast):
            text = self.text(prompts)
            losses = flow_matching(partial(self.network, text=text), x0, eps, t[:, None].expand(-1, x0.shape[1]))
        loss = losses.mean()
        moved = self.optimizer.step(loss, index)
        self.ema.update(self.both)
        return {"loss": loss, **_by_time(losses, t), **moved}

    def preview(self, path: Path) -> None:
        """Fixed captions and noise, through the averaged weights."""
        network, text = self._averaged()
        settings = self.config.settings
        plan = make_plan(
            settings.get("teacher_plan", "20"),
            frames=latent_frames(FRAMES),
            chunk_frames=None,
            shift=self.config.shift,
        )
        weight = settings.get("guidance_scale", 2.0)
        show(path, network, text, self.codec, plan, shape=self.clips.latents.shape[2:], weight=weight)

    def export(self, folder: Path) -> None:
        """Write a model folder whose only network is ``teacher/``."""
        network, text = self._averaged()
        export_model(
            folder,
            networks={"teacher": network},
            text=text,
            codec=self.codec,
            shift=self.config.shift,
            settings=self.config.settings,
        )

    def _averaged(self) -> tuple[VideoTransformer, PromptEncoder]:
        return self.ema.module["network"], self.ema.module["text"]  # pyright: ignore[reportIndexIssue, reportReturnType]


# --- what the network stages share ---------------------------------------------------------------------------------


def codec_name(codec: VideoCodec) -> str:
    """Names a codec's weights, for the latents made by it."""
    statistics = (codec.vae.config["latents_mean"], codec.vae.config["latents_std"])
    return f"{rng.key(repr(statistics)):016x}"


def stratified(count: int, draw: torch.Generator) -> Tensor:
    """``count`` uniform numbers in [0, 1], one in each of ``count`` equal cells, shuffled: less noise in the loss."""
    cells = torch.randperm(count, generator=draw)
    return (cells + torch.rand(count, generator=draw)) / count


def dropped(captions: Sequence[str], odds: float, draw: torch.Generator) -> list[str]:
    """The captions, each emptied with probability ``odds``."""
    gone = torch.rand(len(captions), generator=draw) < odds
    return ["" if empty else text for text, empty in zip(captions, gone.tolist(), strict=True)]


def compile_blocks(network: VideoTransformer) -> None:
    """Compile every block in place; parameter names stay as they are."""
    for block in network.blocks:
        block.compile(dynamic=False)


@torch.no_grad()
def show(
    path: Path,
    network: VideoTransformer,
    text: PromptEncoder,
    codec: VideoCodec,
    plan: Any,
    *,
    shape: Sequence[int],
    weight: float,
) -> None:
    """Picture PREVIEWS clips of fixed captions and noise, generated along ``plan`` with guidance ``weight``."""
    scenes = sample_scenes(_PREVIEW_SEED, range(PREVIEWS))
    prompts = [caption(scene, seed=_PREVIEW_SEED, index=i) for i, scene in enumerate(scenes)]
    with torch.autocast("cpu", torch.bfloat16):
        denoiser: Any = TextDenoiser(network, text(prompts))
        if weight != 1:
            denoiser = Guided(TextDenoiser(network, text(prompts + [""] * PREVIEWS)), weight)
        renoise = "implied" if len(plan.lengths) == 1 else "fresh"
        latents = generate(denoiser, plan, shape=shape, seed=0, samples=range(PREVIEWS), renoise=renoise)
        write_grid(codec.decode(latents).float(), path)


def _by_time(losses: Tensor, t: Tensor) -> dict[str, Tensor]:
    # The loss at small, middle and large t: they level off at different heights and different moments.
    thirds = {"loss_low": t < 1 / 3, "loss_mid": (t >= 1 / 3) & (t < 2 / 3), "loss_high": t >= 2 / 3}
    return {name: losses.detach()[rows].mean() for name, rows in thirds.items() if bool(rows.any())}
