"""Pictures and clips from outside, to go on from: bounded before they are decoded, then cut to the model's size.

They are kept as plain arrays uint8 [T, H, W, 3] (``.npy``), which is what a take's folder keeps of them, too.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from nearstep.data.videos import ClipSize, read_ending
from nearstep.errors import NearstepError, first_line
from nearstep.pictures import fitted
from nearstep.server.names import NAME, new_name
from nearstep.server.refusals import Refusal, absent
from nearstep.shapes import TEMPORAL_STRIDE
from nearstep.stream.opening import read_picture

LARGEST = 64 * 2**20
"""Bytes of a file."""
MOST_PIXELS = 2**26
"""Of a picture: 8192 x 8192."""
MOST_CLIP_PIXELS, MOST_CLIP_FRAMES = 2**23, 2000
"""Of a frame of a clip, and frames of it."""
MOST_KEPT = 64
"""Uploads that are kept; the oldest go."""
_PICTURES = {"PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"}


class Uploads:
    """The uploads of a server.

    Args:
        folder: where they are kept.
        size: of the model's clips: height, width, rate, and the most frames of one.
    """

    def __init__(self, folder: Path, size: ClipSize, replica: int | None = None) -> None:
        self._folder, self._size, self._replica = folder, size, replica

    def add(self, content: bytes) -> str:
        """Take a picture or a clip; its id.

        Raises:
            Refusal: for what is neither, or too large once it is decoded.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        name = new_name(self._replica)
        given = self._folder / f"{name}.upload"
        try:
            given.write_bytes(content)
            frames = self._decoded(given)
            np.save(self._folder / f"{name}.npy", frames, allow_pickle=False)
        except OSError as error:
            raise Refusal(507, f"the upload could not be kept: {error.strerror}") from error
        finally:
            given.unlink(missing_ok=True)
        self._clear_out()
        return name

    def path(self, name: str) -> Path:
        """The file of an upload.

        Raises:
            Refusal: if there is none.
        """
        path = self._folder / f"{name}.npy"
        if not NAME.fullmatch(name) or not path.is_file():
            raise absent("upload", name)
        return path

    def _decoded(self, path: Path) -> np.ndarray:
        kind = self._picture_kind(path)
        try:
            if kind in _PICTURES:
                picture = np.array(read_picture(path))
                return fitted(picture, height=self._size.height, width=self._size.width)[None]
            self._check_clip(path)
            frames = read_ending(path, self._size, self._size.frames)
        except NearstepError as error:
            told = str(error).replace(str(path), "the upload")
            raise Refusal(415, f"no picture or clip that can be read: {told}") from error
        return frames[(len(frames) - 1) % TEMPORAL_STRIDE :]

    @staticmethod
    def _picture_kind(path: Path) -> str:
        """The format of a picture, of which only the head is read; "" for what is none."""
        try:
            with Image.open(path) as image:
                width, height = image.size
                kind = image.format or ""
        except Image.DecompressionBombError:
            width, height, kind = MOST_PIXELS, 2, ""
        except (OSError, ValueError, SyntaxError):
            return ""
        if width * height > MOST_PIXELS:
            raise Refusal(413, f"a picture of {width} x {height} pixels; {MOST_PIXELS} pixels are allowed")
        return kind

    @staticmethod
    def _check_clip(path: Path) -> None:
        """Sizes and packets, of which none is decoded."""
        import av

        try:
            with av.open(path, metadata_errors="replace") as container:
                if not container.streams.video:
                    raise Refusal(415, "this file has no pictures in it")
                for stream in container.streams.video:  # which of them is the film is found later
                    if (context := stream.codec_context) is None:
                        raise Refusal(415, "this file is in a codec that is not known here")
                    if context.width * context.height > MOST_CLIP_PIXELS:
                        size = f"{context.width} x {context.height}"
                        raise Refusal(413, f"frames of {size}; {MOST_CLIP_PIXELS} pixels at most")
                for number, _ in enumerate(container.demux(*container.streams.video)):
                    if number > MOST_CLIP_FRAMES:
                        raise Refusal(413, f"a clip of more than {MOST_CLIP_FRAMES} frames; cut it")
        except (av.FFmpegError, OSError, ValueError) as error:
            raise Refusal(415, f"no picture or clip that can be read ({first_line(error)[:80]})") from error

    def _clear_out(self) -> None:
        found: list[tuple[float, Path]] = []
        for path in self._folder.glob("*.npy"):
            with suppress(FileNotFoundError):  # another upload's clearing out was quicker
                found.append((path.stat().st_mtime, path))
        for _, path in sorted(found, reverse=True)[MOST_KEPT:]:
            path.unlink(missing_ok=True)


def context_of(path: Path | None) -> dict[str, Any]:
    """What a pipeline is to go on from: ``image=`` or ``video=``; nothing without a file."""
    if path is None or not path.is_file():
        return {}
    frames = np.load(path, allow_pickle=False)
    return {"image": frames[0]} if len(frames) == 1 else {"video": frames}
