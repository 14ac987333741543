"""Other systems as diffusers runs them: its own pipeline, loaded from a folder, with our prompts and seeds.

Nothing of the system is ours: its pipeline class denoises and decodes. We name the noise, count the passes through
its denoising networks, and take the frames as numbers.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from nearstep import rng
from nearstep.errors import NearstepError, first_line, hint
from nearstep.models.folder import INDEX, read_json
from nearstep.nets.devices import find_device
from nearstep.sampling.filming import Made
from nearstep.sampling.target import Target

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One of diffusers' pipelines for text to video."""

    name: str
    """Its class."""
    fps: float
    """What its clips are meant to be shown at."""
    rate: str | None = None
    """The argument of its call that is the frame rate, where one is."""


KINDS: Mapping[str, Kind] = {
    "wan": Kind(name="WanPipeline", fps=16),
    "skyreels": Kind(name="SkyReelsV2DiffusionForcingPipeline", fps=24, rate="fps"),
    "anyflow": Kind(name="AnyFlowFARPipeline", fps=16),
    "ltx": Kind(name="LTXPipeline", fps=25, rate="frame_rate"),
}
"""System -> its pipeline."""
DENOISERS = ("transformer", "transformer_2")
"""Components whose passes are calls."""
_OURS = frozenset(
    "prompt negative_prompt height width num_frames num_inference_steps guidance_scale generator output_type "
    "num_videos_per_prompt return_dict self".split()
)
"""Arguments of a call that have options of their own, or are not for options."""


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """A pipeline of diffusers, asked for one clip at a time."""

    system: str
    """Which of :data:`KINDS`."""
    model: str
    """Its folder, or a hub id."""
    steps: int | None = None
    """None, here and below, is what the pipeline's call has by itself."""
    height: int | None = None
    width: int | None = None
    frames: int | None = None
    guidance: float | None = None
    negative: str = ""
    seed: int = 0
    options: tuple[tuple[str, Any], ...] = ()
    """Further arguments of its call."""
    dtype: str | None = None
    device: str = "auto"

    @property
    def kind(self) -> Kind:
        """The pipeline's class, and what it leaves open."""
        return KINDS[self.system]

    @property
    def parts(self) -> int:
        """A clip comes at once."""
        return 1

    def check(self) -> None:
        """Find out what is wrong before weights are read.

        Raises:
            NearstepError: for a folder of another pipeline, or an argument that its call does not have.
        """
        if (folder := Path(self.model)).is_dir():
            index = folder / INDEX
            found = read_json(index).get("_class_name") if index.is_file() else None
            if found != self.kind.name:
                of = f"is of {found}" if found else f"has no {INDEX}"
                raise NearstepError(f"{folder} {of}; --system {self.system} takes a folder of {self.kind.name}")
        known = sorted(inspect.signature(self._class().__call__).parameters.keys() - _OURS)
        for name, _ in self.options:
            if name not in known:
                raise NearstepError(f"{self.kind.name} has no option {name!r}: {hint(name, known, 'it has')}")

    def _class(self) -> Any:
        import diffusers

        try:
            return getattr(diffusers, self.kind.name)
        except AttributeError as error:
            raise NearstepError(
                f"diffusers {diffusers.__version__} has no {self.kind.name}; install a newer one for --system "
                f"{self.system}"
            ) from error

    @cached_property
    def request(self) -> dict[str, Any]:
        """The arguments of the call that decide a clip, besides prompt and noise: as asked, or the pipeline's own."""
        own = inspect.signature(self._class().__call__).parameters
        asked = {
            "height": self.height,
            "width": self.width,
            "num_frames": self.frames,
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance,
        }
        filled = {name: own[name].default if value is None else value for name, value in asked.items()}
        return {**filled, **dict(self.options)}

    @property
    def fps(self) -> float:
        """Frames a second of a clip."""
        return float(self.request.get(self.kind.rate or "", self.kind.fps))

    def load(self) -> None:
        """Load the pipeline."""
        self.pipe  # noqa: B018 - it is kept

    @cached_property
    def pipe(self) -> DiffusionPipeline:
        """The pipeline on its device.

        Raises:
            NearstepError: if diffusers cannot load it.
        """
        device = find_device(self.device)
        try:
            pipe = self._class().from_pretrained(self.model, dtype=getattr(torch, self.dtype or "float32"))
        except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
            raise NearstepError(f"diffusers cannot load {self.model}: {first_line(error)}") from error
        pipe.set_progress_bar_config(disable=True)  # ours counts clips
        return pipe.to(device)

    def summary(self, count: int) -> str:
        """Steps and size."""
        told = ", ".join(f"{name} {value}" for name, value in self.request.items())
        return f"{count} x {self.kind.name} of diffusers, {told}; seed {self.seed}"

    def noise_seed(self, sample: int) -> int:
        """What the generator of a clip is seeded with."""
        return rng.key("sample", self.seed, sample)

    def said(self, target: Target) -> dict[str, Any]:
        """The pipeline, and all arguments of its call."""
        return {
            "system": self.system,
            "model": self.model,
            "dtype": self.dtype or "float32",
            "prompt": target.prompt,
            "negative_prompt": self.negative,
            **self.request,
            "seed": self.seed,
            "sample": target.index,
            "generator": self.noise_seed(target.index),
        }

    def made(self, target: Target, told: Callable[[], object]) -> Made:
        """Call the pipeline, its noise drawn on the CPU so that every device sees the same.

        Raises:
            NearstepError: with what the pipeline says of a request that it cannot serve.
        """
        draw = torch.Generator().manual_seed(self.noise_seed(target.index))
        negative = {"negative_prompt": self.negative} if self.negative else {}
        with _counted(self.pipe) as calls:
            try:
                found = self.pipe(  # pyright: ignore[reportCallIssue]
                    prompt=target.prompt, generator=draw, output_type="pt", **negative, **self.request
                )
            except (ValueError, TypeError) as error:
                raise NearstepError(f"{self.kind.name} refuses: {first_line(error)}") from error
        video = found.frames[0].float().cpu()
        told()
        frames, _, height, width = video.shape
        return Made(video=video, fps=self.fps, frames=frames, height=height, width=width, calls=len(calls))


@contextmanager
def _counted(pipe: DiffusionPipeline) -> Iterator[list[None]]:
    """A list that grows by one with each pass through a denoising network, whatever method the pipeline calls."""
    calls: list[None] = []
    networks = [network for name in DENOISERS if (network := getattr(pipe, name, None)) is not None]
    hooks = [network.register_forward_pre_hook(lambda *_: calls.append(None)) for network in networks]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()
