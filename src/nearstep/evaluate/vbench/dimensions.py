"""VBench's 16 dimensions: what a score is normalised by, what it weighs, and whose prompts it shares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

from torch import Tensor

from nearstep.errors import NearstepError

Head = Literal["total", "quality", "semantic"]
HEADS: tuple[Head, ...] = ("total", "quality", "semantic")
QUALITY_WEIGHT, SEMANTIC_WEIGHT = 4, 1
"""Of the two sums in the total."""
FLICKERING = "temporal_flickering"
Number = TypeVar("Number", float, Tensor)


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """One of the 16."""

    part: Literal["quality", "semantic"]
    group: str
    """Dimensions of one group are scored on the same videos; named as the official list of its prompts."""
    low: float = 0.0
    """The score that counts as 0."""
    high: float = 1.0
    """The score that counts as 1."""
    weight: float = 1.0
    """Within its part."""
    scale: float = 1.0
    """Of the official package's value of a video that stands for 1 of the dimension's score."""


_SUBJECT, _SCENE, _OVERALL = "subject_consistency", "scene", "overall_consistency"

DIMENSIONS: Mapping[str, Dimension] = {
    "subject_consistency": Dimension(part="quality", group=_SUBJECT, low=0.1462),
    "background_consistency": Dimension(part="quality", group=_SCENE, low=0.2615),
    FLICKERING: Dimension(part="quality", group=FLICKERING, low=0.6293),
    "motion_smoothness": Dimension(part="quality", group=_SUBJECT, low=0.706, high=0.9975),
    "dynamic_degree": Dimension(part="quality", group=_SUBJECT, weight=0.5),
    "aesthetic_quality": Dimension(part="quality", group=_OVERALL),
    "imaging_quality": Dimension(part="quality", group=_OVERALL, scale=100.0),
    "object_class": Dimension(part="semantic", group="object_class"),
    "multiple_objects": Dimension(part="semantic", group="multiple_objects"),
    "human_action": Dimension(part="semantic", group="human_action"),
    "color": Dimension(part="semantic", group="color"),
    "spatial_relationship": Dimension(part="semantic", group="spatial_relationship"),
    "scene": Dimension(part="semantic", group=_SCENE, high=0.8222),
    "appearance_style": Dimension(part="semantic", group="appearance_style", low=0.0009, high=0.2855),
    "temporal_style": Dimension(part="semantic", group="temporal_style", high=0.364),
    "overall_consistency": Dimension(part="semantic", group=_OVERALL, high=0.364),
}
"""Ranges and weights of the official scripts/constant.py."""

GROUPS: Mapping[str, tuple[str, ...]] = {
    group: tuple(name for name, each in DIMENSIONS.items() if each.group == group)
    for group in dict.fromkeys(each.group for each in DIMENSIONS.values())
}
"""Group -> its dimensions; 11 of them."""


def normalised(name: str, score: Number) -> Number:
    """A dimension's score with its range moved to [0, 1]; what lies outside stays outside, as officially."""
    dimension = DIMENSIONS[name]
    return (score - dimension.low) / (dimension.high - dimension.low)


def sums(values: Mapping[str, Number]) -> dict[Head, Number]:
    """The parts and the total of normalised scores: weighted means of what is there.

    A part of which no dimension is there is left out, and so is the total then.
    """
    found: dict[Head, Number] = {}
    for part in ("quality", "semantic"):
        names = [name for name in values if DIMENSIONS[name].part == part]
        if names:
            weighted = [values[name] * DIMENSIONS[name].weight for name in names]
            found[part] = sum(weighted[1:], weighted[0]) / sum(DIMENSIONS[name].weight for name in names)
    if len(found) == 2:
        both = found["quality"] * QUALITY_WEIGHT + found["semantic"] * SEMANTIC_WEIGHT
        found["total"] = both / (QUALITY_WEIGHT + SEMANTIC_WEIGHT)
    return found


def check_dimension(name: str) -> str:
    """A dimension's name with underscores, however it is written.

    Raises:
        NearstepError: if it is none of the 16.
    """
    known = name.strip().replace(" ", "_")
    if known not in DIMENSIONS:
        raise NearstepError(f"VBench has no dimension {name!r}; it has {', '.join(DIMENSIONS)}")
    return known
