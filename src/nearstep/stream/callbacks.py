"""What a caller sees of each step while clips are made, and may change: diffusers' callback_on_step_end."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, cast, runtime_checkable

import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from torch import Tensor

from nearstep.errors import NearstepError
from nearstep.flow.guidance import Guided
from nearstep.nets.cache import KVCache
from nearstep.protocols import CausalDenoiser
from nearstep.reach import Reach
from nearstep.stream.finite import check_finite
from nearstep.stream.request import Request, check_guidance

TENSORS = ("latents", "prompt_embeds", "negative_prompt_embeds")
"""What a callback may see and change."""
TRAINING_TIMES = 1000
"""diffusers' timesteps are t in 0 to 1000."""

OnStepEnd = Callable[[Any, int, Tensor, dict[str, Any]], Mapping[str, Any] | None]
"""(pipeline, step of the clip, its time in 0 to 1000, tensors by name) -> the same or others; None changes nothing.

A step is a chunk's, so ``latents`` are the chunk's [B, f, C, h, w]: noise for the next step, clean after the last.
"""


@runtime_checkable
class Watched(Protocol):
    """What a pipeline is to the steps that it runs."""

    @property
    def guidance_scale(self) -> float:
        """Of the clip that is made; may be set."""
        ...

    @guidance_scale.setter
    def guidance_scale(self, weight: float) -> None: ...

    def features(self, conditioning: Request) -> tuple[Tensor, Tensor | None]:
        """Of the prompts, and of the negative ones."""
        ...

    def bound(self, text: Tensor, negative: Tensor | None, guidance: float) -> CausalDenoiser[KVCache]:
        """A denoiser."""
        ...


def tensor_names(callback: OnStepEnd | None, names: Sequence[str] | None) -> tuple[str, ...]:
    """Which tensors a callback sees: those that it names itself if it is one of diffusers' objects.

    Raises:
        NearstepError: for others than :data:`TENSORS`, or names without a callback.
    """
    if callback is None:
        if names is not None and list(names) != ["latents"]:
            raise NearstepError("callback_on_step_end_tensor_inputs is about callback_on_step_end; give both")
        return ()
    if not callable(callback):
        raise NearstepError(f"callback_on_step_end={callback!r} is no function")
    if isinstance(callback, PipelineCallback | MultiPipelineCallbacks):
        names = callback.tensor_inputs
    names = ("latents",) if names is None else tuple(names)
    for name in names:
        _check_name(name, "callback_on_step_end_tensor_inputs names")
    return names


def _check_name(name: str, where: str) -> None:
    if name not in TENSORS:
        near = difflib.get_close_matches(str(name), TENSORS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(TENSORS)}"
        raise NearstepError(f"{where} {name!r}: {hint}")


class Changing:
    """A denoiser in whose place another may be put between two calls."""

    def __init__(self, now: CausalDenoiser[KVCache]) -> None:
        self.now = now

    def __call__(self, x: Tensor, t: Tensor, *, cache: KVCache | None = None, start: int = 0) -> Tensor:
        """As the one that is there now, and so the others."""
        return self.now(x, t, cache=cache, start=start)

    def commit(self, x: Tensor, *, cache: KVCache, start: int) -> None:
        """Write clean frames."""
        self.now.commit(x, cache=cache, start=start)

    def commit_then(self, clean: Tensor, x: Tensor, t: Tensor, *, cache: KVCache, start: int) -> Tensor:
        """Write clean frames, and call."""
        return self.now.commit_then(clean, x, t, cache=cache, start=start)

    def new_cache(
        self, batch: int, frames: int | None, height: int, width: int, *, reach: Reach | None = None
    ) -> KVCache:
        """An empty cache."""
        return self.now.new_cache(batch, frames, height, width, reach=reach)


class Steps:
    """Calls a callback after each step of a request, and does what it says from the next call on.

    What finished chunks left in the cache stays as it was made.

    Args:
        pipe: runs the request; its ``guidance_scale`` and ``interrupt`` may be set by the callback.
        request: what is made.
        callback: what to call.
        names: of the tensors that it sees.
    """

    def __init__(self, pipe: Watched, request: Request, callback: OnStepEnd, names: Sequence[str]) -> None:
        self.pipe, self.request, self.callback, self.names = pipe, request, callback, names
        self.text, self.negative = pipe.features(request)
        self.guidance = request.guidance
        self.denoiser = Changing(pipe.bound(self.text, self.negative, self.guidance))
        lengths = [len(schedule) for schedule in request.clip.plan.schedules]
        self.firsts = [sum(lengths[:chunk]) for chunk in range(len(lengths))]

    def after(self, chunk: int, step: int, x: Tensor) -> Tensor:
        """Call it; what the next step begins with."""
        held = {"latents": x, "prompt_embeds": self.text, "negative_prompt_embeds": self.negative}
        time = self.request.clip.plan.schedules[chunk].times[step] * TRAINING_TIMES
        self.pipe.guidance_scale = self.guidance
        # Texts as copies, so that a change in place is found; latents may be changed in place.
        seen = {name: x if name == "latents" else _copy(held[name]) for name in self.names}
        said = self.callback(self.pipe, self.firsts[chunk] + step, torch.tensor(time, device=x.device), seen)
        if said is not None and not isinstance(said, Mapping):
            raise NearstepError(f"callback_on_step_end returned {type(said).__name__}; return its tensors by name")
        changed = {}
        for name, value in {**seen, **(said or {})}.items():
            _check_name(name, "callback_on_step_end returned")
            if value is not None or held[name] is not None:
                _check_like(name, value, held[name])
                if name == "latents" or not torch.equal(cast(Tensor, value), cast(Tensor, held[name])):
                    changed[name] = value
        self._bind(changed, self.pipe.guidance_scale)
        return changed.get("latents", x).to(x)

    def _bind(self, changed: Mapping[str, Tensor], guidance: float) -> None:
        guidance = max(1.0, guidance)  # diffusers: 1 and below is none
        if guidance != self.guidance:
            check_guidance(guidance)
            if not isinstance(self.denoiser.now, Guided):
                raise NearstepError("guidance cannot begin within a clip; begin with a guidance_scale above 1")
        elif not changed.keys() & {"prompt_embeds", "negative_prompt_embeds"}:
            return
        self.text = changed.get("prompt_embeds", self.text).to(self.text)
        self.negative = changed.get("negative_prompt_embeds", self.negative)
        self.guidance = guidance
        self.denoiser.now = self.pipe.bound(self.text, self.negative, guidance)


def _copy(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.clone()


def _check_like(name: str, value: object, held: Tensor | None) -> None:
    if held is None:
        raise NearstepError(f"callback_on_step_end returned {name}, and without guidance there are none")
    shape = tuple(held.shape)
    if not isinstance(value, Tensor) or tuple(value.shape) != shape or not value.is_floating_point():
        what = f"{tuple(value.shape)} of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
        raise NearstepError(f"callback_on_step_end returned {name} as {what}; give floating-point numbers of {shape}")
    check_finite(value, f"{name} of callback_on_step_end")
