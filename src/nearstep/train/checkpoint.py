"""Everything a run needs to go on, in one folder that is whole or absent.

``checkpoint-0000200/`` holds torch's distributed checkpoint (each rank writes its slices; any number of ranks reads
them) and ``recipe.json``. It gets its name when it is complete, and then replaces the one before.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.tensor import DTensor

from nearstep.errors import NearstepError
from nearstep.files import host_number, part_name
from nearstep.json_files import NUMBER, Kind, check_fields, count, list_of, map_of, object_of, read_object
from nearstep.train.optim import NonFiniteError
from nearstep.train.parallel import Ranks
from nearstep.train.reading import Planner, Reader
from nearstep.train.recipe import check_recipe

_NAME = "checkpoint-"
_RECIPE = "recipe.json"
_UNWRITTEN = "unwritten"
_SUM = Kind(
    "a sum and a count", lambda row: list_of(NUMBER, 2).holds(row) and isinstance(row[1], int) and row[1] > 0
)  # as Metrics.unwritten returns them
_DESCRIBED: dict[str, Kind] = {
    "step": count(10**12, least=0),
    "recipe": object_of({"steps": count(10**12, least=0)}, needed=()),
    _UNWRITTEN: map_of(_SUM),
}
"""What a checkpoint says of itself."""


@dataclass
class TrainState:
    """The named parts of a run, and how many steps it has made. Randomness and data position follow from the step."""

    parts: dict[str, Any] = field(default_factory=dict)
    step: int = 0
    unwritten: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Metrics that no row holds yet: sum and count by name."""

    def tensors(self) -> dict[str, Any]:
        """What every part holds now."""
        return {name: part.state_dict() for name, part in self.parts.items()}


def latest(folder: Path) -> Path | None:
    """The newest checkpoint in a run folder."""
    return max(folder.glob(f"{_NAME}*"), default=None)


def save(state: TrainState, recipe: dict[str, Any], folder: Path, here: Ranks) -> None:
    """Write a checkpoint; what was there before goes when it is complete.

    Raises:
        NonFiniteError: naming what is not finite; a run cannot go on from that, so it is not written.
        NearstepError: if it cannot be written.
    """
    _check_finite(state, here)
    target = folder / f"{_NAME}{state.step:07d}"
    part = new_part(target, here)
    try:
        with _quiet():
            dcp.save(state.tensors(), checkpoint_id=part, no_dist=here.count == 1)
        if here.main:
            described = {"step": state.step, "recipe": recipe} | (
                {_UNWRITTEN: state.unwritten} if state.unwritten else {}
            )
            (part / _RECIPE).write_text(json.dumps(described, indent=1), encoding="utf-8")
            part.rename(target)
            for old in set(folder.glob(f"{_NAME}*")) - {target}:
                shutil.rmtree(old)
    except (OSError, RuntimeError, CheckpointException) as error:
        _raise_interrupts(error)
        raise NearstepError(
            f"cannot write {target}: {_reason(error)}; the checkpoint before it is whole, and the same command goes on "
            "from that once there is room"
        ) from error
    finally:
        if here.main:
            shutil.rmtree(part, ignore_errors=True)
    here.wait()


def new_part(target: Path, here: Ranks) -> Path:
    """An empty folder beside ``target`` under a name that nobody can foresee, the same for all processes.

    Raises:
        NearstepError: if it cannot be made.
    """
    name = f"{here.agreed(secrets.randbits(60)):x}.{target.name}"
    part = target.with_name(part_name(name, here.agreed(os.getpid()), here.agreed(host_number())))
    try:
        if here.main:
            part.mkdir(parents=True)
    except OSError as error:
        raise NearstepError(
            f"cannot write {target}: {error.strerror}; the checkpoint before it is whole, and the same command goes on "
            "from that once there is room"
        ) from error
    here.wait()
    return part


def load(state: TrainState, recipe: dict[str, Any], path: Path, here: Ranks) -> None:
    """Bring ``state`` to where the checkpoint at ``path`` left it, on any number of ranks.

    Raises:
        NearstepError: if it cannot be read, or belongs to another recipe (the differing fields are named).
    """
    try:
        check(recipe, path)
        content = state.tensors()
        with _quiet():
            dcp.load(content, storage_reader=Reader(path), planner=Planner(), no_dist=here.count == 1)
    except NearstepError:
        raise
    except (Exception, CheckpointException) as error:
        _raise_interrupts(error)
        raise NearstepError(
            f"{path} is no readable checkpoint ({_reason(error)}); delete it to start the run anew"
        ) from error
    for name, part in state.parts.items():
        part.load_state_dict(content[name])
    saved = _described(path)
    state.step, state.unwritten = saved["step"], saved.get(_UNWRITTEN, {})


def check(recipe: dict[str, Any], path: Path) -> None:
    """Whether the run at ``path`` may go on with a recipe.

    Raises:
        NearstepError: if it cannot be read, or the recipe would change its numbers (what differs is named).
    """
    check_recipe(_described(path)["recipe"], json.loads(json.dumps(recipe)), path)


def steps_of(path: Path) -> int | None:
    """How long the run was to be when it wrote this checkpoint, where it says so."""
    return _described(path)["recipe"].get("steps")


def _described(path: Path) -> dict[str, Any]:
    file = path / _RECIPE
    try:
        saved = read_object(file)
        check_fields(saved, _DESCRIBED, file, needed=("step", "recipe"))
        if path.name.removeprefix(_NAME).lstrip("0") != str(saved["step"]).lstrip("0"):
            raise NearstepError(f"{file} is of step {saved['step']}, and its folder is named {path.name}")
    except NearstepError as error:
        raise NearstepError(f"{path} is no readable checkpoint ({error}); delete it to start the run anew") from error
    return saved


def _reason(error: BaseException) -> str:
    """The cause of an error in a line; torch's checkpoint gathers those of all processes."""
    if isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    text = getattr(error, "strerror", None) or str(error)
    return (text.strip().splitlines() or [type(error).__name__])[-1]


def _raise_interrupts(error: BaseException) -> None:
    # torch's checkpoint gathers those, too.
    if isinstance(error, CheckpointException):
        for failure, _ in error.failures.values():
            if isinstance(failure, KeyboardInterrupt | SystemExit):
                raise failure from None


def _check_finite(state: TrainState, here: Ranks) -> None:
    # Every rank holds slices of its own; all of them stop where one does, or the others would wait for it.
    broken = [name for name, part in state.tensors().items() if not all(map(_finite, _leaves(part)))]
    if float(here.total(torch.tensor(float(len(broken))))):
        where = ", ".join(broken) or "another process's slices"
        raise NonFiniteError(
            f"step {state.step} left values that are not finite in {where}; no checkpoint is made of them and the one "
            "before it is whole. Start anew with a lower learning rate if this comes again"
        )


def _leaves(content: Any) -> Iterator[Any]:
    if isinstance(content, dict):
        for inner in content.values():
            yield from _leaves(inner)
    else:
        yield content


def _finite(value: Any) -> bool:
    value = value.to_local() if isinstance(value, DTensor) else value
    return not isinstance(value, Tensor) or not value.is_floating_point() or bool(torch.isfinite(value).all())


@contextmanager
def _quiet() -> Iterator[None]:
    # torch warns that a single process is a single process.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield
