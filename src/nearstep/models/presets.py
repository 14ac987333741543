"""Published students as data: how each was trained, as its authors' repository says, by the name it is asked for.

    nearstep generate "..." --model wan-1.3b --student causvid=autoregressive_checkpoint/model.pt

A checkpoint does not say any of this. docs/wan.md shows the same rows with remarks.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nearstep.errors import NearstepError
from nearstep.files import path_of


@dataclass(frozen=True, kw_only=True)
class Preset:
    """One published student; what is not said is Self-Forcing's."""

    title: str
    file: str
    """What its authors call the file."""
    role: str | None = None
    """The network of the file that their commands run; None where the file is one network, or they do not say."""
    chunk_frames: int = 3
    shift: float = 5.0
    default_plan: str = "4"
    window_frames: int | None = None
    sink_frames: int = 0
    licence: str = "apache-2.0"
    """The licence of the repository."""
    source: str
    """Repository and file that say so."""

    @property
    def options(self) -> dict[str, Any]:
        """What a student is told (models/student.py)."""
        names = ("chunk_frames", "shift", "default_plan", "window_frames", "sink_frames")
        return {"usual_role": self.role, **{name: getattr(self, name) for name in names}}


_CF = "thu-ml/Causal-Forcing, configs/causal_forcing_dmd_{}.yaml and README.md"

PRESETS: Mapping[str, Preset] = {
    "self-forcing": Preset(
        title="Self-Forcing",
        file="self_forcing_dmd.pt",
        role="generator_ema",
        source="guandeh17/Self-Forcing, configs/self_forcing_dmd.yaml and README.md",
    ),
    "causvid": Preset(
        title="CausVid",
        file="autoregressive_checkpoint/model.pt",
        role="generator",
        shift=3.0,  # its list is 1, .757, .522: no list of our grid; this one is 1, .75, .5
        default_plan="3",
        licence="cc-by-nc-sa-4.0",
        source="tianweiy/CausVid, configs/wan_causal_dmd.yaml and LICENSE.md",
    ),
    "causal-forcing": Preset(
        title="Causal-Forcing",
        file="chunkwise/causal_forcing.pt",
        role="generator",
        source=_CF.format("chunkwise"),
    ),
    "causal-forcing-framewise": Preset(
        title="Causal-Forcing",
        file="framewise/causal_forcing.pt",
        role="generator_ema",
        chunk_frames=1,
        source=_CF.format("framewise"),
    ),
    "causal-forcing++": Preset(
        title="Causal-Forcing++",
        file="framewise-2step.pt",
        role="generator_ema",
        chunk_frames=1,
        default_plan="4,2x",
        source=_CF.format("framewise_2step"),
    ),
    "causal-forcing++1": Preset(
        title="Causal-Forcing++",
        file="framewise-1step.pt",
        role="generator_ema",
        chunk_frames=1,
        default_plan="4,1x",
        source=_CF.format("framewise_1step"),
    ),
    "one-forcing": Preset(
        title="One-Forcing",
        file="one_forcing.pt",
        role="generator",
        chunk_frames=1,
        default_plan="1",
        source="Aurora-edu/One-Forcing, config.yaml and scripts/infer.sh",
    ),
    "longlive": Preset(
        title="LongLive",
        file="longlive_base.pt",
        role="generator",
        window_frames=9,  # theirs of 12 holds the sink
        sink_frames=3,
        source="NVlabs/LongLive, branch v1.0, configs/longlive_inference.yaml",
    ),
    "causal-rcm": Preset(
        title="Causal-rCM",
        file="Causal_rCM_Wan2.1_T2V_1.3B_480p_TF-dCM-init_SF-DMD_c3-3_step4.pt",
        source="NVlabs/rcm, the checkpoints' names",
    ),
    "causal-rcm-framewise": Preset(
        title="Causal-rCM",
        file="Causal_rCM_Wan2.1_T2V_1.3B_480p_TF-dCM-init_SF-DMD_c1-1_step4.pt",
        chunk_frames=1,
        source="NVlabs/rcm, the checkpoints' names",
    ),
}
"""Name -> how that student was trained."""


def preset_of(given: str | Path) -> tuple[Preset | None, str]:
    """A preset and a path, from NAME=PATH; none, and all of it, from a path.

    Raises:
        NearstepError: for a name that is not published, with the nearest ones.
    """
    written = path_of(given)
    text = str(given)
    name, equals, path = text.partition("=")
    if not equals or "/" in name or written.exists():
        return None, text
    if (preset := PRESETS.get(name.lower())) is None:
        near = difflib.get_close_matches(name.lower(), PRESETS, n=2, cutoff=0.5)
        raise NearstepError(f"no published student is called {name!r}; {_or(near or [*PRESETS])} are known")
    if not path:
        raise NearstepError(f"{text} names no file; write {name}=PATH, such as {name}={preset.file}")
    return preset, path


def _or(names: list[str]) -> str:
    return ", ".join(names)
