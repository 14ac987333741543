"""Pictures that somebody gives, as arrays and tensors, and cut to another size and aspect.

One way for videos that are trained on, for pictures to go on from, and for clips to write.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from nearstep.errors import NearstepError

Picture = np.ndarray
"""uint8 [H, W, 3]."""
UNREADABLE = (OSError, ValueError, SyntaxError, MemoryError, Image.DecompressionBombError)
"""What Pillow raises for files that are no pictures, or damaged."""
_BYTES_OF_16_BITS = 65535 / 255


def upright(image: Image.Image) -> Image.Image:
    """A picture as RGB with 8 bits, turned as its EXIF orientation says; greys of 16 bits are scaled, not cut off."""
    turned = ImageOps.exif_transpose(image)
    if turned.mode.startswith("I"):
        grey = np.asarray(turned).astype(np.float64)
        turned = Image.fromarray(np.clip(grey / _BYTES_OF_16_BITS, 0, 255).round().astype(np.uint8))
    return turned.convert("RGB")


def array_of(image: Image.Image) -> Picture:
    """A picture that somebody else opened, and that may be read only now.

    Raises:
        NearstepError: if it cannot be read, or not as RGB.
    """
    try:
        return np.array(upright(image))
    except UNREADABLE as error:
        raise NearstepError(f"cannot read the picture (mode {image.mode}): {error}") from error


def tensor_of(numbers: np.ndarray | Tensor) -> Tensor:
    """A picture's or a clip's numbers, in their layout: uint8, or float32.

    Raises:
        NearstepError: for numbers of another kind.
    """
    kind = numbers.dtype
    floats = kind.is_floating_point if isinstance(kind, torch.dtype) else kind.kind == "f"
    if not floats and kind not in (torch.uint8, np.uint8):
        named = str(kind).removeprefix("torch.")
        raise NearstepError(f"pictures of {named} were given; use bytes (uint8), or floats from 0 to 1")
    if isinstance(numbers, np.ndarray):
        numbers = torch.from_numpy(np.ascontiguousarray(numbers.astype(np.float32) if floats else numbers))
    return numbers.detach().float() if floats else numbers


def fitted(picture: Picture, *, height: int, width: int, aspect: float = 1.0) -> Picture:
    """The largest centred crop with the aspect of ``width x height``, resized to it.

    Args:
        picture: uint8 [H, W, 3].
        height: of the result.
        width: of the result.
        aspect: width of the picture's pixels over their height.
    """
    rows, columns, _ = picture.shape
    wanted = width / height / aspect  # columns for each row
    kept_rows = min(rows, max(1, round(columns / wanted)))
    kept_columns = min(columns, max(1, round(rows * wanted)))
    top, left = (rows - kept_rows) // 2, (columns - kept_columns) // 2
    crop = np.ascontiguousarray(picture[top : top + kept_rows, left : left + kept_columns])
    pixels = torch.from_numpy(crop).permute(2, 0, 1)[None]  # bytes stay bytes: nine times as fast as float32
    resized = torch.nn.functional.interpolate(pixels, (height, width), mode="bicubic", antialias=True)
    return resized[0].permute(1, 2, 0).contiguous().numpy()
