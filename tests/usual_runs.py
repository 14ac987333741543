"""The playground's runs on usual clips alone, in chunks of three frames and with a bidirectional teacher, as Wan's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from nearstep.recipes import playground
from nearstep.train.distill.stage import DistillConfig
from nearstep.train.stages.causal import CausalConfig
from nearstep.train.stages.teacher import TeacherConfig

CLIPS: dict[str, Any] = {"lessons": (), "lesson_every": 3, "chunk_frames": 3}


def causal(objective: str) -> CausalConfig:
    return replace(getattr(playground, objective)(), **CLIPS, window_frames=None, batch=16)


def forcing() -> CausalConfig:
    return causal("forcing")


def consistency() -> CausalConfig:
    return replace(causal("consistency"), network="transformer")


def trajectory() -> CausalConfig:
    return causal("trajectory")


def distillation(name: str) -> DistillConfig:
    """In float32, whatever the machine has products of."""
    return replace(getattr(playground, name)(), **CLIPS, teacher="teacher", batch=16, autocast=False)


def self_forcing() -> DistillConfig:
    return distillation("self_forcing")


def distill() -> DistillConfig:
    return distillation("distill")


def teacher() -> TeacherConfig:
    base = playground.teacher()
    return replace(base, pictures=None, words=None, lessons=(), text_learns=True, given=0.0)
