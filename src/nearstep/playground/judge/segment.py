"""Finds the object of a clip: background, blobs, tracks, and a soft matte around the object in every frame.

A pixel belongs to an object when it differs from its row's background by more than ``CONTRAST``; blobs are found on
the half-size picture, where noise and codec artefacts average out, and everything finer happens in a small window that
follows the object. All of it is vectorised over clips and frames.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nearstep.playground.world import SIZE

CONTRAST = 0.2
"""Distance in rgb beyond which a pixel is no background; about half of the faintest colour on its background."""

SMALLEST = 24.0
"""Pixels that make a blob an object; the smallest object (a small star) covers 55."""

WINDOW = 40
"""Side of the window around the object: the reach of the largest one, its soft edge, and room to be off-centre."""

_COLUMNS = [*range(3), *range(0, SIZE, 3), *range(SIZE - 3, SIZE)]
"""Where a row's background is read: every third column tells as much as all at a third of the cost, and the outermost
ones, which objects keep clear of, outvote an object wider than half the picture."""

_RIVALS = 3
"""Blobs of a frame that are followed at most."""
_TOE = 0.05
"""Coverage below which a pixel counts as background, and above 1 - _TOE as object: the object's shading makes no hole
in the matte, noise no veil, and the edge stays where it is."""
_CORE_POWER = 2
"""Weight of a cell in the first guess of the colour: its squared contrast to this power; edges hardly count."""


@dataclass(frozen=True, kw_only=True)
class Sight:
    """What is seen in each frame, [B, T, ...]."""

    backdrop: Tensor
    """[B, T, 3, H, 1] colour of each row without the object."""
    objects: Tensor
    """[B, T] number of separate blobs of at least SMALLEST pixels."""
    found: Tensor
    """[B, T] bool: at least one."""
    empty: Tensor
    """[B, T, H/2, W/2] bool: cells well away from any blob."""
    origin: Tensor
    """[B, T, 2] top left corner (x, y) of the window, whole pixels."""
    pixels: Tensor
    """[B, T, 3, WINDOW, WINDOW] the clip in the window."""
    rows: Tensor
    """[B, T, 3, WINDOW, 1] the backdrop in the window."""
    matte: Tensor
    """[B, T, WINDOW, WINDOW] the object's coverage in [0, 1]; 0 where nothing is found."""
    centroid: Tensor
    """[B, T, 2] (x, y) of the matte in picture coordinates; meaningless where nothing is found."""


def look(video: Tensor) -> Sight:
    """Segment and track the object of each clip [B, T, 3, SIZE, SIZE]."""
    backdrop = find_backdrop(video)
    cells = F.avg_pool2d(video.flatten(0, 1), 2)
    contrast = (cells - F.avg_pool2d(backdrop.flatten(0, 1), (2, 1))).square().sum(dim=1)  # [N, h, w]
    solid = contrast > CONTRAST**2
    objects, blob = follow(label_blobs(solid).unflatten(0, video.shape[:2]))
    objects, blob = objects.flatten(), blob.flatten(0, 1)
    colour = _first_colour(cells, contrast * blob)
    middle = _centroid(blob.to(video.dtype)) * 2 + 0.5  # a cell's centre lies between its two pixels
    origin = (middle.round().long() - WINDOW // 2).clamp(0, SIZE - WINDOW)
    pixels = _cut(video.flatten(0, 1), origin)
    rows = _cut(backdrop.flatten(0, 1).expand(-1, -1, -1, SIZE), origin)[..., :1]
    near = F.interpolate(_largest_around(blob.to(video.dtype))[:, None], scale_factor=2.0)
    matte = _matte(pixels - rows, colour[..., None, None] - rows) * _cut(near, origin)[:, 0]
    centroid = _centroid(matte) + origin
    batch, frames = video.shape[:2]
    split = (batch, frames)
    return Sight(
        backdrop=backdrop,
        objects=objects.unflatten(0, split),
        found=(objects > 0).unflatten(0, split),
        empty=(_largest_around(solid.to(video.dtype)) == 0).unflatten(0, split),
        origin=origin.unflatten(0, split),
        pixels=pixels.unflatten(0, split),
        rows=rows.unflatten(0, split),
        matte=matte.unflatten(0, split),
        centroid=centroid.unflatten(0, split),
    )


def find_backdrop(video: Tensor) -> Tensor:
    """Colour of each row without the object, [B, T, 3, H, 1].

    The object covers less than half of the columns looked at, so a row's median over them misses it; the median over
    frames steadies that, and one number per frame and channel follows brightness that flickers.
    """
    rows = video[..., _COLUMNS].median(dim=-1).values
    still = rows.median(dim=1, keepdim=True).values
    shift = (rows - still).median(dim=-1, keepdim=True).values
    return (still + shift)[..., None]


def label_blobs(solid: Tensor) -> Tensor:
    """Connected components of [N, h, w] bool, touching corners included: each blob's label is its largest cell index.

    Labels are 1 .. h w, and 0 outside. Every cell takes the largest label around it until nothing changes.
    """
    height, width = solid.shape[-2:]
    mask = solid.to(torch.float32)
    index = torch.arange(1, height * width + 1, dtype=torch.float32, device=solid.device)
    labels = mask * index.view(height, width)
    while True:
        before = labels
        for _ in range(4):  # looking whether anything changed costs as much as a pass
            labels = _largest_around(labels) * mask
        if torch.equal(before, labels):
            return labels.long()


def follow(labels: Tensor) -> tuple[Tensor, Tensor]:
    """The object of each clip among the blobs [B, T, h, w] of its frames.

    It is the largest of the first frame that has any, and from there on, among those of at least SMALLEST pixels, the
    one nearest to where it was last.

    Returns:
        The number of objects in each frame [B, T], and the followed one's cells [B, T, h, w] bool.
    """
    batch, frames = labels.shape[:2]
    areas = blob_areas(labels.flatten(0, 1))
    area, label = areas.topk(_RIVALS, dim=1)
    cells = labels.flatten(0, 1)[:, None] == label[..., None, None]  # [N, R, h, w]
    place = _centroid(cells.flatten(0, 1).float()).view(batch, frames, _RIVALS, 2)
    large = (area >= SMALLEST).view(batch, frames, _RIVALS)
    chosen = torch.zeros(batch, frames, dtype=torch.long)
    last = place[:, 0, 0]
    for t in range(frames):
        way = (place[:, t] - last[:, None]).norm(dim=-1).where(large[:, t], math.inf)
        before = large[:, :t, 0].any(dim=1)
        chosen[:, t] = torch.where(before, way.argmin(dim=1), 0)
        now = place[:, t].gather(1, chosen[:, t, None, None].expand(-1, 1, 2))[:, 0]
        last = torch.where(large[:, t, :1], now, last)
    blob = cells[torch.arange(len(cells)), chosen.flatten()] & large[..., 0].flatten()[:, None, None]
    return (areas >= SMALLEST).sum(dim=1).view(batch, frames), blob.view(labels.shape)


def blob_areas(labels: Tensor) -> Tensor:
    """Pixels of each label, [N, h w + 1]; label 0, the background, counts none. A cell is four pixels."""
    count, height, width = labels.shape
    areas = torch.zeros(count, height * width + 1, device=labels.device)
    areas.scatter_add_(1, labels.flatten(1), torch.full((count, height * width), 4.0, device=labels.device))
    areas[:, 0] = 0.0
    return areas


def _first_colour(cells: Tensor, weight: Tensor) -> Tensor:
    # Mean colour, [N, 3], of the cells that differ most.
    weight = weight**_CORE_POWER
    total = weight.sum(dim=(1, 2)).clamp(min=torch.finfo(weight.dtype).tiny)
    return torch.einsum("nchw,nhw->nc", cells, weight) / total[:, None]


def _matte(contrast: Tensor, full: Tensor) -> Tensor:
    # Coverage: the part of the full contrast [N, 3, H, 1] that is seen [N, 3, H, W], by projection.
    power = full.square().sum(dim=1).clamp(min=CONTRAST**2)
    part = (contrast * full).sum(dim=1) / power
    return ((part - _TOE) / (1 - 2 * _TOE)).clamp(0.0, 1.0)


def _centroid(mask: Tensor) -> Tensor:
    # (x, y) of [N, H, W]; the middle where the mask is empty.
    height, width = mask.shape[-2:]
    total = mask.sum(dim=(-2, -1))
    steps = torch.arange(max(height, width), dtype=mask.dtype, device=mask.device)
    x = (mask.sum(dim=-2) @ steps[:width]) / total
    y = (mask.sum(dim=-1) @ steps[:height]) / total
    middle = torch.tensor([(width - 1) / 2, (height - 1) / 2], dtype=mask.dtype, device=mask.device)
    return torch.where(total[:, None] > 0, torch.stack([x, y], dim=-1), middle)


def _largest_around(values: Tensor) -> Tensor:
    # Maximum over each cell's 3 x 3 neighbours [N, h, w]; much faster on a CPU than max_pool2d.
    wide = values.clone()
    torch.maximum(wide[..., 1:], values[..., :-1], out=wide[..., 1:])
    torch.maximum(wide[..., :-1], values[..., 1:], out=wide[..., :-1])
    tall = wide.clone()
    torch.maximum(tall[..., 1:, :], wide[..., :-1, :], out=tall[..., 1:, :])
    torch.maximum(tall[..., :-1, :], wide[..., 1:, :], out=tall[..., :-1, :])
    return tall


def _cut(picture: Tensor, origin: Tensor) -> Tensor:
    # [N, C, H, W] -> [N, C, WINDOW, WINDOW] from each one's own corner (x, y).
    windows = picture.unfold(2, WINDOW, 1).unfold(3, WINDOW, 1)  # a view: [N, C, y, x, WINDOW, WINDOW]
    return windows[torch.arange(len(picture), device=picture.device), :, origin[:, 1], origin[:, 0]]
