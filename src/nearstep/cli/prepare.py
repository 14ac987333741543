"""``nearstep prepare``: videos with captions, or prompts and a teacher, become the latents that training reads."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from nearstep.cli.arguments import parsed
from nearstep.cli.options import (
    AUTO,
    NO_CLUSTER,
    OWN_SIZE,
    Device,
    FlatClipSize,
    FlatCluster,
    Model,
    check_device,
    optional,
    place,
)
from nearstep.cli.text import note
from nearstep.errors import NearstepError
from nearstep.models.configs import ModelConfigs
from nearstep.models.folder import EMBEDDED, ModelFolder

if TYPE_CHECKING:
    from torch import Tensor

    from nearstep.data.decoding import Work
    from nearstep.data.prompts import Prompts
    from nearstep.data.shards import Index, ShardWriter
    from nearstep.data.videos import ClipSize
    from nearstep.stream.pipeline import CausalVideoPipeline
    from nearstep.stream.request import Clip

_MOST_WORKERS = 16


@dataclass(frozen=True, kw_only=True)
class Prepare:
    """Turn a folder of videos with captions into latents: resized, cut, encoded once, read by every training.

    A caption is a text file beside its video (dog.mp4, dog.txt), or a line of metadata.csv or metadata.jsonl with the
    columns file_name and caption. With --from-teacher SRC is a prompt file instead (.txt, .jsonl or .csv), and the
    clips are what the teacher makes of it. An interrupted run goes on when it is started again.
    """

    source: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="SRC")]
    """A folder of videos, or a prompt file."""
    target: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DST")]
    """Folder of the latents."""
    model: Model = EMBEDDED
    """Whose codec encodes."""
    size: FlatClipSize = OWN_SIZE
    """Size of a clip."""
    fps: Annotated[float | None, optional("FPS")] = None
    """Frames per second of a clip."""
    clips_per_video: Annotated[int, tyro.conf.arg(metavar="N")] = 1
    """At most this many clips of a video, one after the other from its beginning."""
    caption_column: Annotated[str | None, optional("NAME", "caption, text or prompt")] = None
    """Where captions stand in the metadata or the prompt file."""
    from_teacher: bool = False
    """Make the clips from prompts by the network named by --network."""
    network: Annotated[str, tyro.conf.arg(metavar="NAME")] = "teacher"
    """The model's network that makes clips."""
    plan: Annotated[str | None, optional("PLAN")] = None
    """Its steps, such as 50."""
    guidance: Annotated[float | None, optional("W")] = None
    """In v = u + w (c - u); 1 is none."""
    negative: Annotated[str, tyro.conf.arg(metavar="PROMPT")] = ""
    """What guidance leads away from."""
    seed: Annotated[int, tyro.conf.arg(metavar="N")] = 0
    """Names the teacher's noise."""
    workers: Annotated[int | None, optional("N", "one less than there are cores, at most 16")] = None
    """Processes that decode videos; 0 decodes without any."""
    batch: Annotated[int, tyro.conf.arg(metavar="N")] = 1
    """Clips that codec or teacher work on together."""
    shard: Annotated[int | None, optional("N", "what makes 256 MiB, at most 512")] = None
    """Clips per shard; a run that is killed loses less than one."""
    store: Literal["float16", "bfloat16", "float32"] = "float16"
    """Type of the stored numbers."""
    device: Device = AUTO
    """Where codec and teacher run."""
    dtype: Annotated[Literal["float32", "bfloat16"] | None, optional("{float32,bfloat16}", "as saved")] = None
    """Precision of the teacher and its text encoder; the codec runs in float32."""
    cluster: FlatCluster = NO_CLUSTER
    """Who decodes, encodes and plays the teacher."""
    dry_run: bool = False
    """Check everything, say what would be done, and stop."""


def run(arguments: Sequence[str]) -> None:
    """Parse the arguments and make the latents."""
    prepare(parsed(Prepare, "nearstep prepare", arguments))


def prepare(options: Prepare) -> None:
    """Make the latents, after everything that can be checked without weights has been."""
    from nearstep.stream.request import check_guidance

    for name, value, least in (("batch", options.batch, 1), ("workers", options.workers, 0)):
        if value is not None and value < least:
            raise NearstepError(f"--{name} {value}; at least {least}")
    if options.guidance is not None:
        check_guidance(options.guidance)
    _check_used(options)
    check_device(options.device)
    folder = ModelFolder.open(options.model)
    if options.from_teacher:
        _from_prompts(options, ModelConfigs.open(folder, options.network))
    else:
        if not (networks := folder.networks()):
            raise NearstepError(f"{options.model} holds no network to prepare clips for; name a whole model")
        _from_videos(options, ModelConfigs.open(folder, "teacher" if "teacher" in networks else networks[0]))


def _check_used(options: Prepare) -> None:
    """Refuse what would be ignored: options of a teacher without one, and of videos with one."""
    of_a_teacher, of_videos = (
        ("plan", "guidance", "negative", "seed", "network", "dtype"),
        ("workers", "clips_per_video"),
    )
    for name in of_videos if options.from_teacher else of_a_teacher:
        given, default = getattr(options, name), Prepare.__dataclass_fields__[name].default
        if given != default:
            needs = "is about videos, and --from-teacher reads none" if options.from_teacher else "needs --from-teacher"
            raise NearstepError(f"--{name.replace('_', '-')} {given}: it {needs}; leave it out")


# --- videos --------------------------------------------------------------------------------------------------------


def _from_videos(options: Prepare, model: ModelConfigs) -> None:
    from nearstep.data.prepare import SKIPPED, prepare_videos, remaining
    from nearstep.data.videos import list_videos
    from nearstep.models.loading import caption_check
    from nearstep.nets.devices import find_device

    if options.source.is_file():
        raise NearstepError(f"{options.source} is a file; give a folder of videos, or prompts with --from-teacher")
    cluster = options.cluster.chosen(options.device)
    if cluster is not None and (options.batch > 1 or options.workers is not None):
        raise NearstepError(
            "a cluster's workers decode a video and encode a clip at a time; leave --batch, --workers out"
        )
    clip, size = _clip(options, model), _size(options, model)
    videos = list_videos(options.source, column=options.caption_column)
    index = _opened(options, model, clip, size, {"kind": "videos", "clips_per_video": size.clips_per_video})
    work, check, writer = remaining(videos, options.target, index), caption_check(model.folder), _writer(options, index)
    note(f"{len(videos)} videos, {len(videos) - len(work)} of them done; {_describe(index)}")
    if options.dry_run:
        _foresee(work, index, size, check)
        return
    cores = min(_MOST_WORKERS, max(1, (os.cpu_count() or 2) - 1))
    workers = min(cores if options.workers is None else options.workers, len(work))
    began, encode = time.perf_counter(), _Encoder(folder=model.folder, device=options.device)
    if cluster is None:
        note(f"on {find_device(options.device)}: codec in float32")
    with _progress(len(work), "video") as told:
        skipped = prepare_videos(
            work, size, writer, encode, workers=workers, batch=options.batch, check=check, told=told, cluster=cluster
        )
    _report(options.target, writer.index, index.clips, time.perf_counter() - began)
    if skipped:
        counted = Counter(one.reason.partition(":")[0] for one in skipped).most_common()
        reasons = ", ".join(f"{count} {reason}" for reason, count in counted)
        note(f"skipped {len(skipped)} of {len(videos)} videos ({reasons}): {options.target / SKIPPED} says why")
    if not writer.index.clips:
        raise NearstepError(f"{options.source} gave no clip: {skipped[0].file}: {skipped[0].reason}")


@dataclass(frozen=True, kw_only=True)
class _Encoder:
    """The codec, loaded with the first clip, wherever that is."""

    folder: ModelFolder
    device: str

    @cached_property
    def loaded(self) -> Callable[[Tensor], Tensor]:
        from nearstep.models.loading import load_encoder

        return load_encoder(self.folder, self.device)

    def __call__(self, video: Tensor) -> Tensor:
        return self.loaded(video)


def _foresee(work: Sequence[Work], index: Index, size: ClipSize, check: Callable[[str], object]) -> None:
    from nearstep.data.prepare import refused
    from nearstep.data.videos import count_clips

    clips, videos, skipped = 0, 0, []
    for video, first in work:
        if (reason := refused(video, check)) is None:
            try:
                clips += max(0, count_clips(video.path, size) - first)
                videos += 1
            except NearstepError as error:
                reason = str(error)
        if reason is not None:
            skipped.append(f"would skip {video.name}: {reason}")
    print(f"would encode at most {clips} clips of {videos} videos, {_bytes(clips * _clip_bytes(index))}")
    for line in skipped:
        print(line)


# --- prompts and a teacher -----------------------------------------------------------------------------------------


def _from_prompts(options: Prepare, model: ModelConfigs) -> None:
    from nearstep.data.prepare import prepare_prompts
    from nearstep.data.prompts import read_prompts
    from nearstep.flow.guidance import check_negative
    from nearstep.stream.request import own_guidance

    prompts = read_prompts([options.source], column=options.caption_column)
    clip, size, cluster = _clip(options, model), _size(options, model), options.cluster.chosen(options.device)
    if size.fps != model.settings.fps:
        raise NearstepError(f"--fps {size.fps:g}: this model's clips have {model.settings.fps:g} fps")
    _check_prompts(prompts, model.folder)
    own = own_guidance(model)
    guidance = float(own if options.guidance is None else options.guidance)
    check_negative([options.negative], guidance)
    made_from = {
        "kind": "teacher",
        "model": options.model,
        "network": options.network,
        "plan": str(clip.plan),
        "guidance": guidance,
        "negative": options.negative,
        "seed": options.seed,
    }
    index = _opened(options, model, clip, size, made_from)
    if prompts.repeated:
        note(f"prompts that are there more than once count once ({len(prompts.repeated)}): {prompts.repeated[0]!r}")
    todo = max(0, len(prompts.texts) - index.clips)
    calls = clip.plan.calls * (1 if guidance == 1 else 2)
    note(f"{len(prompts.texts)} prompts, {index.clips} done; {calls} network calls a clip; {_describe(index)}")
    if options.dry_run:
        print(f"would make {todo} clips, {_bytes(todo * _clip_bytes(index))}")
        return
    writer, make = _writer(options, index), _Teacher(options=options, model=model)
    began = time.perf_counter()
    with _progress(todo, "clip") as told:
        prepare_prompts(prompts.texts, writer, make, batch=options.batch, told=told, cluster=cluster)
    _report(options.target, writer.index, index.clips, time.perf_counter() - began)


def _check_prompts(prompts: Prompts, folder: ModelFolder) -> None:
    from nearstep.models.loading import caption_check

    check = caption_check(folder)
    for prompt, line in zip(prompts.texts, prompts.places, strict=True):
        try:
            check(prompt)
        except NearstepError as error:
            raise NearstepError(f"{line}: {error}") from None


@dataclass(frozen=True, kw_only=True)
class _Teacher:
    """Makes latents of prompts and their numbers; loaded with the first, wherever that is."""

    options: Prepare
    model: ModelConfigs

    @cached_property
    def pipe(self) -> CausalVideoPipeline:
        import torch
        from transformers.utils.logging import disable_progress_bar

        from nearstep.stream.pipeline import CausalVideoPipeline

        disable_progress_bar()  # of loading a file; ours counts clips
        dtype = getattr(torch, self.options.dtype) if self.options.dtype else None
        pipe = CausalVideoPipeline.from_pretrained(self.model, torch_dtype=dtype, device=self.options.device)
        pipe.set_progress_bar_config(disable=True)
        note(place(pipe))
        return pipe

    def __call__(self, texts: list[str], numbers: list[int]) -> Tensor:
        options = self.options
        return self.pipe(
            texts,
            output_type="latent",
            negative_prompt=options.negative,
            guidance_scale=options.guidance,
            seed=options.seed,
            samples=numbers,
            plan=options.plan,
            num_frames=options.size.frames,
            height=options.size.height,
            width=options.size.width,
        )[0]


# --- both ----------------------------------------------------------------------------------------------------------


def _clip(options: Prepare, model: ModelConfigs) -> Clip:
    """The clip that a network could make, or learn, at the sizes asked for."""
    from nearstep.stream.request import plan_clip

    return plan_clip(model, plan=options.plan, **options.size.pixels)


def _size(options: Prepare, model: ModelConfigs) -> ClipSize:
    from nearstep.data.videos import ClipSize

    size, settings = options.size, model.settings
    return ClipSize(
        frames=size.frames or settings.num_frames,
        height=size.height or settings.height,
        width=size.width or settings.width,
        fps=settings.fps if options.fps is None else options.fps,
        clips_per_video=options.clips_per_video,
    )


def _opened(options: Prepare, model: ModelConfigs, clip: Clip, size: ClipSize, made_from: Mapping[str, Any]) -> Index:
    from nearstep.data.prepare import open_folder
    from nearstep.data.shards import Index, codec_key

    pixels = {"frames": size.frames, "height": size.height, "width": size.width}
    wanted = Index(
        codec=codec_key(model.vae),
        shape=(clip.shape.frames, *clip.shape.frame),
        dtype=options.store,
        fps=size.fps,
        made_from={**made_from, **pixels},
    )
    return open_folder(options.target, wanted)


def _writer(options: Prepare, index: Index) -> ShardWriter:
    from nearstep.data.prepare import shard_size
    from nearstep.data.shards import ShardWriter

    return ShardWriter(options.target, index, shard_size(index, options.shard))


@contextmanager
def _progress(total: int, unit: str) -> Iterator[Callable[[int], object]]:
    from tqdm import tqdm

    with tqdm(total=total, unit=unit, disable=None, dynamic_ncols=True) as bar:
        yield bar.update


def _describe(index: Index) -> str:
    frames, channels, height, width = index.shape
    return (
        f"latents of {frames} x {channels} x {height} x {width} in {index.dtype}, {_bytes(_clip_bytes(index))} a clip"
    )


def _report(target: Path, index: Index, before: int, seconds: float) -> None:
    made, size = index.clips - before, _bytes(index.clips * _clip_bytes(index))
    note(f"{made} clips in {seconds:.1f} s; {target} holds {index.clips} in {len(index.shards)} shards, {size}")


def _clip_bytes(index: Index) -> int:
    from nearstep.data.shards import clip_bytes

    return clip_bytes(index)


def _bytes(number: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"
