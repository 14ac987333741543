"""What the network stages share: draws, compilation, sample pictures, and where a codec's latents belong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, UMT5EncoderModel

from nearstep.data.latents import LatentClips, LatentsConfig, load_latents
from nearstep.data.prompts import PromptClips, PromptsConfig
from nearstep.data.shards import codec_key, read_index
from nearstep.errors import NearstepError
from nearstep.flow.guidance import Guided, check_negative
from nearstep.flow.plan import ChunkPlan
from nearstep.models.folder import CONFIG, EMBEDDED, ModelFolder, read_json
from nearstep.nets.cache import KVCache
from nearstep.nets.codec import VideoCodec
from nearstep.nets.denoiser import TextDenoiser
from nearstep.nets.text import PromptEncoder
from nearstep.nets.text_cache import CachedPromptEncoder, check_cache_folder, encoder_name
from nearstep.nets.transformer import VideoTransformer
from nearstep.precision import narrowed
from nearstep.protocols import Caption, CausalDenoiser, TextEncoder
from nearstep.ranges import check_count, check_number
from nearstep.rollout.chunk import Renoise
from nearstep.rollout.rollout import generate
from nearstep.train.lessons import Lesson
from nearstep.train.parallel import Ranks, ranks
from nearstep.train.preview import write_grid
from nearstep.train.progress import say

PREVIEWS = 8
_CHECKED_TOGETHER = 512


@runtime_checkable
class Clips(Protocol):
    """Captions to train on, with the latents of their clips or without."""

    @property
    def shape(self) -> tuple[int, ...]:
        """[F, C, H, W] of a clip."""
        ...

    @property
    def starts(self) -> tuple[int, ...]:
        """Latent frames from which the second caption of a clip holds, the third and so on; none where all have one."""
        ...

    def batch(self, first: int, size: int) -> tuple[Tensor | None, Sequence[Caption]]:
        """Latents [size, F, C, H, W], or None, and captions of the clips that come after the first ``first``."""
        ...


def located(model: Path) -> Path:
    """A model folder by its path, or the embedded model by its name."""
    return ModelFolder.open(EMBEDDED).path if str(model) == EMBEDDED else model


def load_network(folder: Path, dtype: torch.dtype = torch.float32) -> VideoTransformer:
    """The network in ``folder``.

    Raises:
        NearstepError: if there is none, or its weights are not finite.
    """
    if not folder.is_dir():
        raise NearstepError(f"there is no network at {folder}; run the stage before this one first")
    if not {"num_layers", "attention_head_dim"} <= (config := read_json(folder / CONFIG)).keys():
        raise NearstepError(f"{folder} holds a {config.get('_class_name', 'network')} and no video transformer")
    network = VideoTransformer.from_pretrained(folder, torch_dtype=dtype)
    check_finite(network, folder)
    return network


def open_model(
    model: Path, latents: LatentsConfig | PromptsConfig, text_cache: Path | None = None, negative: str = ""
) -> tuple[VideoCodec, PromptEncoder | CachedPromptEncoder, LatentClips | PromptClips]:
    """What a stage takes from a model folder as it is: frozen codec and text encoder, and the clips' latents.

    Args:
        model: the folder.
        latents: which clips, or prompts alone.
        text_cache: a folder for the features of prompts; the text encoder is then loaded for new ones only.
        negative: the prompt that guidance leads away from.

    Raises:
        NearstepError: if there is no such folder, its weights are not finite, or a prompt is none for it.
    """
    for part in ("vae", "text_encoder", "tokenizer"):
        if not (model / part).is_dir():
            raise NearstepError(f"{model} is no model folder, it has no {part}/; run the stage before, or name another")
    here = ranks()
    codec = VideoCodec.from_pretrained(model / "vae").eval().requires_grad_(False).to(here.device)
    check_finite(codec, model / "vae")
    text = _open_text(model, text_cache)
    _check_texts([negative], text, ["the negative prompt"])
    if isinstance(latents, PromptsConfig):
        clips = PromptClips(latents)
        _check_texts(clips.texts, text, clips.prompts.places)
        return codec, text, clips
    index = read_index(latents.folder)
    lacking = (latents.clips or 0) - (index.clips if index else 0)
    if latents.world and lacking > 0:
        say(f"{lacking} clips are made and encoded into {latents.folder} first", shown=here.main)
    with here.main_first():  # which makes what is missing
        made = load_latents(latents, codec, codec_name(codec))
    _check_texts(made.texts, text, [f"caption {row + 1} in {latents.folder}" for row in range(len(made.texts))])
    return codec, text, made


def open_lessons(
    lessons: Sequence[Lesson], codec: VideoCodec, usual: Sequence[int], workers: int = 0
) -> list[LatentClips]:
    """The clips of each lesson.

    Args:
        lessons: which.
        codec: encodes those of a world that are lacking.
        usual: shape [F, C, H, W] of the run's other clips.
        workers: processes that draw clips ahead of the codec.

    Raises:
        NearstepError: as load_latents does, and for clips of another size than the usual ones.
    """
    for lesson in lessons:
        if lesson.latents.world:  # known before any is encoded
            side = lesson.latents.world.size // codec.spatial_stride
            _check_size(lesson, (codec.channels, side, side), usual)
    opened: list[LatentClips] = []
    with ranks().main_first():  # which makes what is missing
        for lesson in lessons:  # of which some come up again
            known = (clips for before, clips in zip(lessons, opened, strict=False) if before.latents == lesson.latents)
            opened.append(next(known, None) or load_latents(lesson.latents, codec, codec_name(codec), workers))
    for lesson, clips in zip(lessons, opened, strict=True):
        _check_size(lesson, clips.shape[1:], usual)
    return opened


def _check_size(lesson: Lesson, size: Sequence[int], usual: Sequence[int]) -> None:
    if tuple(size) != tuple(usual[1:]):
        raise NearstepError(
            f"a lesson's clips, {lesson.latents.folder}, have latents of {list(size)} a frame, and the run's other "
            f"clips {list(usual[1:])}; name lessons of their size, or leave lessons out (lesson_every=0)"
        )


def _check_texts(texts: Sequence[str], text: PromptEncoder | CachedPromptEncoder, places: Sequence[str]) -> None:
    """Refuse prompts that the text encoder would, now and not at the step that comes to them."""
    for first in range(0, len(texts), _CHECKED_TOGETHER):
        part = texts[first : first + _CHECKED_TOGETHER]
        try:
            text.tokens(part)
        except NearstepError:  # seldom: whose fault it is
            for place, one in zip(places[first:], part, strict=False):
                try:
                    text.tokens([one])
                except NearstepError as error:
                    raise NearstepError(f"{place}, {one[:60]!r}: {error}") from error
            raise


def _open_text(model: Path, cache: Path | None) -> PromptEncoder | CachedPromptEncoder:
    if cache is None:
        whole = PromptEncoder.from_pretrained(model, dtype=torch.float32)
        check_finite(whole, model / "text_encoder")
        return whole.eval().requires_grad_(False).to(ranks().device)
    check_cache_folder(cache, parents=True)
    source = encoder_name(model / "text_encoder", model / "tokenizer", torch.float32)

    def load() -> UMT5EncoderModel:
        encoder = UMT5EncoderModel.from_pretrained(model / "text_encoder", dtype=torch.float32)
        check_finite(encoder, model / "text_encoder")
        return encoder.eval().requires_grad_(False)

    tokenizer = AutoTokenizer.from_pretrained(model / "tokenizer")
    return CachedPromptEncoder(cache, source, tokenizer, load, device=ranks().device)


def check_finite(module: nn.Module, folder: Path) -> None:
    """Refuse weights that a run would learn nothing finite from."""
    for name, weight in module.named_parameters():
        if not torch.isfinite(weight).all():
            raise NearstepError(f"{folder} holds weights that are not finite ({name}); make or convert the model anew")


def check_sizes(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], whose: str) -> None:
    """Refuse weights that are not of the names and shapes of ``wanted``.

    Args:
        state: the weights.
        wanted: those of what they are for.
        whose: what they are, such as "start=DIR has a teacher".

    Raises:
        NearstepError: naming the first that does not fit.
    """
    sizes, needed = ({name: value.shape for name, value in each.items()} for each in (state, wanted))
    if odd := sorted({name for name, _ in sizes.items() ^ needed.items()}):
        raise NearstepError(f"{whose} of another size ({odd[0]}); give the recipe its size")


def codec_name(codec: VideoCodec) -> str:
    """Names a codec's weights, for the latents made by it."""
    return codec_key(codec.vae.config)


def stratified(count: int, draw: torch.Generator) -> Tensor:
    """``count`` uniform numbers in [0, 1], one in each of ``count`` equal cells, shuffled: less noise in the loss."""
    cells = torch.randperm(count, generator=draw)
    return (cells + torch.rand(count, generator=draw)) / count


def check_batch(batch: int, micro: int | None) -> None:
    """Refuse sizes that are none, and micro-batches that fit no number of processes."""
    check_count("batch", batch, most=10**6)
    check_count("micro", micro)
    if micro is not None and batch % micro:
        raise NearstepError(f"micro={micro} does not divide batch={batch}; give a divisor of it, such as 1")


def check_schedule(
    *, shift: float, ema: float, chunk_frames: int = 1, guidance: float = 1.0, negative: str = ""
) -> None:
    """Refuse what no run can be made with: a shift, an average, a chunk or a guidance that is none."""
    check_number("shift", shift, above=0, most=1000)
    check_number("ema", ema, above=0, below=1)
    check_count("chunk_frames", chunk_frames, most=10**6)
    check_number("guidance", guidance, least=-100, most=100)
    check_negative([negative], guidance)


def own_rows(batch: int, micro: int | None, here: Ranks) -> range:
    """This process's rows of a batch; asked for when a run begins, since a config may be made for other processes.

    Raises:
        NearstepError: if the processes do not divide the batch, or micro-batches this process's share of it.
    """
    rows = here.share(batch)
    if micro is not None and len(rows) % micro:
        raise NearstepError(
            f"micro={micro} does not divide the {len(rows)} clips of a process (batch={batch} among {here.count}); "
            "give a divisor of them, such as 1"
        )
    return rows


def dropped(captions: Sequence[Caption], silent: Tensor) -> list[Caption]:
    """The captions, emptied where ``silent``; all of a clip's together."""
    return [emptied(caption) if empty else caption for caption, empty in zip(captions, silent.tolist(), strict=True)]


def emptied(caption: Caption) -> Caption:
    """As many empty captions."""
    return "" if isinstance(caption, str) else ("",) * len(caption)


@torch.no_grad()
def show(
    path: Path,
    network: VideoTransformer,
    text: TextEncoder,
    codec: VideoCodec,
    plans: Sequence[ChunkPlan],
    clips: LatentClips | PromptClips,
    *,
    weight: float = 1.0,
    renoise: Renoise = "fresh",
) -> None:
    """Picture new clips of the data's examples and fixed noise, guided with ``weight``: plans below each other.

    Clip by clip: at Wan's size a clip's keys and values alone take 5.6 GiB.
    """
    here = ranks()
    prompts = clips.examples(max(1, PREVIEWS // len(plans)))
    videos = []
    with narrowed(here.device.type):
        for sample, prompt in enumerate(prompts):
            denoiser: CausalDenoiser[KVCache] = TextDenoiser(network, text([prompt]))
            if weight != 1:
                denoiser = Guided(TextDenoiser(network, text([prompt, ""])), weight)
            for plan in plans:
                latents = generate(
                    denoiser, plan, shape=clips.shape[1:], seed=0, samples=[sample], renoise=renoise, device=here.device
                )
                videos.append(codec.decode(latents).float().cpu())
    if here.main:
        write_grid(torch.cat(videos), path)
