"""What is asked of a pipeline, checked and completed before any network runs."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from math import prod
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from nearstep import rng
from nearstep.errors import NearstepError
from nearstep.flow.guidance import check_negative
from nearstep.flow.plan import ChunkPlan, make_plan
from nearstep.models.configs import Configs
from nearstep.models.folder import shift_of
from nearstep.nets.text import Tokens
from nearstep.reach import EVERYTHING, Reach
from nearstep.rollout.chunk import Renoise
from nearstep.shapes import TEMPORAL_STRIDE, LatentShape, latent_frames, spatial_stride
from nearstep.stream.given import GivenTensor
from nearstep.stream.opening import digest

_SEED_BITS = 63
MOST_GUIDANCE = 1000
"""Weights beyond it overflow or burn every frame; teachers use 3 to 9."""
MOST_BYTES = 2**38
"""What no accelerator holds."""
HALF_PRECISION, SINGLE_PRECISION = 2, 4  # bytes of a number


@dataclass(frozen=True, kw_only=True)
class Clip:
    """Size and plan of a clip that a model can make."""

    plan: ChunkPlan
    shape: LatentShape
    renoise: Renoise
    """A causal student draws fresh noise between steps; a bidirectional network does as its model says."""


@dataclass(frozen=True, kw_only=True)
class Conditioning:
    """What a network is told and which noise it begins with; of any size, under any plan."""

    prompts: tuple[str, ...]
    negative: tuple[str, ...]
    """What guidance leads away from, one for each prompt."""
    guidance: float
    seed: int
    samples: tuple[int, ...]
    tokens: Tokens = field(repr=False, compare=False)
    """Those of :attr:`texts`."""
    row_seeds: tuple[int, ...] = ()
    """One for each row, where a list of generators named them; else ``seed`` is that of all."""
    features: GivenTensor | None = None
    """[B, L, D] in the place of what the text encoder makes of the prompts, which are "" then."""
    negative_features: GivenTensor | None = None
    """The same of the negative ones."""
    text_length: int | None = None
    """Text tokens L that prompts are padded to, if not the tokenizer's own."""

    def __post_init__(self) -> None:
        check_guidance(self.guidance)
        check_negative(self.negative, self.guidance)
        if self.negative_features is not None and not self.guided:
            raise NearstepError("negative_prompt_embeds act through guidance, and there is none (1); leave them out")
        for sample in self.samples:
            whole("sample", sample)

    @property
    def texts(self) -> tuple[str, ...]:
        """Every different text among the prompts and the negative ones: each is tokenised once."""
        return tuple(dict.fromkeys((*self.prompts, *self.negative)))

    def tokens_of(self, texts: Sequence[str]) -> Tokens:
        """The tokens of some of :attr:`texts`."""
        rows = {text: row for row, text in enumerate(self.texts)}
        return self.tokens.rows([rows[text] for text in texts])

    @property
    def seeds(self) -> tuple[int, ...]:
        """Those of the rows."""
        return self.row_seeds or (self.seed,) * len(self.prompts)

    @property
    def guided(self) -> bool:
        """Whether each call also asks what the network makes without the prompt."""
        return self.guidance != 1


@dataclass(frozen=True, kw_only=True)
class Request(Conditioning):
    """Everything that names a result: equal requests to equal weights give equal clips."""

    clip: Clip
    latents: GivenTensor | None = None
    """[B, F, C, h, w] in the place of the noise that chunks begin as; seed and samples still name the noise between
    steps."""

    @classmethod
    def of(cls, conditioning: Conditioning, clip: Clip, latents: GivenTensor | None = None) -> Request:
        """A clip, with what it is to show."""
        named = {part.name: getattr(conditioning, part.name) for part in fields(Conditioning)}
        return cls(**named, clip=clip, latents=latents)

    def draw(self, chunk: int, frames: int, step: int, device: torch.device | str | None = None) -> Tensor:
        """The noise [B, frames, C, h, w] of a step, by name; step 0 is what a chunk begins as."""
        if step == 0 and self.latents is not None:
            first = sum(self.clip.plan.lengths[:chunk])
            return self.latents.tensor[:, first : first + frames].to(device)
        shape = (frames, *self.clip.shape.frame)
        names = zip(self.seeds, self.samples, strict=True)
        rows = [rng.noise(shape, seed=seed, samples=[sample], chunk=chunk, step=step) for seed, sample in names]
        return torch.cat(rows).to(device)

    def noise(self) -> Tensor:
        """What the clips begin as, [B, F, C, h, w]: handed over as ``latents``, it makes them again."""
        return torch.cat([self.draw(chunk, frames, 0) for chunk, frames in enumerate(self.clip.plan.lengths)], dim=1)

    def metadata(self, row: int) -> dict[str, Any]:
        """What to keep beside the clip of one prompt, so that it can be made again."""
        said = clip_metadata(
            self.clip,
            prompt=self.prompts[row],
            negative=self.negative[row],
            guidance=self.guidance,
            seed=self.seeds[row],
            sample=self.samples[row],
        )
        given = {
            "prompt_embeds": self.features,
            "negative_prompt_embeds": self.negative_features,
            "starting_noise": self.latents,
        }
        digests = {name: digest(tensor.tensor[row]) for name, tensor in given.items() if tensor is not None}
        return {**said, **digests, **({"text_length": self.text_length} if self.text_length else {})}


def clip_metadata(
    clip: Clip, *, prompt: str, negative: str, guidance: float, seed: int | None, sample: int
) -> dict[str, Any]:
    """What a clip says of itself: enough to make it again, and to tell whether another was asked for."""
    return {
        "prompt": prompt,
        "negative_prompt": negative,
        "latents": [clip.shape.frames, clip.shape.height, clip.shape.width],
        "plan": str(clip.plan),
        "steps": clip.plan.steps,
        "commits": clip.plan.commits,
        "guidance": guidance,
        "seed": seed,
        "sample": sample,
    }


def own_guidance(model: Configs) -> float:
    """The guidance of a model that is not told another: a student's is 1, none."""
    return 1.0 if model.transformer.get("chunk_frames") is not None else model.settings.guidance_scale


def guidance_of(weight: float) -> float:
    """A guidance as a number.

    Raises:
        NearstepError: for what is none.
    """
    if isinstance(weight, bool) or not isinstance(weight, Real):
        raise NearstepError(f"guidance_scale={weight!r} is not a number; 1 is none")
    return float(weight)


def check_guidance(weight: float) -> None:
    """Refuse a guidance that no clip can be made with.

    Raises:
        NearstepError: for one that is not finite, below 1 or absurd.
    """
    if not 1 <= weight <= MOST_GUIDANCE:
        # diffusers takes 0 for none; in v = u + w (c - u) it would be a clip that its prompt has no part in.
        raise NearstepError(f"guidance {weight}: give a number from 1, which is none, to {MOST_GUIDANCE}")


def check_room(model: Configs, shape: LatentShape, reach: Reach, *, chunk: int) -> None:
    """Refuse by arithmetic what fits no accelerator: sizes, lengths and windows that are absurd.

    Args:
        model: its configurations.
        shape: of the clip, or of a stream's chunk.
        reach: how far back chunks look.
        chunk: latent frames of one.

    Raises:
        NearstepError: naming the memory that keys and values alone would need.
    """
    config, limit = model.transformer, model.transformer["rope_max_seq_len"]
    frames = shape.frames if reach.window is None else reach.window + reach.sink
    if frames > limit:
        raise NearstepError(f"window {reach.window} and sink {reach.sink}: this model has positions for {limit} frames")
    seen, pixels = max(frames, chunk), spatial_stride(model.vae) ** 2 * shape.height * shape.width
    width = config["num_attention_heads"] * config["attention_head_dim"]
    tokens = seen * shape.height * shape.width // prod(config["patch_size"])
    kept = 2 * config["num_layers"] * tokens * width * HALF_PRECISION
    made = TEMPORAL_STRIDE * shape.frames * pixels * 3 * SINGLE_PRECISION
    for what, needed, most in (("keys and values", kept, MOST_BYTES), ("pixels", made, min(MOST_BYTES, _memory()))):
        if needed > most:
            raise NearstepError(
                f"{seen} latent frames of {shape.height} x {shape.width} need {needed / 2**30:,.0f} GiB for {what} "
                f"({most / 2**30:,.0f} at most); ask for a smaller height, width or window, or fewer frames"
            )


def _memory() -> int:
    """Bytes of memory of this machine, where it says so."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return MOST_BYTES


def plan_clip(
    model: Configs,
    *,
    plan: str | None = None,
    num_inference_steps: int | None = None,
    num_frames: int | None = None,
    height: int | None = None,
    width: int | None = None,
) -> Clip:
    """The clip that a plan and a size mean for a model with these configurations; no weights are needed.

    Raises:
        NearstepError: for a plan that does not parse, or a size that codec, patches or chunks do not divide.
    """
    chunk_frames = model.transformer.get("chunk_frames")
    if plan is not None and num_inference_steps is not None:
        raise NearstepError(f"give plan={plan!r} or num_inference_steps={num_inference_steps}, not both")
    if num_inference_steps is not None:
        plan = str(whole("num_inference_steps", num_inference_steps))
    if plan is not None and not isinstance(plan, str):
        raise NearstepError(f"plan={plan!r}; a plan is a string, such as '4' or '4,1x'")
    shape = latent_shape(model, num_frames=num_frames, height=height, width=width)
    check_room(model, shape, EVERYTHING, chunk=chunk_frames or shape.frames)
    own = model.settings.default_plan if chunk_frames else model.settings.teacher_plan
    made = make_plan(
        own if plan is None else plan,
        frames=shape.frames,
        chunk_frames=chunk_frames,
        shift=shift_of(model.scheduler),
        grid=model.settings.grid,
    )
    renoise = "fresh" if chunk_frames else model.settings.teacher_renoise
    return Clip(plan=made, shape=shape, renoise=renoise)


def latent_shape(
    model: Configs, *, num_frames: int | None = None, height: int | None = None, width: int | None = None
) -> LatentShape:
    """The latents of a size in pixels, the model's own where it is not named.

    Raises:
        NearstepError: for a size that codec or patches do not divide, or too many frames.
    """
    settings, transformer = model.settings, model.transformer
    frames = settings.num_frames if num_frames is None else whole("num_frames", num_frames)
    height = settings.height if height is None else whole("height", height)
    width = settings.width if width is None else whole("width", width)
    stride, (_, *patch) = spatial_stride(model.vae), transformer["patch_size"]
    limit = transformer["rope_max_seq_len"]
    for name, side, multiple in zip(("height", "width"), (height, width), (stride * p for p in patch), strict=True):
        if side < multiple or side % multiple:
            near = max(1, round(side / multiple)) * multiple
            raise NearstepError(f"{name}={side} must be a multiple of {multiple} for this model; {near} is the nearest")
        if side > limit * multiple:
            raise NearstepError(f"{name}={side}; this model has positions for {limit * multiple} pixels")
    latent = latent_frames(frames)
    if latent > limit:
        raise NearstepError(f"num_frames={frames} is {latent} latent frames; this model has positions for {limit}")
    return LatentShape(frames=latent, channels=model.vae["z_dim"], height=height // stride, width=width // stride)


def seed_of(seed: int | None, generator: torch.Generator | None = None) -> int:
    """The seed that names all noise: as given, drawn from a generator (which moves on), or a new random one."""
    if generator is not None:
        if seed is not None:
            raise NearstepError(f"give seed={seed} or a generator, not both")
        if not isinstance(generator, torch.Generator):
            raise NearstepError(f"a generator is a torch.Generator, or a list of one for each clip, not {generator!r}")
        return int(torch.randint(2**_SEED_BITS - 1, (), generator=generator, device=generator.device))
    return secrets.randbits(32) if seed is None else whole("seed", seed)


def whole(name: str, number: int) -> int:
    """A whole number of any library.

    Raises:
        NearstepError: for anything else.
    """
    if isinstance(number, bool) or not isinstance(number, Integral):
        raise NearstepError(f"{name}={number!r} is not a whole number")
    return int(number)


def row_seeds_of(
    generators: Sequence[torch.Generator], seed: int | None, samples: Sequence[int] | None, count: int
) -> tuple[int, ...]:
    """A seed for each clip, so that it is the one that its generator makes alone."""
    if len(generators) != count:
        raise NearstepError(f"{len(generators)} generators for {count} clips; give one, or one each")
    if seed is not None or samples is not None:
        raise NearstepError("a generator for each clip names its noise already; leave seed and samples out")
    return tuple(seed_of(None, generator) for generator in generators)


def samples_of(samples: Sequence[int] | None, count: int) -> tuple[int, ...]:
    """Which samples of the seed the prompts are: 0, 1, 2, ... unless named."""
    if isinstance(samples, str | Tensor) or not (samples is None or isinstance(samples, Iterable)):
        raise NearstepError(f"samples={samples!r}; give whole numbers, one for each clip")
    chosen = tuple(range(count)) if samples is None else tuple(whole("sample", sample) for sample in samples)
    if len(chosen) != count:
        raise NearstepError(f"{len(chosen)} samples for {count} prompts; name one for each clip")
    return chosen
