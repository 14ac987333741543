"""The options that several commands share: model, size, a student in a file of its own, how a pipeline is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from nearstep.cli.text import note
from nearstep.cluster import Cluster
from nearstep.errors import NearstepError
from nearstep.models.configs import ModelConfigs
from nearstep.models.folder import ModelFolder
from nearstep.models.lora_choice import LoraFile, loras_of
from nearstep.models.student import Student

if TYPE_CHECKING:
    from nearstep.stream.pipeline import CausalVideoPipeline


def optional(metavar: str, otherwise: str = "the model's own") -> Any:
    """How an option that may be left out is shown, and what it then is."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"(default: {otherwise})")


_MODEL = tyro.conf.arg(metavar="MODEL", help='"playground" (inside this package), a model folder, or a hub id.')
Model = Annotated[str, _MODEL]
ModelArgument = Annotated[tyro.conf.Positional[str], _MODEL]

AUTO = "auto"  # nets/devices.py, which needs torch
Device = Annotated[
    str,
    tyro.conf.arg(
        metavar="DEVICE",
        help='"auto" (CUDA, then MPS, then the CPU), or cpu, cuda, cuda:1, mps.',
        help_behavior_hint="(default: auto)",
    ),
]


@dataclass(frozen=True, kw_only=True)
class FrameSize:
    """Size of a frame."""

    height: Annotated[int | None, optional("PIXELS")] = None
    """Height of a frame."""
    width: Annotated[int | None, optional("PIXELS")] = None
    """Width of a frame."""


@dataclass(frozen=True, kw_only=True)
class ClipSize(FrameSize):
    """Size of a clip."""

    frames: Annotated[int | None, optional("4N+1")] = None
    """Pixel frames of a clip."""

    @property
    def pixels(self) -> dict[str, int | None]:
        """The size as plan_clip names it."""
        return {"num_frames": self.frames, "height": self.height, "width": self.width}


OWN_FRAME_SIZE, OWN_SIZE = FrameSize(), ClipSize()
FlatFrameSize = Annotated[FrameSize, tyro.conf.arg(name="")]
FlatClipSize = Annotated[ClipSize, tyro.conf.arg(name="")]
"""The options beside a command's own, without a prefix."""

_DEFAULTS = {field.name: field.default for field in fields(Student)}


def _student_option(metavar: str, name: str) -> Any:
    default = {None: "all", "": "none"}.get(_DEFAULTS.get(name, ""), _DEFAULTS.get(name))
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"(default: {default})")


@dataclass(frozen=True, kw_only=True)
class StudentOptions:
    """A causal student in a weights file, run on the model's codec and text encoder."""

    student: Annotated[str | None, _student_option("[NAME=]FILE", "")] = None
    """A network's weights file, which takes the place of the model's transformer; nearstep convert keeps the result.
    NAME is a published student's (self-forcing, causvid, ...; docs/wan.md) and sets what follows."""
    role: Annotated[
        str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="(default: the first of those that is there)")
    ] = None
    """Which network of FILE: generator_ema, generator, model."""
    chunk_frames: Annotated[int | None, _student_option("N", "chunk_frames")] = None
    """Latent frames that it denoises together."""
    window_frames: Annotated[int | None, _student_option("N", "window_frames")] = None
    """Newest latent frames that a chunk sees."""
    sink_frames: Annotated[int | None, _student_option("N", "sink_frames")] = None
    """First latent frames that every chunk sees in addition."""
    shift: Annotated[float | None, _student_option("K", "shift")] = None
    """The shift k of its schedule."""
    grid: Annotated[int | None, _student_option("N", "grid")] = None
    """Steps of the grid it was distilled on."""

    @property
    def chosen(self) -> Student | None:
        """The student, if one is named.

        Raises:
            NearstepError: for options of a student that is not named, or a file that is not there.
        """
        given = {field.name: getattr(self, field.name) for field in fields(StudentOptions)}
        given = {name: value for name, value in given.items() if value is not None}
        path = given.pop("student", None)
        if path is None:
            if given:
                name, value = next(iter(given.items()))
                option = f"--{name.replace('_', '-')} {value}"
                raise NearstepError(f"{option} is about a student's file; name it: --student FILE")
            return None
        return Student.of(path, **given)


NO_STUDENT = StudentOptions()
FlatStudent = Annotated[StudentOptions, tyro.conf.arg(name="")]
"""The options beside a command's own, without a prefix."""


@dataclass(frozen=True, kw_only=True)
class ClusterOptions:
    """Whether the work is shared by a cluster."""

    cluster: Annotated[str | None, optional("auto|ADDRESS", "this process alone")] = None
    """A Ray cluster to share the work, one worker a GPU: the address of its head, or auto, which is the one that this
    machine belongs to, else the GPUs and cores of this machine (docs/cluster.md)."""
    cpus: Annotated[int, tyro.conf.arg(metavar="N")] = 1
    """Cores of a cluster's worker, where there are no GPUs."""

    def chosen(self, device: str = AUTO) -> Cluster | None:
        """The cluster, if one is named; its workers get GPUs unless the work shall run on something else.

        Raises:
            NearstepError: for an option of a cluster that is not named, or without Ray.
        """
        if self.cluster is None:
            if self.cpus != NO_CLUSTER.cpus:
                raise NearstepError(f"--cpus {self.cpus} is about a cluster's workers; name one: --cluster auto")
            return None
        return Cluster(address=self.cluster, cpus=self.cpus, gpus=device == AUTO or device.startswith("cuda"))


NO_CLUSTER = ClusterOptions()
FlatCluster = Annotated[ClusterOptions, tyro.conf.arg(name="")]
"""The options beside a command's own, without a prefix."""


InFp8 = Annotated[tuple[Literal["weights", "products", "cache"], ...], optional("{weights,products,cache} ...", "none")]
LoraOption = Annotated[tuple[str, ...], optional("FILE[:STRENGTH] ...", "none")]
LoraAlpha = Annotated[float | None, optional("A", "what the files state, or their rank")]


def chosen_loras(given: Sequence[str], alpha: float | None) -> tuple[LoraFile, ...]:
    """The adapters that are named, looked for on disk; it is said where an alpha takes the place of a stated one.

    Raises:
        NearstepError: for an alpha without an adapter, or an adapter that is not there.
    """
    if alpha is not None and not given:
        raise NearstepError(f"--lora-alpha {alpha:g} needs --lora FILE")
    loras = loras_of(given, alpha)
    if alpha is not None:
        from nearstep.models.lora_files import stated_alpha

        for lora in loras:
            stated = stated_alpha(lora)
            if stated is not None and stated != alpha:
                note(f"--lora-alpha {alpha:g} in place of {stated:g}, which {lora.path} states")
    return loras


@dataclass(frozen=True, kw_only=True)
class Loading:
    """Which network of a model runs, where, and with what."""

    network: Annotated[str | None, optional("NAME", "transformer")] = None
    """The model's network to use, such as transformer (the causal student) or teacher (bidirectional, many steps)."""
    device: Device = AUTO
    """Where to run."""
    dtype: Annotated[Literal["float32", "bfloat16"] | None, optional("{float32,bfloat16}", "as saved")] = None
    """Precision of network and text encoder."""
    text_device: Annotated[str | None, optional("DEVICE", "as --device")] = None
    """Where to run the text encoder."""
    text_cache: Annotated[Path | None, optional("FOLDER", "none")] = None
    """Keeps what the text encoder made of prompts; it is loaded for new ones only."""
    vae_dtype: Annotated[Literal["float32", "bfloat16"] | None, optional("{float32,bfloat16}", "as saved")] = None
    """Precision of the decoder."""
    vae_tile: Annotated[int | None, optional("PIXELS", "whole frames")] = None
    """Decode in tiles of this size."""
    tiny_decoder: Annotated[Path | None, optional("FILE", "the model's own decoder")] = None
    """A TAEHV file to decode with, such as taew2_1.safetensors: fast previews."""
    fp8: InFp8 = ()
    """In eight bits: linear layers' weights, their products too (Ada and Hopper), keys and values of past frames."""
    compile: bool = False
    """Compile the network's blocks: minutes at first, then calls are faster."""
    student: FlatStudent = NO_STUDENT
    """A student in a weights file."""
    lora: LoraOption = ()
    """LoRA files or folders of any writer, merged into the network; FILE:0.8 counts 0.8 times."""
    lora_alpha: LoraAlpha = None
    """Their alpha, in place of the one that they state."""

    @property
    def departures(self) -> dict[str, str]:
        """What a clip's file says of the way it was made, where that is not the model's own."""
        named = {"tiny_decoder": self.tiny_decoder and self.tiny_decoder.name, "fp8": " ".join(sorted({*self.fp8}))}
        return {name: value for name, value in named.items() if value}

    def check(self) -> None:
        """Find out what is wrong without a model.

        Raises:
            NearstepError: for a device that is not here.
        """
        check_device(self.device)
        if self.text_device is not None:
            check_device(self.text_device)

    def open(self, model: str | ModelFolder) -> ModelConfigs:
        """The model's configurations, which say what is wrong at once: weights may take minutes to load."""
        self.check()
        loras = chosen_loras(self.lora, self.lora_alpha)
        return ModelConfigs.open(model, self.network or "transformer", self.student.chosen, loras)

    def pipeline(self, model: ModelConfigs) -> CausalVideoPipeline:
        """Load it."""
        import torch
        from transformers.utils.logging import disable_progress_bar

        from nearstep.stream.pipeline import CausalVideoPipeline

        disable_progress_bar()  # of loading a file; ours counts chunks
        pipe = CausalVideoPipeline.from_pretrained(
            model,
            torch_dtype=getattr(torch, self.dtype) if self.dtype else None,
            device=self.device,
            text_device=self.text_device,
            text_cache=self.text_cache,
            vae_dtype=getattr(torch, self.vae_dtype) if self.vae_dtype else None,
            vae_tile=self.vae_tile,
            tiny_decoder=self.tiny_decoder,
            fp8=self.fp8,
        )
        if self.compile:
            from nearstep.nets.compiling import compile_blocks

            compile_blocks(pipe.transformer)
        return pipe


def check_device(name: str) -> None:
    """Refuse a device that is not here, before anything is loaded."""
    if name in (AUTO, "cpu"):  # here everywhere; to ask for others takes seconds
        return
    from nearstep.nets.devices import find_device

    find_device(name)


def place(pipe: CausalVideoPipeline) -> str:
    """Where a pipeline runs, and in which precision, in a line."""
    from nearstep.cost.bench import DECODE, dtypes
    from nearstep.nets.fp8_layers import in_fp8

    found = {stage: str(dtype).removeprefix("torch.") for stage, dtype in dtypes(pipe).items()}
    narrow = "".join(f", {what}" for what in in_fp8(pipe.transformer))
    return f"on {pipe.network_device}: network in {found['step']}{narrow}, decoder in {found[DECODE]}"


AS_IT_IS = Loading()
FlatLoading = Annotated[Loading, tyro.conf.arg(name="")]
"""The options beside a command's own, without a prefix."""
