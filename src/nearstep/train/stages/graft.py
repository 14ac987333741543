"""What one network learnt, given to another that started from the same weights: no training, seconds.

A few-step student and a causal many-step network that went on with longer clips both started from the same causal
network. To the student's weights is added what the other changed: student + weight (after - before). It keeps its few
steps and gains the other's window (Ilharco et al. 2023, "Editing models with task arithmetic").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from nearstep.errors import NearstepError
from nearstep.models.folder import Settings
from nearstep.ranges import check_number
from nearstep.train.adapters import LoraFields
from nearstep.train.export import check_settings, export_student
from nearstep.train.stages.shared import load_network, located

State = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class GraftConfig:
    """A graft."""

    folder: Path
    """Where the model folder goes: into its ``model/``."""
    model: Path
    """Model folder of the student and of what both networks started from; all else is kept from it."""
    after: Path
    """Folder of the network that went on, whose configuration the student gets."""
    network: str = "transformer"
    """Sub-folder of the student."""
    before: str = "causal"
    """Sub-folder of what both started from."""
    teacher: str = "teacher"
    """Sub-folder of the teacher that is kept."""
    weight: float = 1.0
    """How many times what was learnt is added."""
    shift: float = 3.0
    settings: Settings = field(default_factory=Settings)
    """What the student is made for, written into its folder."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "model", located(self.model))
        check_settings(self.settings)
        check_number("weight", self.weight)
        check_number("shift", self.shift, above=0, most=1000)

    def run(self) -> Path:
        """Write the model folder, and return it.

        Raises:
            NearstepError: if a network is not there, or they do not have the same weights.
        """
        after = load_network(self.after)
        student, before = (load_network(self.model / name) for name in (self.network, self.before))
        state = grafted(student.state_dict(), before.state_dict(), after.state_dict(), self.weight)
        export_student(
            self.folder / "model",
            model=self.model,
            unchanged={"teacher": self.teacher},
            networks={"transformer": (after.config, state)},
            fields=LoraFields(),
            shift=self.shift,
            settings=self.settings,
        )
        return self.folder / "model"


def grafted(student: State, before: State, after: State, weight: float) -> dict[str, Tensor]:
    """student + weight (after - before), tensor by tensor.

    Raises:
        NearstepError: naming the first weight that one of them lacks, or has in another shape.
    """
    shapes = [{name: tuple(value.shape) for name, value in state.items()} for state in (student, before, after)]
    for name in {**shapes[0], **shapes[1], **shapes[2]}:
        if len(set(each := [shape.get(name) for shape in shapes])) > 1:
            pairs = zip(("student", "before", "after"), each, strict=True)
            shown = ", ".join(f"{network} {shape}" for network, shape in pairs)
            raise NearstepError(f"{name} differs ({shown}); a graft needs networks that started from the same weights")
    return {name: value + weight * (after[name] - before[name]) for name, value in student.items()}
