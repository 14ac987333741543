"""Everything a run needs to go on, in one file that is whole or absent."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from nearstep.errors import NearstepError
from nearstep.files import replacing


@runtime_checkable
class Stateful(Protocol):
    """A module, an optimizer, an average: whatever a run changes."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Any) -> Any: ...


@dataclass
class TrainState:
    """The named parts of a run, and how many steps it has made. Randomness and data position follow from the step."""

    parts: dict[str, Any] = field(default_factory=dict)
    step: int = 0


def save(state: TrainState, recipe: dict[str, Any], path: Path) -> None:
    """Write a checkpoint; an existing one is replaced only by a complete one."""
    content = {
        "step": state.step,
        "recipe": recipe,
        "parts": {name: part.state_dict() for name, part in state.parts.items()},
    }
    with replacing(path) as part:
        torch.save(content, part)


def load(state: TrainState, recipe: dict[str, Any], path: Path) -> None:
    """Bring ``state`` to where the checkpoint at ``path`` left it.

    Raises:
        NearstepError: if the file cannot be read, or belongs to another recipe (the differing fields are named).
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise NearstepError(f"{path} is no readable checkpoint ({error}); delete it to start the run anew") from error
    changed = sorted(key for key in {*recipe, *content["recipe"]} if recipe.get(key) != content["recipe"].get(key))
    if changed:
        key = changed[0]
        raise NearstepError(
            f"{path} was made with another recipe: {key} was {content['recipe'].get(key)!r} and is now "
            f"{recipe.get(key)!r} (these differ: {', '.join(changed)}); use the old values or another run folder"
        )
    for name, part in state.parts.items():
        part.load_state_dict(content["parts"][name])
    state.step = content["step"]
