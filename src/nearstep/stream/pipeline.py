"""Load a model once, then make clips: whole, or chunk by chunk as they are made.

    pipe = CausalVideoPipeline.from_pretrained("playground")
    clip = pipe("a large red ball slides left on snow", plan="4,1x", seed=7).frames[0]

Used like diffusers' WanPipeline, with a plan in place of a number of steps. All denoising is rollout.rollout, so what
the pipeline makes is what training saw.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler
from diffusers.loaders import WanLoraLoaderMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerFast, UMT5EncoderModel

from nearstep.card import Card, write_card
from nearstep.errors import NearstepError
from nearstep.flow.guidance import Guided
from nearstep.flow.plan import ChunkPlan
from nearstep.nets.codec import VideoCodec
from nearstep.nets.denoiser import TextDenoiser
from nearstep.nets.text import PromptEncoder
from nearstep.nets.transformer import VideoTransformer
from nearstep.protocols import CausalDenoiser
from nearstep.rollout.rollout import Chunk, rollout
from nearstep.stream import request as requests
from nearstep.stream.folder import ModelFolder, Settings
from nearstep.stream.loading import load_component, load_student, load_tokenizer
from nearstep.stream.output import pixels
from nearstep.stream.request import Request
from nearstep.stream.student import Student, configs_of, settings_of


@dataclass(frozen=True, kw_only=True)
class Frames:
    """A finished chunk, decoded."""

    index: int
    start: int
    """Pixel frame of the clip that the chunk begins with."""
    video: Tensor
    """[B, T, 3, H, W] in [0, 1], float32."""
    latents: Tensor
    """[B, F, C, h, w]."""
    steps: int
    """Denoising calls it took."""


@dataclass(frozen=True, kw_only=True)
class VideoOutput:
    """Clips and what made them."""

    frames: Any
    """One clip per prompt: ``pt`` [B, T, 3, H, W], ``np`` [B, T, H, W, 3] in [0, 1], ``pil`` lists of images,
    ``latent`` [B, F, C, h, w]."""
    plan: ChunkPlan
    seed: int
    request: Request


class CausalVideoPipeline(DiffusionPipeline, WanLoraLoaderMixin):
    """Text to video with a causal few-step student, or with a bidirectional many-step teacher.

    Args:
        transformer: the network; bidirectional where its ``chunk_frames`` is None, and then run as one chunk.
        vae: the codec's weights.
        text_encoder: UMT5's encoder.
        tokenizer: its fast tokenizer.
        scheduler: holds the shift; nothing else of it is used.
        nearstep: the model's :class:`Settings`, as in model_index.json.
    """

    _lora_loadable_modules: ClassVar = ["transformer"]

    def __init__(
        self,
        transformer: VideoTransformer,
        vae: AutoencoderKLWan,
        text_encoder: UMT5EncoderModel,
        tokenizer: PreTrainedTokenizerFast,
        scheduler: FlowMatchEulerDiscreteScheduler,
        nearstep: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.settings = Settings.of(nearstep)
        self.register_modules(
            transformer=transformer, vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, scheduler=scheduler
        )
        self.register_to_config(nearstep=dict(nearstep or {}))

    @classmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]  # ours names what it takes
        cls,
        name: str | Path,
        *,
        transformer: str = "transformer",
        student: Student | str | Path | None = None,
        torch_dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> CausalVideoPipeline:
        """Load a model folder.

        Args:
            name: ``"playground"`` (inside this package), a folder, or a hub id.
            transformer: the sub-folder of the network, such as ``"teacher"`` for the bidirectional one.
            student: a weights file whose network takes the place of ``transformer/``, which gives its sizes; a
                :class:`Student` says how it was trained (docs/wan.md), a path alone means Self-Forcing's way.
            torch_dtype: of network and text encoder; the codec stays as saved (float32), as Wan's should.
            device: where to put it.

        Raises:
            NearstepError: naming the file that is missing, damaged or of another kind.
        """
        folder = ModelFolder.open(name)
        student = None if student is None else Student.of(student)
        configs = configs_of(folder, transformer, student)
        networks, encoders = ("VideoTransformer", "WanTransformer3DModel"), ("UMT5EncoderModel", "umt5")
        if student is None:
            network = load_component(folder, transformer, VideoTransformer, networks, torch_dtype=torch_dtype)
        else:
            folder.check_class(transformer, *networks)
            network = load_student(student, configs.transformer, torch_dtype=torch_dtype)
        pipe = cls(
            transformer=network,
            vae=load_component(folder, "vae", AutoencoderKLWan, ("AutoencoderKLWan",)),
            text_encoder=load_component(folder, "text_encoder", UMT5EncoderModel, encoders, dtype=torch_dtype),
            tokenizer=load_tokenizer(folder),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=requests.shift_of(configs.scheduler)),
            nearstep=settings_of(folder, student),
        )
        return pipe if device is None else pipe.to(device)

    def save_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]  # the card is ours
        self, save_directory: str | Path, *, card: Card | None = None, **options: Any
    ) -> None:
        """Write a model folder, with a model card, that :meth:`from_pretrained` and diffusers load.

        Args:
            save_directory: the folder.
            card: what the model card should say that the folder does not.
            options: diffusers', such as ``max_shard_size``.
        """
        folder, config = Path(save_directory), self.transformer.config
        for part in (self.transformer, self.vae):
            part.register_to_config(_name_or_path="")  # where it was loaded from is nobody's business
        super().save_pretrained(folder, **options)
        plan = self.settings.default_plan if config["chunk_frames"] else None
        write_card(folder, card or Card(), config=config, plan=plan, library="nearstep")

    @property
    def codec(self) -> VideoCodec:
        """Pixels to latents and back."""
        return VideoCodec(self.vae)

    @property
    def prompt_encoder(self) -> PromptEncoder:
        """Prompts to token features."""
        return PromptEncoder(self.tokenizer, self.text_encoder)

    def __call__(
        self, prompt: str | Sequence[str], plan: str | None = None, *, output_type: str = "np", **wishes: Any
    ) -> VideoOutput:
        """Make clips whole.

        Args:
            prompt: one prompt, or one for each clip.
            plan: steps per chunk, such as ``"4"`` or ``"4,1x"`` (flow/plan.py); the model's own by default.
            output_type: ``"np"``, ``"pt"``, ``"pil"`` or ``"latent"``; see :class:`VideoOutput`.
            wishes: as for :meth:`request`.
        """
        if output_type not in requests.OUTPUT_TYPES:
            raise NearstepError(f"output_type={output_type!r}; use one of {', '.join(requests.OUTPUT_TYPES)}")
        asked = self.request(prompt, plan, **wishes)
        if output_type == "latent":
            made = torch.cat([chunk.latents for chunk in self._chunks(asked)], dim=1)
        else:
            made = _formatted(torch.cat([frames.video for frames in self.play(asked)], dim=1), output_type)
        return VideoOutput(frames=made, plan=asked.clip.plan, seed=asked.seed, request=asked)

    def stream(self, prompt: str | Sequence[str], plan: str | None = None, **wishes: Any) -> Iterator[Frames]:
        """Make clips chunk by chunk, yielding each as soon as it is decoded; arguments as for :meth:`request`.

        Joined, the chunks are exactly what calling the pipeline gives.
        """
        return self.play(self.request(prompt, plan, **wishes))

    def request(
        self,
        prompt: str | Sequence[str],
        plan: str | None = None,
        *,
        negative_prompt: str | Sequence[str] = "",
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        samples: Sequence[int] | None = None,
    ) -> Request:
        """Check what is asked and complete it from the model's settings; quick, no network runs.

        Args:
            prompt: one prompt, or one for each clip.
            plan: steps per chunk; the model's own by default.
            negative_prompt: what guidance leads away from; unused without guidance.
            num_frames: pixel frames, 4n+1.
            height: pixels.
            width: pixels.
            num_inference_steps: n means the plan ``"n"``.
            guidance_scale: w in v = u + w (c - u); 1 is none, the student's default.
            seed: names all noise; a random one by default (it is in the result).
            generator: a torch generator to draw the seed from, in place of ``seed``.
            samples: which samples of the seed the clips are; 0, 1, 2, ... by default. A clip depends on its prompt, the
                seed and its own sample, not on the clips beside it.
        """
        prompts, negative = requests.prompts_of(prompt, negative_prompt)
        clip = requests.plan_clip(
            self.transformer.config,
            self.vae.config,
            self.scheduler.config,
            self.settings,
            plan=plan,
            num_inference_steps=num_inference_steps,
            num_frames=num_frames,
            height=height,
            width=width,
        )
        self.prompt_encoder.tokens([*prompts, *negative])  # unknown words are found here
        guidance = (1.0 if clip.causal else self.settings.guidance_scale) if guidance_scale is None else guidance_scale
        return Request(
            prompts=prompts,
            negative=negative,
            clip=clip,
            guidance=float(guidance),
            seed=requests.seed_of(seed, generator),
            samples=requests.samples_of(samples, len(prompts)),
        )

    @torch.no_grad()
    def play(self, asked: Request) -> Iterator[Frames]:
        """The chunks of a request, decoded as they are made."""
        stream, start = self.codec.stream(), 0
        for chunk in self._chunks(asked):
            video = stream.decode(chunk.latents).float()
            yield Frames(index=chunk.index, start=start, video=video, latents=chunk.latents, steps=chunk.steps)
            start += video.shape[1]

    @torch.no_grad()
    def _chunks(self, asked: Request) -> Iterator[Chunk]:
        clip = asked.clip
        yield from rollout(
            self.denoiser(asked),
            clip.plan,
            shape=clip.shape.frame,
            seed=asked.seed,
            samples=asked.samples,
            renoise=clip.renoise,
            device=self._execution_device,
        )

    def denoiser(self, asked: Request) -> CausalDenoiser:
        """The network with the request's text bound, guided where it asks for that."""
        encoder, network = self.prompt_encoder, cast(VideoTransformer, self.transformer)
        text = encoder(asked.prompts)
        if asked.guidance == 1:
            return TextDenoiser(network, text)
        return Guided(TextDenoiser(network, torch.cat([text, encoder(asked.negative)])), asked.guidance)


def _formatted(video: Tensor, output_type: str) -> Any:
    """[B, T, 3, H, W] in [0, 1] as diffusers users expect it."""
    if output_type == "pt":
        return video
    if output_type == "np":
        return video.permute(0, 1, 3, 4, 2).cpu().numpy()
    return [[Image.fromarray(picture) for picture in pixels(clip)] for clip in video]
