"""nearstep: one-step causal video generation, by a student aligned with its own nearby step.

The public names; each is imported when first used, because torch, diffusers and transformers take seconds to import.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from nearstep.version import __version__ as __version__

if TYPE_CHECKING:
    from nearstep.errors import NearstepError
    from nearstep.flow.plan import ChunkPlan, make_plan
    from nearstep.models.student import Student
    from nearstep.nets.codec import VideoCodec
    from nearstep.nets.text import PromptEncoder
    from nearstep.nets.tiny_decoder import TinyDecoder
    from nearstep.nets.transformer import VideoTransformer
    from nearstep.stream.export import export_to_video
    from nearstep.stream.output import contact_sheet, write_video
    from nearstep.stream.pipeline import CausalVideoPipeline


_HOMES = {
    "CausalVideoPipeline": "nearstep.stream.pipeline",
    "ChunkPlan": "nearstep.flow.plan",
    "NearstepError": "nearstep.errors",
    "PromptEncoder": "nearstep.nets.text",
    "Student": "nearstep.models.student",
    "TinyDecoder": "nearstep.nets.tiny_decoder",
    "VideoCodec": "nearstep.nets.codec",
    "VideoTransformer": "nearstep.nets.transformer",
    "contact_sheet": "nearstep.stream.output",
    "export_to_video": "nearstep.stream.export",
    "make_plan": "nearstep.flow.plan",
    "write_video": "nearstep.stream.output",
}

__all__ = [
    "CausalVideoPipeline",
    "ChunkPlan",
    "NearstepError",
    "PromptEncoder",
    "Student",
    "TinyDecoder",
    "VideoCodec",
    "VideoTransformer",
    "contact_sheet",
    "export_to_video",
    "make_plan",
    "write_video",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'nearstep' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
