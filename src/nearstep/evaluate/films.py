"""Measures any folder of videos without a judge: what needs no world, and no network that must be fetched from a hub.

Each measure says what it is; none of them says whether a video shows its prompt. Videos of one prompt
(PROMPT-INDEX.mp4) count together, and intervals resample prompts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nearstep.cluster import Cluster, each
from nearstep.data.videos import SUFFIXES, read_frames, read_rate, videos_in
from nearstep.errors import NearstepError
from nearstep.evaluate import statistics
from nearstep.evaluate.frechet import gaussian, gaussian_distance
from nearstep.evaluate.motion import BLOCK, REACH, WIDTH, motion
from nearstep.evaluate.results import bounds
from nearstep.evaluate.statistics import Interval
from nearstep.evaluate.table import Table
from nearstep.evaluate.vbench.flickering import flickering_of
from nearstep.files import check_writable, write_json

MOST_FRAMES = 100_000
_NUMBERED = re.compile(r"-\d+$")
STEADY, MOTION, FRECHET, PERCEPTUAL = "steadiness", "motion", "Fréchet on VGG16", "perceptual on VGG16"
WHAT = {
    STEADY: "1 - mean absolute difference of neighbouring frames / 255, VBench's temporal flickering; for still scenes",
    MOTION: f"widths a second, blocks of {BLOCK} matched up to {REACH} of {WIDTH} pixels; more is faster, not better",
    FRECHET: "distance to the reference videos, features of three frames; depends on the number of videos",
    PERCEPTUAL: "distance of three frames to those of the reference video of the same name, LPIPS's heads",
}
"""Measure -> what it is."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Videos to compare with, and by what."""

    folder: Path
    vgg: Path
    """VGG16's weights (evaluate/vgg.py)."""
    heads: Path | None = None
    """LPIPS's heads, for a distance of videos of one name."""


def evaluate_films(
    folder: Path, *, out: Path, reference: Reference | None = None, cluster: Cluster | None = None
) -> Table:
    """Measure a folder of videos.

    Args:
        folder: holds them.
        out: gets the values of each video, and the means with their intervals.
        reference: videos to compare with; None measures what needs none.
        cluster: looks at videos beside each other; None is this process.

    Raises:
        NearstepError: naming a video that cannot be measured; nothing is written then.
    """
    paths = _videos(folder)
    check_writable(out)
    look = _Look(reference)
    if reference is not None and reference.heads is not None:
        _check_names(paths, reference.folder)
    seen = [*each(look, paths, cluster)]
    values = {path.name: one.values for path, one in zip(paths, seen, strict=True)}
    found = _means(values)
    if reference is not None:
        real = [*each(_Look(Reference(folder=reference.folder, vgg=reference.vgg)), _videos(reference.folder), cluster)]
        found[FRECHET] = _distance(seen, real)
    measures = {name: {**bounds(interval), "what": WHAT[name]} for name, interval in found.items()}
    against = {"reference": str(reference.folder)} if reference else {}
    write_json(out, {"settings": {"name": str(folder), **against}, "measures": measures, "videos": values}, indent=1)
    rows = [[name, f"{each.value:.4f} [{each.low:.4f}, {each.high:.4f}]", WHAT[name]] for name, each in found.items()]
    return Table(["measure", f"of {len(paths)} videos", "what it is"], rows)


@dataclass(frozen=True, kw_only=True)
class _Seen:
    values: dict[str, float]
    features: Tensor | None
    """[D], where there is something to compare with."""


@dataclass(frozen=True)
class _Look:
    """Looks at a video; networks are loaded with the first."""

    reference: Reference | None

    def __call__(self, path: Path) -> _Seen:
        try:
            frames = read_frames(path, MOST_FRAMES)
            if len(frames) < 2:
                raise NearstepError("it has one frame, and all that is measured is between frames")
            values = {STEADY: flickering_of(frames), MOTION: motion(frames, read_rate(path))}
        except NearstepError as error:
            raise NearstepError(f"{path}: {error}") from error
        if self.reference is None:
            return _Seen(values=values, features=None)
        three = _three(frames)
        if self.reference.heads is not None:
            real = _three(read_frames(self.reference.folder / path.name, MOST_FRAMES))
            if real.shape != three.shape:
                raise NearstepError(f"{path} and the reference of its name are of two sizes; make them alike")
            values[PERCEPTUAL] = float(self._distance(three, real).mean())
        return _Seen(values=values, features=self._features(three[None])[0])

    @cached_property
    def _features(self):  # noqa: ANN202 - the class is loaded here
        from nearstep.evaluate.vgg import PictureFeatures

        assert self.reference is not None
        return PictureFeatures.open(self.reference.vgg)

    @cached_property
    def _distance(self):  # noqa: ANN202
        from nearstep.evaluate.vgg import PictureDistance

        assert self.reference is not None and self.reference.heads is not None
        return PictureDistance.open(self.reference.vgg, self.reference.heads)


def _three(frames: np.ndarray) -> Tensor:
    """The first, a middle and the last frame, [3, 3, H, W] in [0, 1]."""
    chosen = frames[[0, len(frames) // 2, len(frames) - 1]]
    return torch.from_numpy(chosen).permute(0, 3, 1, 2).contiguous().float() / 255


def _videos(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise NearstepError(f"there is no folder {folder}; name one with videos in it")
    paths = videos_in(folder)
    if len(paths) < 2:
        raise NearstepError(f"{folder} holds {len(paths)} videos; two or more are measured ({', '.join(SUFFIXES)})")
    return paths


def _check_names(paths: Sequence[Path], real: Path) -> None:
    missing = [path.name for path in paths if not (real / path.name).is_file()]
    if missing:
        raise NearstepError(f"{real} lacks {len(missing)} videos, such as {missing[0]}; --heads compares one name")


def _means(values: Mapping[str, Mapping[str, float]]) -> dict[str, Interval]:
    """Over prompts of the means over their videos."""
    prompts: dict[str, list[Mapping[str, float]]] = {}
    for name, row in values.items():
        prompts.setdefault(_NUMBERED.sub("", Path(name).stem), []).append(row)
    names = list(next(iter(values.values())))
    rows = [[sum(row[name] for row in rows) / len(rows) for rows in prompts.values()] for name in names]
    return dict(zip(names, statistics.mean_rows(torch.tensor(rows, dtype=torch.float64)), strict=True))


def _distance(seen: Sequence[_Seen], real: Sequence[_Seen]) -> Interval:
    ours, theirs = (torch.stack([one.features for one in part if one.features is not None]) for part in (seen, real))
    towards = gaussian(theirs)
    return statistics.statistic(ours, lambda rows: gaussian_distance(*gaussian(rows), *towards))
