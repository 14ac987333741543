"""Load a model once, then make clips: whole, or chunk by chunk as they are made.

    pipe = CausalVideoPipeline.from_pretrained("playground")
    clip = pipe("a large red ball slides left on snow", plan="4,1x", seed=7).frames[0]

Used like diffusers' WanPipeline, with a plan in place of a number of steps. All denoising is rollout.rollout, so what
the pipeline makes is what training saw.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler
from diffusers.loaders import WanLoraLoaderMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, UMT5EncoderModel

from nearstep.errors import NearstepError
from nearstep.files import open_to_readers
from nearstep.flow.guidance import Guided
from nearstep.flow.plan import ChunkPlan
from nearstep.models.card import Card, write_card
from nearstep.models.folder import INDEX, ModelFolder, Settings
from nearstep.models.loading import load_component, load_student, load_tiny_decoder, load_tokenizer, tile_codec
from nearstep.models.student import Student, configs_of, settings_of
from nearstep.nets.codec import VideoCodec
from nearstep.nets.denoiser import TextDenoiser
from nearstep.nets.devices import device_of
from nearstep.nets.text import PromptEncoder
from nearstep.nets.text_cache import CachedPromptEncoder, check_cache_folder, encoder_name
from nearstep.nets.tiny_decoder import TinyDecoder
from nearstep.nets.transformer import VideoTransformer
from nearstep.protocols import CausalDenoiser, LatentStream
from nearstep.rollout.rollout import Chunk, rollout
from nearstep.stream import request as requests
from nearstep.stream.opening import open_replay, open_session
from nearstep.stream.output import pixels
from nearstep.stream.recording import Record
from nearstep.stream.request import Request
from nearstep.stream.session import Session
from nearstep.stream.state import Frames


@dataclass(frozen=True, kw_only=True)
class VideoOutput:
    """Clips and what made them."""

    frames: Any
    """One clip per prompt: ``pt`` [B, T, 3, H, W], ``np`` [B, T, H, W, 3] in [0, 1], ``pil`` lists of images,
    ``latent`` [B, F, C, h, w]."""
    plan: ChunkPlan
    seed: int
    request: Request


@dataclass(frozen=True, kw_only=True)
class _CachedText:
    """Where the features of prompts lie, and how to load the encoder for those that are not there."""

    folder: Path
    source: str
    load: Callable[[], UMT5EncoderModel]
    device: torch.device | str | None


class CausalVideoPipeline(DiffusionPipeline, WanLoraLoaderMixin):
    """Text to video with a causal few-step student, or with a bidirectional many-step teacher.

    ``tiny_decoder`` (a TinyDecoder, None at first) makes the pixels in the codec's place where it is set.

    Args:
        transformer: the network; bidirectional where its ``chunk_frames`` is None, and then run as one chunk.
        vae: the codec's weights.
        text_encoder: UMT5's encoder; None until it is needed, where features of prompts are cached.
        tokenizer: its fast tokenizer.
        scheduler: holds the shift; nothing else of it is used.
        nearstep: the model's :class:`Settings`, as in model_index.json.
    """

    _lora_loadable_modules: ClassVar = ["transformer"]
    model_cpu_offload_seq = "text_encoder->transformer->vae"

    def __init__(
        self,
        transformer: VideoTransformer,
        vae: AutoencoderKLWan,
        text_encoder: UMT5EncoderModel | None,
        tokenizer: PreTrainedTokenizerFast,
        scheduler: FlowMatchEulerDiscreteScheduler,
        nearstep: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.settings = Settings.of(nearstep)
        self.tiny_decoder: TinyDecoder | None = None
        self._cached_text: _CachedText | None = None
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
        text_device: torch.device | str | None = None,
        text_cache: str | Path | None = None,
        vae_dtype: torch.dtype | None = None,
        vae_tile: int | None = None,
        tiny_decoder: str | Path | None = None,
    ) -> CausalVideoPipeline:
        """Load a model folder.

        Args:
            name: ``"playground"`` (inside this package), a folder, or a hub id.
            transformer: the sub-folder of the network, such as ``"teacher"`` for the bidirectional one.
            student: a weights file whose network takes the place of ``transformer/``, which gives its sizes; a
                :class:`Student` says how it was trained (docs/wan.md), a path alone means Self-Forcing's way.
            torch_dtype: of network and text encoder.
            device: where to put it.
            text_device: where to put the text encoder, if elsewhere: ``"cpu"`` leaves the GPU to the network.
            text_cache: a folder for the features of prompts; the text encoder is loaded when a prompt is not there.
            vae_dtype: of the codec, or of the tiny decoder; as saved by default (float32 for Wan's).
            vae_tile: decode in tiles of so many pixels, a quarter shared. Less memory while a tile is made, but more
                kept between chunks and more work, as much as tiles share (``pipe.vae.enable_tiling`` sets more).
            tiny_decoder: a TAEHV file (``taew2_1.safetensors``) to decode with in place of the codec.

        Raises:
            NearstepError: naming the file that is missing, damaged or of another kind.
        """
        folder = ModelFolder.open(name)
        student = None if student is None else Student.of(student)
        configs = configs_of(folder, transformer, student)
        networks, encoders = ("VideoTransformer", "WanTransformer3DModel"), ("UMT5EncoderModel", "umt5")
        tiny = None if tiny_decoder is None else load_tiny_decoder(tiny_decoder, folder.config("vae"), vae_dtype)
        tokenizer = load_tokenizer(folder)
        load = partial(load_component, folder, "text_encoder", UMT5EncoderModel, encoders, dtype=torch_dtype)
        cached = None
        if text_cache is not None:
            check_cache_folder(Path(text_cache))
            folder.check_class("text_encoder", *encoders)
            folder.tensors("text_encoder")  # whole, before minutes go into the network
            source = encoder_name(folder.path / "text_encoder", folder.path / "tokenizer", torch_dtype)
            cached = _CachedText(folder=Path(text_cache), source=source, load=load, device=text_device)
        vae = load_component(folder, "vae", AutoencoderKLWan, ("AutoencoderKLWan",), torch_dtype=vae_dtype)
        if vae_tile is not None:
            tile_codec(vae, vae_tile)
        if student is None:
            network = load_component(folder, transformer, VideoTransformer, networks, torch_dtype=torch_dtype)
        else:
            folder.check_class(transformer, *networks)
            network = load_student(student, configs.transformer, torch_dtype=torch_dtype)
        pipe = cls(
            transformer=network,
            vae=vae,
            text_encoder=load() if cached is None else None,
            tokenizer=tokenizer,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=requests.shift_of(configs.scheduler)),
            nearstep=settings_of(folder, student),
        )
        pipe.tiny_decoder, pipe._cached_text = tiny, cached
        places = dict.fromkeys(("transformer", "vae"), device) | {"text_encoder": text_device or device}
        for component, place in places.items():
            if place is not None and isinstance(module := pipe.components[component], nn.Module):
                module.to(place)
        return pipe

    def save_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]  # the card is ours
        self, save_directory: str | Path, *, card: Card | None = None, **options: Any
    ) -> None:
        """Write a model folder, with a model card, that :meth:`from_pretrained` and diffusers load.

        Args:
            save_directory: the folder.
            card: what the model card should say that the folder does not.
            options: diffusers', such as ``max_shard_size``.
        """
        self._loaded_text_encoder()  # one that was not needed yet is part of the folder
        folder, config = Path(save_directory), self.transformer.config
        for part in (self.transformer, self.vae):
            part.register_to_config(_name_or_path="")  # where it was loaded from is nobody's business
        super().save_pretrained(folder, **options)
        plan = self.settings.default_plan if config["chunk_frames"] else None
        write_card(folder, card or Card(), config=config, plan=plan, library="nearstep")
        open_to_readers(folder, folder / INDEX)

    @property
    def codec(self) -> VideoCodec:
        """Pixels to latents and back."""
        return VideoCodec(self.vae)

    @property
    def decoder(self) -> VideoCodec | TinyDecoder:
        """What makes pixels of latents: the codec, or the tiny decoder where one is set."""
        return self.codec if self.tiny_decoder is None else self.tiny_decoder.to(device_of(self.transformer))

    @property
    def prompt_encoder(self) -> PromptEncoder | CachedPromptEncoder:
        """Prompts to token features."""
        if (cached := self._cached_text) is not None:
            return CachedPromptEncoder(cached.folder, cached.source, self.tokenizer, self._loaded_text_encoder)
        return PromptEncoder(self.tokenizer, self.text_encoder)

    def _loaded_text_encoder(self) -> UMT5EncoderModel:
        """The text encoder; one that was not needed until now is loaded, and offloaded like the others."""
        cached = self._cached_text
        if self.text_encoder is not None or cached is None:
            return cast(UMT5EncoderModel, self.text_encoder)
        encoder: Any = cached.load()
        self.register_modules(text_encoder=encoder)
        place = cached.device or cast(VideoTransformer, self.transformer).device
        if getattr(self, "_all_hooks", None):
            self.maybe_free_model_hooks()  # which hooks all models anew
        elif str(place) != "meta":  # where layers are offloaded one by one; this one then stays on the CPU
            encoder.to(place)
        return encoder

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
        # All chunks before the first is decoded: an offloaded network moves once, and its cache is gone by then.
        latents = [chunk.latents for chunk in self._chunks(asked)]
        made = torch.cat(latents, dim=1) if output_type == "latent" else _formatted(self._decoded(latents), output_type)
        self.maybe_free_model_hooks()
        return VideoOutput(frames=made, plan=asked.clip.plan, seed=asked.seed, request=asked)

    def stream(self, prompt: str | Sequence[str], plan: str | None = None, **wishes: Any) -> Iterator[Frames]:
        """Make clips chunk by chunk, yielding each as soon as it is decoded; arguments as for :meth:`request`.

        Joined, the chunks are exactly what calling the pipeline gives.
        """
        return self.play(self.request(prompt, plan, **wishes))

    def open(self, prompt: str, plan: str | None = None, **wishes: Any) -> Session:
        """A stream without end whose prompt, plan and seed may change between chunks (stream/session.py).

        Args:
            prompt: what it shows first.
            plan: ``"4,1x"``, ``"adaptive"`` or ``"fps:16"`` (flow/live_plan.py); the model's own by default.
            wishes: seed, image or video to go on from, size, window, undo, ahead, log: see opening.open_session.
        """
        return open_session(self, prompt, plan, **wishes)

    def replay(self, take: Record | str | Path, plan: str | None = None, **given: Any) -> Session:
        """A recorded take again: bit for bit on the same build, or under another plan (draft at 1, final at 4).

        Args:
            take: a session's record, or its file.
            plan: instead of the steps that each chunk had.
            given: the ``image`` or ``video`` that it went on from; ``ahead`` as for :meth:`open`.
        """
        return open_replay(self, take, plan, **given)

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
    def play(
        self,
        asked: Request,
        *,
        denoiser: CausalDenoiser | None = None,
        stream: LatentStream | None = None,
        fused: bool = True,
    ) -> Iterator[Frames]:
        """The chunks of a request, decoded as they are made.

        Args:
            asked: the request.
            denoiser: in the place of :meth:`denoiser`'s, such as one that is timed.
            stream: in the place of a fresh stream of the decoder.
            fused: commit a chunk in the first call of the next (rollout.unroll).
        """
        stream, start = self.decoder.stream() if stream is None else stream, 0
        for chunk in self._chunks(asked, denoiser, fused=fused):
            video = stream.decode(chunk.latents).float()
            yield Frames(index=chunk.index, start=start, video=video, latents=chunk.latents, steps=chunk.steps)
            start += video.shape[1]
        self.maybe_free_model_hooks()

    @torch.no_grad()
    def _decoded(self, chunks: Sequence[Tensor]) -> Tensor:
        """The chunks of a clip as [B, T, 3, H, W] in [0, 1], float32."""
        stream = self.decoder.stream()
        return torch.cat([stream.decode(chunk).float() for chunk in chunks], dim=1)

    @torch.no_grad()
    def _chunks(self, asked: Request, denoiser: CausalDenoiser | None = None, *, fused: bool = True) -> Iterator[Chunk]:
        clip = asked.clip
        yield from rollout(
            self.denoiser(asked) if denoiser is None else denoiser,
            clip.plan,
            shape=clip.shape.frame,
            seed=asked.seed,
            samples=asked.samples,
            renoise=clip.renoise,
            fused=fused,
            device=device_of(self.transformer),
        )

    def denoiser(self, asked: Request) -> CausalDenoiser:
        """The network with the request's text bound, guided where it asks for that."""
        encoder, network = self.prompt_encoder, cast(VideoTransformer, self.transformer)
        place = device_of(network)
        text = encoder(asked.prompts).to(place)
        if asked.guidance == 1:
            return TextDenoiser(network, text)
        both = torch.cat([text, encoder(asked.negative).to(place)])
        return Guided(TextDenoiser(network, both), asked.guidance)


def _formatted(video: Tensor, output_type: str) -> Any:
    """[B, T, 3, H, W] in [0, 1] as diffusers users expect it."""
    if output_type == "pt":
        return video
    if output_type == "np":
        return video.permute(0, 1, 3, 4, 2).cpu().numpy()
    return [[Image.fromarray(picture) for picture in pixels(clip)] for clip in video]
