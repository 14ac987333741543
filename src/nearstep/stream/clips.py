"""Clips, whole or chunk by chunk as they are made: what calling a pipeline does, with diffusers' arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from nearstep.errors import NearstepError
from nearstep.nets.cache import KVCache
from nearstep.protocols import CausalDenoiser, LatentStream
from nearstep.rollout.rollout import AfterEachStep, Chunk, PlannedChunk, unroll
from nearstep.stream.callbacks import TENSORS, OnStepEnd, Steps, tensor_names
from nearstep.stream.finite import check_finite
from nearstep.stream.given import given_latents
from nearstep.stream.names import CALL, naming
from nearstep.stream.prompted import PromptedModel
from nearstep.stream.request import Request, plan_clip
from nearstep.stream.results import OUTPUT_TYPES, ChunkVideo, VideoOutput, formatted

OnChunkEnd = Callable[[Any, ChunkVideo], None]
"""(pipeline, the chunk) after each chunk."""


class ClipModel(PromptedModel):
    """A model that makes clips of prompts."""

    _callback_tensor_inputs: ClassVar = list(TENSORS)
    _guidance_scale, _interrupt = 1.0, False  # diffusers' names, which its callbacks set
    num_timesteps = 0
    """Steps of the newest clip."""

    @property
    def guidance_scale(self) -> float:
        """Of the clip whose callback is called; it may set another."""
        return self._guidance_scale

    @guidance_scale.setter
    def guidance_scale(self, weight: float) -> None:
        self._guidance_scale = weight

    @property
    def interrupt(self) -> bool:
        """A callback that sets it ends the clip: the step after is the last, and later chunks are not made."""
        return self._interrupt

    @interrupt.setter
    def interrupt(self, ends: bool) -> None:
        self._interrupt = ends

    @naming(CALL)
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        plan: str | None = None,
        *,
        negative_prompt: str | Sequence[str] | None = "",
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        num_videos_per_prompt: int | None = 1,
        seed: int | None = None,
        samples: Sequence[int] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        output_type: str = "np",
        return_dict: bool = True,
        callback_on_step_end: OnStepEnd | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] | None = None,
        callback_on_chunk_end: OnChunkEnd | None = None,
        max_sequence_length: int | None = None,
    ) -> VideoOutput | tuple[Any]:
        """Make clips whole.

        Args:
            prompt: one prompt, or one for each clip; None where there are ``prompt_embeds``.
            plan: steps per chunk, such as ``"4"`` or ``"4,1x"`` (flow/plan.py); the model's own by default.
            negative_prompt: as for :meth:`request`, and so are all that are not described here.
            height: pixels.
            width: pixels.
            num_frames: pixel frames, 4n+1.
            num_inference_steps: n means the plan ``"n"``.
            guidance_scale: w in v = u + w (c - u); 1 is none.
            num_videos_per_prompt: clips of each prompt, one after the other.
            seed: names all noise.
            samples: which samples of the seed the clips are.
            generator: a torch generator to draw the seed from, or one for each clip.
            latents: the noise that the clips start from.
            prompt_embeds: features of the prompts.
            negative_prompt_embeds: features of the negative ones.
            output_type: ``"np"``, ``"pt"``, ``"pil"`` or ``"latent"``; see :class:`VideoOutput`.
            return_dict: False gives the tuple ``(frames,)``.
            callback_on_step_end: called after each step (stream/callbacks.py); what it returns is gone on with.
            callback_on_step_end_tensor_inputs: what it sees of ``latents``, ``prompt_embeds`` and
                ``negative_prompt_embeds``; the first by default.
            callback_on_chunk_end: called with the pipeline and each :class:`ChunkVideo` as soon as it is decoded.
            max_sequence_length: text tokens that prompts are padded to.
        """
        if output_type not in OUTPUT_TYPES:
            raise NearstepError(f"output_type={output_type!r}; use one of {', '.join(OUTPUT_TYPES)}")
        names = tensor_names(callback_on_step_end, callback_on_step_end_tensor_inputs)
        request = self.request(
            prompt,
            plan,
            negative_prompt=negative_prompt,
            height=height,
            width=width,
            num_frames=num_frames,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            num_videos_per_prompt=num_videos_per_prompt,
            seed=seed,
            samples=samples,
            generator=generator,
            latents=latents,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            max_sequence_length=max_sequence_length,
        )
        made = self._made(request, callback_on_step_end, names, callback_on_chunk_end)
        latents_made = torch.cat([chunk.latents for chunk in made], dim=1)
        if output_type == "latent":
            frames = latents_made
        elif callback_on_chunk_end is None:
            # All chunks before the first is decoded: an offloaded network moves once, and its cache is gone by then.
            frames = formatted(self._decoded([chunk.latents for chunk in made]), output_type)
        else:
            frames = formatted(
                torch.cat([chunk.video for chunk in made if isinstance(chunk, ChunkVideo)], dim=1), output_type
            )
        self.maybe_free_model_hooks()
        output = VideoOutput(frames=frames, plan=request.clip.plan, seed=request.seed, request=request)
        return output if return_dict else output.to_tuple()

    @naming(CALL)
    def stream(
        self,
        prompt: str | Sequence[str] | None = None,
        plan: str | None = None,
        *,
        negative_prompt: str | Sequence[str] | None = "",
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        num_videos_per_prompt: int | None = 1,
        seed: int | None = None,
        samples: Sequence[int] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        max_sequence_length: int | None = None,
    ) -> Iterator[ChunkVideo]:
        """Make clips chunk by chunk, yielding each as soon as it is decoded; arguments as for :meth:`request`.

        Joined, the chunks are exactly what calling the pipeline gives.
        """
        request = self.request(
            prompt,
            plan,
            negative_prompt=negative_prompt,
            height=height,
            width=width,
            num_frames=num_frames,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            num_videos_per_prompt=num_videos_per_prompt,
            seed=seed,
            samples=samples,
            generator=generator,
            latents=latents,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            max_sequence_length=max_sequence_length,
        )
        return self.play(request)

    @naming(CALL)
    def request(
        self,
        prompt: str | Sequence[str] | None = None,
        plan: str | None = None,
        *,
        negative_prompt: str | Sequence[str] | None = "",
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        num_videos_per_prompt: int | None = 1,
        seed: int | None = None,
        samples: Sequence[int] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        max_sequence_length: int | None = None,
    ) -> Request:
        """Check what is wanted and complete it from the model's settings; quick, no network runs.

        Args:
            prompt: one prompt, or several; None where there are ``prompt_embeds``.
            plan: steps per chunk; the model's own by default.
            negative_prompt: what guidance leads away from.
            height: pixels.
            width: pixels.
            num_frames: pixel frames, 4n+1.
            num_inference_steps: n means the plan ``"n"``.
            guidance_scale: w in v = u + w (c - u); 1 is none, the student's default.
            num_videos_per_prompt: n clips of each prompt, one after the other: the same as every prompt n times in the
                list, so that n clips of one prompt are the samples 0 to n - 1 of the seed.
            seed: names all noise; a random one by default (it is in the result).
            samples: which samples of the seed the clips are; 0, 1, 2, ... by default. A clip depends on its prompt, the
                seed and its own sample, not on the clips beside it.
            generator: a torch generator to draw the seed from, in place of ``seed``; or one for each clip, which then
                is what its generator makes alone.
            latents: the noise [B, F, C, h, w] that the clips start from (diffusers' [B, C, F, h, w] is turned), in
                place of what seed and samples name (``request.noise()``); they still name what comes between steps.
            prompt_embeds: features [B, L, D] in the place of the prompts (:meth:`encode_prompt`).
            negative_prompt_embeds: the same for negative prompts.
            max_sequence_length: text tokens that prompts are padded to, the tokenizer's own by default. Longer prompts
                are refused, not cut.
        """
        clip = plan_clip(
            self.configs,
            plan=plan,
            num_inference_steps=num_inference_steps,
            num_frames=num_frames,
            height=height,
            width=width,
        )
        conditioning = self.conditioning(
            prompt,
            negative_prompt=negative_prompt,
            guidance_scale=guidance_scale,
            seed=seed,
            generator=generator,
            samples=samples,
            num_videos_per_prompt=num_videos_per_prompt,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            max_sequence_length=max_sequence_length,
        )
        count = len(conditioning.prompts)
        return Request.of(conditioning, clip, None if latents is None else given_latents(latents, clip.shape, count))

    @torch.no_grad()
    def play(
        self,
        request: Request,
        *,
        denoiser: CausalDenoiser[KVCache] | None = None,
        stream: LatentStream | None = None,
        fused: bool = True,
    ) -> Iterator[ChunkVideo]:
        """The chunks of a request, decoded as they are made.

        Args:
            request: what to make.
            denoiser: in the place of :meth:`denoiser`'s: one that is timed, or one that has this text bound already.
            stream: in the place of a fresh stream of the decoder.
            fused: commit a chunk in the first call of the next (rollout.unroll).
        """
        yield from self._shown(self._chunks(request, denoiser, fused=fused), stream)
        self.maybe_free_model_hooks()

    def _made(
        self, request: Request, on_step: OnStepEnd | None, names: Sequence[str], on_chunk: OnChunkEnd | None
    ) -> list[Chunk] | list[ChunkVideo]:
        """The chunks of a request, decoded where each is told of, with a bar of its steps."""
        self.num_timesteps, self.interrupt = request.clip.plan.steps, False
        with torch.no_grad(), self.progress_bar(total=request.clip.plan.steps) as bar:  # pyright: ignore[reportCallIssue]
            steps = None if on_step is None else Steps(self, request, on_step, names)

            def after(chunk: int, step: int, x: Tensor) -> Tensor:
                bar.update()
                return x if steps is None else steps.after(chunk, step, x)

            chunks = self._chunks(request, None if steps is None else steps.denoiser, after=after)
            if on_chunk is None:
                return list(chunks)
            shown = []
            for chunk in self._shown(chunks):
                on_chunk(self, chunk)
                shown.append(chunk)
            return shown

    def _shown(self, chunks: Iterator[Chunk], stream: LatentStream | None = None) -> Iterator[ChunkVideo]:
        """Each chunk, decoded as soon as it is made."""
        stream, start = self.latent_stream() if stream is None else stream, 0
        for chunk in chunks:
            video = check_finite(stream.decode(chunk.latents).float(), f"the pixels of chunk {chunk.index}")
            yield ChunkVideo(index=chunk.index, start=start, video=video, latents=chunk.latents, steps=chunk.steps)
            start += video.shape[1]

    @torch.no_grad()
    def _decoded(self, chunks: Sequence[Tensor]) -> Tensor:
        """The chunks of a clip as [B, T, 3, H, W] in [0, 1], float32."""
        stream = self.latent_stream()
        video = torch.cat([stream.decode(chunk).float() for chunk in chunks], dim=1)
        return check_finite(video, "the pixels")

    @torch.no_grad()
    def _chunks(
        self,
        request: Request,
        denoiser: CausalDenoiser[KVCache] | None = None,
        *,
        fused: bool = True,
        after: AfterEachStep | None = None,
    ) -> Iterator[Chunk]:
        denoiser = self.denoiser(request) if denoiser is None else denoiser
        plan, shape, cache = request.clip.plan, request.clip.shape, None
        if len(plan.lengths) > 1:
            cache = denoiser.new_cache(len(request.samples), plan.frames, shape.height, shape.width)
        stop = None if after is None else self._interrupted
        for chunk in unroll(
            denoiser,
            (PlannedChunk(*each, stop) for each in zip(plan.lengths, plan.schedules, strict=True)),
            partial(request.draw, device=self.network_device),
            cache=cache,
            renoise=request.clip.renoise,
            fused=fused,
            after=after,
        ):
            yield replace(chunk, latents=check_finite(chunk.latents, f"the latents of chunk {chunk.index}"))
            if after is not None and self.interrupt:
                return

    def _interrupted(self, steps: int, earlier: Tensor | None, x0: Tensor) -> bool:
        """Whether a callback has ended the clip: a rule by which a chunk stops (flow/live_plan.py)."""
        return self.interrupt
