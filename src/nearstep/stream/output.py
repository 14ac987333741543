"""Clips to files: mp4, gif, webp and png contact sheets, chosen by suffix; written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from nearstep.errors import NearstepError
from nearstep.files import NAME_BYTES, check_writable, path_of, replacing
from nearstep.json_files import parsed_object
from nearstep.ranges import check_count
from nearstep.stream.mp4 import LONGEST_SIDE, WHOLE, Pixels, check_sides, mp4_writer

if TYPE_CHECKING:
    from torch import Tensor

WEBP_QUALITY = 90
LEAST_FPS, MOST_FPS = 0.01, 1000  # a gif holds a frame for 655 s at most
LONGEST_SIDES = {".mp4": LONGEST_SIDE, ".webp": 16_383, ".gif": 65_535}  # in pixels
SHEET_COLUMNS = 9  # frames shown of a clip
SHEET_TILE = 96  # smaller frames are enlarged by a whole factor to about this many pixels
BESIDE_TILE = 192  # of a clip beside others in a video
SHEET_GAP, SHEET_TEXT, SHEET_PAPER, SHEET_INK = 4, 14, (250, 250, 250), (30, 30, 30)
_DIGITS = 8  # of the digest in the name of a prompt that is no name itself
_SHORTENED = re.compile(rf"~[0-9a-f]{{{_DIGITS}}}$")


def pixels(video: Tensor) -> Pixels:
    """A clip ``[T, 3, H, W]`` in [0, 1] -> uint8 ``[T, H, W, 3]``, rounded to nearest.

    Raises:
        NearstepError: if not all of it is finite.
    """
    if video.ndim != 4 or video.shape[1] != 3 or not video.numel():
        raise NearstepError(f"a video of shape {tuple(video.shape)}; it is [T, 3, H, W], with numbers from 0 to 1")
    if not video.isfinite().all():
        raise NearstepError("a video with NaN or infinity among its numbers is not finite and cannot be written")
    return (video.detach().float().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).contiguous().cpu().numpy()


def write_video(path: str | Path, video: Tensor, *, fps: float, metadata: Mapping[str, Any] | None = None) -> Path:
    """Write a clip ``[T, 3, H, W]`` in [0, 1] in the format that the suffix of ``path`` names.

    Args:
        path: where to; its folder is made if need be.
        video: the clip.
        fps: pixel frames per second.
        metadata: what made the clip (prompt, plan, seed, ...), kept in the file as JSON where the format has a comment.

    Raises:
        NearstepError: for an unknown suffix, or if the file cannot be written; nothing half-written stays.
    """
    path = path_of(path)
    check_fps(fps)
    if not hasattr(video, "detach"):
        raise NearstepError("write_video takes a tensor [T, 3, H, W]; export_to_video(frames, path, fps) takes all")
    encode, clip, comment = _encoder(path), pixels(video), _comment(metadata)
    if most := LONGEST_SIDES.get(path.suffix.lower()):
        check_sides(path.suffix, most, *clip.shape[1:3])
    with replacing(path) as part:
        encode(part, clip, fps, comment)
    return path


def write_sheet(
    path: str | Path,
    clips: Sequence[Tensor],
    labels: Sequence[str] = (),
    *,
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """Write :func:`contact_sheet` of the clips as a PNG, whole or not at all, with ``metadata`` as its comment."""
    path, sheet, comment = path_of(path), contact_sheet(clips, labels), _comment(metadata)
    with replacing(path) as part:
        sheet.save(part, format="PNG", pnginfo=_png_text(comment))
    return path


def _comment(metadata: Mapping[str, Any] | None) -> str:
    if not isinstance(metadata, Mapping | None):
        raise NearstepError(f"metadata is a mapping of names to values, not {metadata!r:.60}")
    try:
        return json.dumps(dict(metadata or {}))
    except (TypeError, ValueError, RecursionError) as error:
        raise NearstepError(f"metadata cannot be written as JSON: {error}") from error


def check_fps(fps: float) -> None:
    """Refuse a frame rate that no file can have.

    Raises:
        NearstepError: unless it is from LEAST_FPS to MOST_FPS.
    """
    if isinstance(fps, bool) or not isinstance(fps, Real) or not LEAST_FPS <= fps <= MOST_FPS:
        raise NearstepError(f"fps={fps!r:.60}: frames a second, from {LEAST_FPS} to {MOST_FPS}")


def count_frames(path: Path) -> int:
    """Frames of a video, by its packets: nothing is decoded."""
    import av

    try:
        with av.open(path) as container:
            return sum(packet.size > 0 for packet in container.demux(video=0))
    except (av.FFmpegError, OSError, IndexError) as error:
        raise NearstepError(f"{path} is there and cannot be read as a video; --overwrite replaces it") from error


def check_video_path(path: str | Path) -> None:
    """Find out now, before anything is generated, whether :func:`write_video` could write ``path``.

    Raises:
        NearstepError: naming the path and the reason.
    """
    _encoder(Path(path))
    check_writable(Path(path))


def safe_name(prompt: str, ending: str = "-0.mp4") -> str:
    """A prompt as a file name that ``ending`` follows: the prompt itself, as VBench looks it up, where it can be one.

    Otherwise (a slash, a control character, more bytes than file systems allow) what can be kept of it and a digest,
    so that different prompts never share a name.
    """
    room = NAME_BYTES - len(ending.encode())
    plain = re.sub(r"[/\x00-\x1f\x7f]", "", prompt).strip().lstrip(".")
    if plain == prompt and prompt and len(prompt.encode()) <= room and not _SHORTENED.search(prompt):
        return prompt
    digest = f"~{prompt_digest(prompt)}"
    kept = plain.encode()[: room - len(digest)].decode(errors="ignore").strip()
    return f"{kept or 'prompt'}{digest}"


def prompt_digest(prompt: str) -> str:
    """What stands behind ~ in the name of a prompt that is no name itself."""
    return hashlib.sha256(prompt.encode()).hexdigest()[:_DIGITS]


def read_comment(path: Path) -> dict[str, Any] | None:
    """What :func:`write_video` or :func:`growing_mp4` was told about a clip; None where the file does not say."""
    try:
        if path.suffix.lower() == ".mp4":
            import av

            with av.open(path) as container:
                comment: Any = container.metadata.get("comment")
        else:
            with Image.open(path) as image:
                comment = image.info.get("comment") or image.info.get("xmp")
        return parsed_object(comment.decode() if isinstance(comment, bytes) else comment)
    except (OSError, ValueError, TypeError, SyntaxError, EOFError, LookupError, Image.DecompressionBombError):
        return None  # PyAV's and PIL's errors are any of these


def side_by_side(clips: Sequence[Tensor], labels: Sequence[str], *, width: int = BESIDE_TILE) -> Tensor:
    """Clips ``[T, 3, H, W]`` of one size as one clip: beside each other, each under its label.

    Small clips are enlarged by a whole factor to about ``width`` pixels each.
    """
    import torch

    if len(labels) != len(clips):
        raise NearstepError(f"{len(labels)} labels for {len(clips)} clips; give one each")
    scale = max(1, round(width / clips[0].shape[-1]))
    large = [clip.repeat_interleave(scale, -2).repeat_interleave(scale, -1) for clip in clips]
    frames, _, _, across = large[0].shape
    header = Image.new("RGB", (across * len(clips), SHEET_TEXT + 2 * SHEET_GAP), SHEET_PAPER)
    draw, font = ImageDraw.Draw(header), ImageFont.load_default(size=SHEET_TEXT - 2)
    for column, label in enumerate(labels):
        draw.text((column * across + SHEET_GAP, SHEET_GAP), label, fill=SHEET_INK, font=font)
    top = torch.from_numpy(np.array(header)).permute(2, 0, 1).float() / 255
    return torch.cat([top.expand(frames, -1, -1, -1), torch.cat(large, dim=-1).float()], dim=-2)


def contact_sheet(clips: Sequence[Tensor], labels: Sequence[str] = (), columns: int = SHEET_COLUMNS) -> Image.Image:
    """A row of evenly spaced frames for each clip ``[T, 3, H, W]``, its label above.

    Raises:
        NearstepError: for what are no clips, or labels that do not belong to them.
    """
    if not isinstance(clips, Sequence) or not clips or not all(hasattr(clip, "detach") for clip in clips):
        raise NearstepError("a contact sheet is of a list of clips, tensors [T, 3, H, W]")
    if not isinstance(labels, Sequence) or not all(isinstance(label, str) for label in labels):
        raise NearstepError("the labels of a contact sheet are a list of strings, one for each clip")
    check_count("columns", columns, most=1000)
    return _sheet([pixels(clip) for clip in clips], labels, columns)


def _sheet(clips: Sequence[Pixels], labels: Sequence[str], columns: int) -> Image.Image:
    if labels and len(labels) != len(clips):
        raise NearstepError(f"{len(labels)} labels for {len(clips)} clips; give one each, or none")
    _, height, width, _ = clips[0].shape
    scale = max(1, round(SHEET_TILE / width))
    columns = min(columns, max(len(clip) for clip in clips))
    across, header = width * scale + SHEET_GAP, SHEET_TEXT + SHEET_GAP if labels else 0
    down = height * scale + SHEET_GAP + header
    sheet = Image.new("RGB", (across * columns + SHEET_GAP, down * len(clips) + SHEET_GAP), SHEET_PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=SHEET_TEXT - 2)
    for row, clip in enumerate(clips):
        top = row * down + SHEET_GAP
        if labels:
            draw.text((SHEET_GAP, top), labels[row], fill=SHEET_INK, font=font)
        for column, index in enumerate(np.linspace(0, len(clip) - 1, columns).round().astype(int)):
            tile = Image.fromarray(clip[index]).resize((width * scale, height * scale), Image.Resampling.NEAREST)
            sheet.paste(tile, (column * across + SHEET_GAP, top + header))
    return sheet


def _mp4(path: Path, clip: Pixels, fps: float, comment: str) -> None:
    _, height, width, _ = clip.shape
    with mp4_writer(path, height, width, fps, comment, WHOLE) as grow:
        grow(clip)


def _gif(path: Path, clip: Pixels, fps: float, comment: str) -> None:
    _animation(path, clip, delays(len(clip), fps, unit=10), format="GIF", comment=comment.encode())


def _webp(path: Path, clip: Pixels, fps: float, comment: str) -> None:
    lasting = delays(len(clip), fps, unit=1)
    _animation(path, clip, lasting, format="WEBP", quality=WEBP_QUALITY, xmp=comment.encode())


def delays(frames: int, fps: float, *, unit: int) -> list[int]:
    """Milliseconds of each frame, in whole units of so many, such that each frame begins as near its time as can be.

    The sum is that of the frames to half a unit, however long the clip is. A frame gets none where the rate is higher
    than the format can show.
    """
    begins = [round(1000 * frame / fps / unit) * unit for frame in range(frames + 1)]
    return [later - sooner for sooner, later in pairwise(begins)]


def _animation(path: Path, clip: Pixels, lasting: Sequence[int], **options: Any) -> None:
    shown = [(Image.fromarray(picture), delay) for picture, delay in zip(clip, lasting, strict=True) if delay]
    if not shown:
        shown = [(Image.fromarray(clip[0]), 1)]
    (first, *rest), each = zip(*shown, strict=True)
    first.save(path, save_all=True, append_images=rest, duration=list(each), loop=0, **options)


def _png(path: Path, clip: Pixels, _fps: float, comment: str) -> None:
    _sheet([clip], (), SHEET_COLUMNS).save(path, format="PNG", pnginfo=_png_text(comment))


def _png_text(comment: str) -> PngImagePlugin.PngInfo:
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", comment)
    return text


Encoder = Callable[[Path, Pixels, float, str], None]

ENCODERS: dict[str, Encoder] = {".mp4": _mp4, ".gif": _gif, ".webp": _webp, ".png": _png}
"""Suffix -> what writes a clip, at a frame rate, with a comment."""


def _encoder(path: Path) -> Encoder:
    try:
        return ENCODERS[path.suffix.lower()]
    except KeyError:
        given = f"suffix {path.suffix!r}" if path.suffix else "no suffix"
        raise NearstepError(f"cannot write {path}: {given}; use {', '.join(ENCODERS)} (png: a contact sheet)") from None
