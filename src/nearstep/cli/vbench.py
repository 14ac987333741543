"""``nearstep vbench``: VBench's prompts, and what is made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from nearstep.cli.arguments import parsed
from nearstep.cli.options import NO_CLUSTER, FlatCluster, optional
from nearstep.cli.parts import Parts, run_part
from nearstep.cli.sample import Sampling, Wanted, sample
from nearstep.cli.text import note
from nearstep.cli.text import table as lines_of
from nearstep.errors import NearstepError

if TYPE_CHECKING:
    from nearstep.evaluate.vbench.prompts import PromptSet
    from nearstep.evaluate.vbench.score import Place
    from nearstep.evaluate.vbench.scorers import Job, Scorer


@dataclass(frozen=True, kw_only=True)
class PromptOptions:
    """Which of VBench's prompts."""

    info: Annotated[Path | None, optional("FILE", "that of the installed package")] = None
    """The official VBench_full_info.json, a folder or a wheel that holds it: "pip download --no-deps vbench==0.1.5"."""
    rewritten: Annotated[Path | None, optional("FILE", "the standard prompts")] = None
    """A list with a line for each of its 946 entries, in their order, such as the official all_dimension_longer.txt:
    videos are made of the lines, and named by the standard prompts."""
    dimensions: Annotated[tuple[str, ...], optional("NAME ...", "all 16")] = ()
    """Only these dimensions' prompts; dimensions of one group share theirs."""
    mini: Annotated[int | None, optional("N", "all prompts")] = None
    """Only N prompts, drawn with every group in its share; results are then labelled mini."""
    mini_seed: Annotated[int, tyro.conf.arg(metavar="N")] = 0
    """Names the draw."""

    def read(self) -> PromptSet:
        """The prompts that are asked for."""
        from nearstep.evaluate.vbench.prompts import mini, of_dimensions, read_prompts

        found = read_prompts(self.info, self.rewritten)
        if self.dimensions:
            found = of_dimensions(found, self.dimensions)
        return found if self.mini is None else mini(found, self.mini, seed=self.mini_seed)


ALL_PROMPTS = PromptOptions()
FlatPrompts = Annotated[PromptOptions, tyro.conf.arg(name="")]
"""The options beside a command's own, without a prefix."""


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """Count VBench's prompts by the dimensions they are for, or print them."""

    prompts: FlatPrompts = ALL_PROMPTS
    """Which prompts."""
    list: bool = False
    """Print what videos are made of, one a line, each name once."""
    names: bool = False
    """Print the names of all videos, as the official evaluator looks them up."""


def _prompts(arguments: Sequence[str]) -> None:
    asked = parsed(Prompts, "nearstep vbench prompts", arguments)
    found = asked.prompts.read()
    if asked.list and asked.names:
        raise NearstepError("--list and --names print two things; leave one out")
    if asked.list:
        print("\n".join(entry.text for entry in found.unique))
    elif asked.names:
        print("\n".join(entry.file_name(index) for entry in found.unique for index in range(entry.videos)))
    else:
        print("\n".join(_counts(found)))


def _counts(found: PromptSet) -> list[str]:
    groups: dict[tuple[str, ...], list[int]] = {}
    for entry in found.entries:
        groups.setdefault(entry.dimensions, []).append(entry.videos)
    rows = [["dimensions", "prompts", "videos"]]
    rows += [[", ".join(names), str(len(videos)), str(sum(videos))] for names, videos in groups.items()]
    rows += [["all of them, each name once", str(len(found.unique)), str(found.videos)]]
    return [f"{found.label}: {len(found.entries)} entries", *lines_of(rows)]


@dataclass(frozen=True, kw_only=True)
class Sample(Sampling):
    """Make the videos of VBench's prompts, named as its evaluator looks them up: "nearstep sample" with these prompts.

    Five of each prompt, and more of temporal flickering's, for the official static filter to choose from. Each has
    noise of its own, named by its prompt's place among all, so a subset has videos of the whole. Those that are there
    are skipped: the same command goes on after an interruption, and several of them share the work with --part.
    """

    prompts: FlatPrompts = ALL_PROMPTS
    """Which prompts."""
    flickering: Annotated[int, tyro.conf.arg(metavar="N")] = 25
    """Videos of each prompt of temporal flickering, at least 5; the official evaluator looks at five."""


def _sample(arguments: Sequence[str]) -> None:
    asked = parsed(Sample, "nearstep vbench sample", arguments)
    from nearstep.evaluate.vbench.prompts import record

    found = asked.prompts.read()
    sample(asked, _wanted(asked, found), {"flickering": asked.flickering, **record(found)})


def _wanted(asked: Sample, found: PromptSet) -> list[Wanted]:
    """For each prompt its videos; its place among all names their noise."""
    from nearstep.evaluate.vbench.dimensions import FLICKERING
    from nearstep.evaluate.vbench.prompts import FLICKERING_VIDEOS, VIDEOS

    if not VIDEOS <= asked.flickering <= FLICKERING_VIDEOS:
        raise NearstepError(f"--flickering {asked.flickering}: from {VIDEOS} to {FLICKERING_VIDEOS}")
    if not found.entries:
        raise NearstepError("no prompt is of these dimensions; nearstep vbench prompts shows which there are")
    counts = {entry.prompt: asked.flickering if FLICKERING in entry.dimensions else VIDEOS for entry in found.unique}
    return [
        Wanted(
            text=entry.text,
            place=entry.place,
            names=tuple(entry.file_name(index) for index in range(counts[entry.prompt])),
        )
        for entry in found.unique
    ]


@dataclass(frozen=True, kw_only=True)
class Table:
    """Add scores up as VBench's authors do, with intervals over prompts; two folders are also compared.

    Folders hold *_eval_results.json, as the official package and "nearstep vbench score" write them.
    """

    folders: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="[NAME=]FOLDER ...")]
    """One for each system; of two, the differences on the same prompts are shown as well."""
    allow_missing: bool = False
    """Add up what is there where dimensions are missing, and say how many of the 16 it is."""
    published: bool = False
    """Put published totals beside ours, each with its protocol."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"], metavar="FILE.md")] = None
    """Write the table there, too."""


def _table(arguments: Sequence[str]) -> None:
    asked = parsed(Table, "nearstep vbench table", arguments)
    from nearstep.evaluate.vbench.results import read_system
    from nearstep.evaluate.vbench.tables import vbench_table
    from nearstep.files import check_writable, replacing

    if not asked.folders:
        raise NearstepError("no folder; name one with *_eval_results.json, such as what nearstep vbench score wrote")
    if asked.output:
        check_writable(asked.output)
    named = [given.rpartition("=") for given in asked.folders]
    systems = [read_system(Path(folder), name) for name, _, folder in named]
    text = vbench_table(systems, allow_missing=asked.allow_missing, published=asked.published)
    print(text)
    if asked.output:
        with replacing(asked.output) as part:
            part.write_text(text + "\n", encoding="utf-8")


@dataclass(frozen=True, kw_only=True)
class Cut:
    """Cut FOLDER/videos into the clips that VBench-Long scores, named and laid out as its evaluator looks them up.

    Clips are of 2 seconds; of 10 where a video is scored in human action, temporal style or overall consistency. A rest
    is made a whole clip by the frames before it, and a video shorter than one clip is one. Nothing is cut at scenes.
    What is cut is kept: the same command goes on after an interruption.
    """

    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FOLDER")]
    """What "nearstep vbench sample" made, or a folder with your own videos/ in it, named PROMPT-INDEX.mp4."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="FOLDER")]
    """Gets the clips, links to the videos, and their scores later."""
    prompts: FlatPrompts = ALL_PROMPTS
    """Which prompts; a sampled folder knows its own."""
    seconds: Annotated[int | None, optional("N", "2 or 10, by the prompt's dimensions")] = None
    """Clips of so many seconds for all; 2 is what the official script takes for videos of no known prompt."""


def _cut(arguments: Sequence[str]) -> None:
    asked = parsed(Cut, "nearstep vbench cut", arguments)
    from nearstep.evaluate.vbench.cutting import BY_DIMENSION, cut_all, listed_first
    from nearstep.evaluate.vbench.long import clip_seconds
    from nearstep.evaluate.vbench.prompts import record
    from nearstep.evaluate.vbench.results import read_record
    from nearstep.evaluate.vbench.score import Place, videos_of

    if asked.seconds is not None and asked.seconds < 1:
        raise NearstepError(f"--seconds {asked.seconds}: at least 1")
    videos, prompts = Place.of(asked.folder).whole, _known_prompts(asked.folder, asked.prompts)
    seconds = {
        name: asked.seconds or clip_seconds(entry.dimensions)
        for name, entry in videos_of(videos, prompts, note).items()
    }
    said = {**read_record(asked.folder), **record(prompts), "seconds": asked.seconds or BY_DIMENSION}
    cut_all(videos, asked.output, seconds, said, tell=note)
    if not listed_first(asked.output / "videos").endswith(".mp4"):
        note(
            f"{asked.output}/videos: its file system lists split_clip before any video, and eval_long.py then finds no "
            "clip; give it a copy elsewhere (nearstep vbench score does not mind)"
        )
    print(asked.output)


@dataclass(frozen=True, kw_only=True)
class ScoreOptions:
    """Score FOLDER/videos, dimension by dimension, into FOLDER/scores; what is scored already is kept.

    What "nearstep vbench cut" made is scored by clips, as VBench-Long does.

    Temporal flickering is computed here. The other dimensions need the official package and its networks: --python
    names the Python of an environment that has it. Any other measure comes from --command.
    """

    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FOLDER")]
    """What "nearstep vbench sample" made, or a folder with your own videos/ in it, named PROMPT-INDEX.mp4."""
    prompts: FlatPrompts = ALL_PROMPTS
    """Which prompts; a sampled folder knows its own."""
    python: Annotated[str | None, optional("PATH", "temporal flickering alone, which needs no package")] = None
    """The Python that has the official package."""
    command: Annotated[str | None, optional("TEMPLATE", "none")] = None
    """A program that scores instead: {list} is a file with a video a line, {videos} their folder, {output} the JSON to
    write, an object of videos and their values. It is run without a shell."""
    name: Annotated[str | None, optional("NAME", "none")] = None
    """What the command measures: a dimension of VBench, or any other name."""
    static: Annotated[Path | None, optional("FOLDER", "FOLDER/videos, unfiltered")] = None
    """Videos for temporal flickering that the official static filter has chosen."""
    between: Annotated[str | None, optional("TEMPLATE", "clips alone")] = None
    """Of clips, for subject and background consistency: a program as --command, which scores videos of the clips' first
    frames; both are mixed as VBench-Long does."""
    tables: Annotated[Path | None, optional("FOLDER", "none")] = None
    """The official tables for that mix: vbench2_beta_long/configs of VBench's repository."""
    allow_missing: bool = False
    """Score the videos that are there where some are missing."""
    cluster: FlatCluster = NO_CLUSTER
    """Who scores."""


def _score(arguments: Sequence[str]) -> None:
    asked = parsed(ScoreOptions, "nearstep vbench score", arguments)
    from nearstep.evaluate.vbench.dimensions import FLICKERING
    from nearstep.evaluate.vbench.score import Place, jobs, note_on, score_all
    from nearstep.evaluate.vbench.slow_fast import INSIDE_ALONE, MIXED

    if (asked.command is None) != (asked.name is None):
        raise NearstepError("--command and --name go together: what scores, and what its values are called")
    place, prompts = Place.of(asked.folder), _known_prompts(asked.folder, asked.prompts)
    scorers, cluster = _scorers(asked, prompts, place), asked.cluster.chosen()
    work: list[tuple[Job, Scorer]] = []
    for name, scorer in scorers.items():
        filtered = asked.static is not None and name == FLICKERING
        videos, fewer = (asked.static, True) if asked.static and filtered else (place.videos, asked.allow_missing)
        work += [(job, scorer) for job in jobs(videos, prompts, [name], long=place.long, allow_missing=fewer)]
    notes = {name: note_on(name, filtered=asked.static is not None) for name in scorers}
    if place.long and not asked.between:
        notes.update({name: INSIDE_ALONE for name in scorers if name in MIXED})
    score_all(place.scores, work, tell=note, notes=notes, cluster=cluster)
    print(place.scores)


def _known_prompts(folder: Path, options: PromptOptions) -> PromptSet:
    """Those that the folder was sampled of, or those of the options."""
    from nearstep.evaluate.vbench.prompts import recorded
    from nearstep.evaluate.vbench.results import read_record

    found = recorded(read_record(folder))
    return options.read() if found is None or options != ALL_PROMPTS else found


def _scorers(asked: ScoreOptions, prompts: PromptSet, place: Place) -> dict[str, Scorer]:
    """Dimension -> who scores it."""
    from nearstep.evaluate.vbench.dimensions import DIMENSIONS, FLICKERING, check_dimension
    from nearstep.evaluate.vbench.scorers import INSTALL, Command, Native, Official
    from nearstep.evaluate.vbench.slow_fast import LONG_OFFICIAL, SlowFast, check_mix, read_rule

    check_mix(asked.name, [asked.between, asked.tables], place)
    if asked.command is not None and asked.name is not None:
        command = Command(template=asked.command)
        if asked.between is None or asked.tables is None:
            return {asked.name: command}
        rule, between = read_rule(asked.tables, asked.name), Command(template=asked.between)
        return {asked.name: SlowFast(within=command, between=between, rule=rule, firsts=place.firsts)}
    if place.long and asked.python is not None:
        raise NearstepError(f"--python scores whole videos, and {place.videos} holds clips; {LONG_OFFICIAL}")
    wanted = {check_dimension(name) for name in asked.prompts.dimensions}
    there = {name for entry in prompts.entries for name in entry.dimensions}
    names = [name for name in DIMENSIONS if name in there and (not wanted or name in wanted)]
    others = [name for name in names if name != FLICKERING]
    if others and asked.python is None:
        how = LONG_OFFICIAL if place.long else INSTALL
        if wanted or FLICKERING not in names:
            raise NearstepError(f"{', '.join(others)}: scored by the official package vbench; {how}")
        note(f"{FLICKERING} alone; the other {len(others)} dimensions are scored by the official package: {how}")
        names = [FLICKERING]
    official = None if asked.python is None else Official(python=asked.python)
    return {name: Native() if name == FLICKERING or official is None else official for name in names}


PARTS: Parts = {
    "prompts": ("which prompts there are, and for which dimensions", _prompts),
    "sample": ("the videos of the prompts, named as the official evaluator looks them up", _sample),
    "cut": ("the videos as clips, for VBench-Long", _cut),
    "score": ("values of every video: flickering here, the rest by the official package or a command", _score),
    "table": ("the scores added up, with intervals, and two systems compared", _table),
}
"""Word after ``nearstep vbench`` -> a line about it, and what runs it."""


def run(arguments: Sequence[str]) -> None:
    """Find the part that is asked for, and run it."""
    run_part("vbench", PARTS, arguments)
