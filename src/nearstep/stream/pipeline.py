"""Load a model once, then make clips: whole, or chunk by chunk as they are made.

    pipe = CausalVideoPipeline.from_pretrained("playground")
    clip = pipe("a large red apple slides left on snow", plan="4,1x", seed=7).frames[0]

Used like diffusers' WanPipeline, with a plan in place of a number of steps. All denoising is rollout.rollout, so what
the pipeline makes is what training saw.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch

from nearstep.errors import NearstepError
from nearstep.nets.transformer import VideoTransformer
from nearstep.reach import Reach
from nearstep.stream.clips import ClipModel
from nearstep.stream.names import CALL, naming
from nearstep.stream.opening import Picture, PixelClip, context_video, digest, encoded, stream_reach
from nearstep.stream.recording import Opening, Recording
from nearstep.stream.request import Conditioning, check_room, latent_shape, whole
from nearstep.stream.session import Session
from nearstep.stream.setup import Script, Setup


class CausalVideoPipeline(ClipModel):
    """Text to video with a causal few-step student, or with a bidirectional many-step teacher.

    Made by :meth:`from_pretrained`, or of its components (stream/model.py). Calling it makes clips (stream/clips.py);
    what is here makes streams.
    """

    @naming(CALL)
    def open(
        self,
        prompt: str,
        plan: str | None = None,
        *,
        seed: int | None = None,
        sample: int = 0,
        negative_prompt: str = "",
        guidance_scale: float | None = None,
        height: int | None = None,
        width: int | None = None,
        image: Picture | None = None,
        video: PixelClip | None = None,
        window: int | None = None,
        sink: int | None = None,
        relative_sink: bool | None = None,
        recommit: bool | None = None,
        undo_depth: int = 0,
        prefetch: bool = False,
        final: bool = False,
        log: str | Path | None = None,
    ) -> Session:
        """A stream without end whose prompt, plan and seed may change between chunks (stream/session.py).

        Args:
            prompt: what it shows first.
            plan: ``"4,1x"``, ``"adaptive"`` or ``"fps:16"`` (flow/live_plan.py); the model's own by default.
            seed: names all noise; a random one by default (it is in the recording).
            sample: which sample of the seed.
            negative_prompt: what guidance leads away from.
            guidance_scale: w in v = u + w (c - u); 1, none, by default.
            height: pixels.
            width: pixels.
            image: a picture to go on from, or its file.
            video: a clip to go on from, 4n + 1 frames.
            window: newest latent frames that a chunk sees, its own included.
            sink: first latent frames that it sees in addition.
            relative_sink: see the sink as if it lay just before the window; yes, unless the model was trained with one.
            recommit: whether a new prompt commits the frames in sight anew, as if they had been made under it; as the
                model's settings say by default.
            undo_depth: so many of the newest chunks can be taken back at once, each for a copy of the cache.
            prefetch: make the next chunk while one is decoded: faster, and changes act one chunk later.
            final: where a tiny decoder makes the pixels, let the codec make them beside, in its own time:
                ``chunk.video`` is a preview, at once, and ``chunk.final()`` what the codec makes of the same latents.
            log: a file that follows the recording as it grows.

        Raises:
            NearstepError: naming what the model cannot do; nothing has run by then.
        """
        if not isinstance(prompt, str):
            raise NearstepError(f"a session has one prompt, not {prompt!r}; open one for each")
        if not isinstance(recommit, bool | None):
            raise NearstepError(f"recommit={recommit!r:.60}; give True or False")
        reach = stream_reach(self.configs, self.chunk_frames, window=window, sink=sink, relative_sink=relative_sink)
        conditioning = self.conditioning(
            prompt, negative_prompt=negative_prompt, guidance_scale=guidance_scale, seed=seed, samples=[sample]
        )
        opening = Opening(
            prompt=prompt,
            negative_prompt=negative_prompt,
            plan=self.settings.default_plan if plan is None else plan,
            seed=conditioning.seed,
            sample=whole("sample", sample),
            guidance=conditioning.guidance,
            height=self.settings.height if height is None else whole("height", height),
            width=self.settings.width if width is None else whole("width", width),
            window=reach.window,
            sink=reach.sink,
            relative_sink=reach.relative_sink,
            recommit=self.settings.recommit if recommit is None else recommit,
        )
        setup = self._setup(opening, conditioning, image, video, undo_depth=undo_depth, prefetch=prefetch, final=final)
        return Session(setup, log=None if log is None else Path(log))

    def replay(
        self,
        recording: Recording | str | Path,
        plan: str | None = None,
        *,
        image: Picture | None = None,
        video: PixelClip | None = None,
        undo_depth: int = 0,
        prefetch: bool = False,
        final: bool = False,
    ) -> Session:
        """A recorded stream again: bit for bit on the same build, or under another plan (draft at 1, final at 4).

        Args:
            recording: a session's recording, or its file.
            plan: instead of the steps that each chunk had.
            image: the picture that it went on from.
            video: the clip that it went on from.
            undo_depth: as for :meth:`open`.
            prefetch: as for :meth:`open`.
            final: as for :meth:`open`.

        Raises:
            NearstepError: for a file that is no recording, or one that began with another picture or clip.
        """
        recording = recording if isinstance(recording, Recording) else Recording.load(recording)
        was = recording.opening
        conditioning = self.conditioning(
            was.prompt,
            negative_prompt=was.negative_prompt,
            guidance_scale=was.guidance,
            seed=was.seed,
            samples=[was.sample],
        )
        opening = replace(was, plan=was.plan if plan is None else plan)
        setup = self._setup(opening, conditioning, image, video, undo_depth=undo_depth, prefetch=prefetch, final=final)
        if setup.opening.context != was.context:
            needed = "the picture or clip it went on from" if was.context else "no picture or clip"
            raise NearstepError(f"this recording began with {needed}; give the same (image= or video=)")
        if setup.opening.weights != was.weights:
            warnings.warn("this recording was made by other weights, so its frames will differ", stacklevel=2)
        return Session(setup, script=Script.of(recording, keep_times=plan is None))

    def _setup(
        self,
        opening: Opening,
        conditioning: Conditioning,
        image: Picture | None,
        video: PixelClip | None,
        *,
        undo_depth: int,
        prefetch: bool,
        final: bool,
    ) -> Setup:
        """All of an opening checked, its picture or clip encoded, and what it is made on noted in it."""
        if not isinstance(final, bool):
            raise NearstepError(f"final={final!r:.60}; give True or False")
        if final and self.tiny_decoder is None:
            raise NearstepError("final=True: the codec makes the pixels already; load the model with tiny_decoder=FILE")
        if getattr(self, "_all_hooks", None) and (final or (prefetch and self.tiny_decoder is None)):
            what = "final" if final else "prefetch"
            raise NearstepError(
                f"{what}=True has network and codec at work at once, and enable_model_cpu_offload() keeps one at "
                f"a time on the device; leave {what} out, or offload layers (enable_sequential_cpu_offload)"
            )
        self.live_plan(opening.plan)
        shape = latent_shape(self.configs, height=opening.height, width=opening.width)
        reach = Reach(window=opening.window, sink=opening.sink)
        check_room(self.configs, replace(shape, frames=self.chunk_frames), reach, chunk=self.chunk_frames)
        frames, context = context_video(image, video, height=opening.height, width=opening.width), None
        if frames is not None:
            with torch.no_grad():
                latents = encoded(frames, self.codec, self.decoder_device)
            context = latents.to(self.network_device, torch.float32)
        made_on = {
            "context": None if context is None else digest(context),
            # That of the output layer, which no training leaves alone.
            "weights": digest(cast(VideoTransformer, self.transformer).proj_out.weight),
            "torch": torch.__version__,
        }
        return Setup(
            model=self,
            opening=replace(opening, **made_on),
            conditioning=conditioning,
            frame=shape.frame,
            context=context,
            undo_depth=undo_depth,
            prefetch=prefetch,
            codec=self.codec if final else None,
        )
