"""``nearstep calibrate``: when an adaptive plan may stop, measured on a model and kept in its folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from nearstep.cli.arguments import parsed
from nearstep.cli.options import AS_IT_IS, FlatLoading, optional, place
from nearstep.cli.text import note, table
from nearstep.errors import NearstepError
from nearstep.models.folder import INDEX, local_folder
from nearstep.ranges import check_count
from nearstep.shapes import latent_frames

if TYPE_CHECKING:
    from nearstep.evaluate.calibrate import Level


@dataclass(frozen=True, kw_only=True)
class Calibrate:
    """Measure when plan "adaptive" may stop a chunk, and write it into the model's folder."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """A model folder, whose model_index.json gets the thresholds; of "playground" or a hub id they are only shown."""
    closeness: Annotated[float, tyro.conf.arg(metavar="COSINE")] = 0.98
    """How close to what all steps make of it a chunk that stops shall be, on average: more takes more steps."""
    prompts_file: Annotated[Path | None, optional("FILE", "captions of --world")] = None
    """Prompts to measure on, one a line."""
    world: Annotated[str, tyro.conf.arg(metavar="NAME")] = "playground"
    """Whose captions to measure on, where no file of prompts is given."""
    captions: Annotated[int, tyro.conf.arg(metavar="N")] = 128
    """How many prompts."""
    chunks: Annotated[int | None, optional("N", "as many as the model's clips have")] = None
    """Chunks with thresholds of their own; those after them have the last one's."""
    seed: int = 0
    """Names the noise."""
    batch: int = 16
    """Streams made at once; does not change the result."""
    loading: FlatLoading = AS_IT_IS
    """Which network, where and with what."""


def run(arguments: Sequence[str]) -> None:
    """Parse the arguments, measure and write."""
    calibrate(parsed(Calibrate, "nearstep calibrate", arguments))


def calibrate(options: Calibrate) -> None:
    """Measure, show and write."""
    _check(options)
    model, prompts = options.loading.open(options.model), _prompts(options)
    if not (length := model.transformer.get("chunk_frames")):
        raise NearstepError(f"{options.model}'s {model.network} is not causal: it has no chunks to stop")
    pipe = options.loading.pipeline(model)
    for prompt in prompts:
        pipe.prompt_encoder.tokens([prompt])  # unknown words are found now
    note(place(pipe))
    from nearstep.evaluate.calibrate import levels, measure_agreement, thresholds, write_agreement

    chunks = options.chunks or max(1, latent_frames(pipe.settings.num_frames) // length)
    measured = measure_agreement(pipe, prompts, chunks=chunks, seed=options.seed, batch=options.batch)
    found = levels(measured, options.closeness)
    print("\n".join(_lines(found)))
    if local_folder(options.model):
        write_agreement(model.folder.path, found)
        print(f"written to {model.folder.path / INDEX}: plan adaptive uses them")
    else:
        print(f'nothing is written, for {options.model!r} is no folder; "agreement": {thresholds(found)}')


def _check(options: Calibrate) -> None:
    if not 0 < options.closeness < 1:
        raise NearstepError(f"--closeness {options.closeness}: a cosine between 0 and 1, such as .98")
    for name in ("captions", "chunks", "batch"):
        check_count(f"--{name}", getattr(options, name), most=10**5)


def _prompts(options: Calibrate) -> list[str]:
    if options.prompts_file is None:
        from nearstep.evaluate.calibrate import CAPTIONS_SEED
        from nearstep.recipes.worlds import find_world

        return find_world(options.world).prompts(CAPTIONS_SEED, range(options.captions))
    from nearstep.data.prompts import read_prompts

    return list(read_prompts([options.prompts_file]).texts[: options.captions])


def _lines(found: Sequence[Sequence[Level]]) -> list[str]:
    from nearstep.evaluate.calibrate import ALWAYS, NEVER

    rows = [["chunk", "after step", "agreement enough", "stop there", "their closeness"]]
    for chunk, row in enumerate(found):
        for step, level in enumerate(row, 1):
            close = "-" if level.stopping == 0 else f"{level.closeness:.3f}"
            enough = {ALWAYS: "any", NEVER: "none"}.get(level.threshold, f"{level.threshold:.3f}")
            rows.append([str(chunk), str(step), enough, f"{100 * level.stopping:.0f} %", close])
        steps = len(row) + 1 - sum((len(row) + 1 - step) * level.stopping for step, level in enumerate(row, 1))
        rows.append([str(chunk), "mean", f"{steps:.2f} steps", "", ""])
    return table(rows)
