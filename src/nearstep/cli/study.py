"""``nearstep study``: which of several systems people prefer, without knowing which is which."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from nearstep.cli.arguments import parsed
from nearstep.cli.options import optional
from nearstep.cli.parts import Parts, run_part
from nearstep.cli.text import note

Folder = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="STUDY/")]


@dataclass(frozen=True, kw_only=True)
class Make:
    """Pair the clips of two or more folders by their names, on hidden sides and under names that say nothing.

    Clips of one name (PROMPT-INDEX.mp4, as "nearstep generate", "nearstep sample" and VBench name them) are compared.
    Each is encoded anew, without what its file says of its maker. STUDY/public/ is all that a server needs; who is who
    is in STUDY/key.json.
    """

    folders: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="[NAME=]FOLDER ...")]
    """One for each system."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="STUDY/")]
    """The study's folder; new, or empty."""
    prompts: Annotated[int | None, optional("N", "all that every folder has")] = None
    """So many of the clips of each folder, drawn at random."""
    repeat: Annotated[float, tyro.conf.arg(metavar="PART")] = 0.1
    """Part of the pairs that comes once more, with its sides changed."""
    attention: Annotated[int | None, optional("N", "8, or all clips if they are fewer")] = None
    """Trials of a clip beside a broken copy of itself; who does not see that is left out of the report."""
    question: Annotated[str | None, optional("TEXT", "which looks more real, moves better, shows more of the text")] = (
        None
    )
    """What raters are asked."""
    fit: bool = False
    """Cut clips of one name that differ in size, rate or length to what they share; without it they are refused."""
    seed: Annotated[int | None, optional("N", "one that nobody can guess")] = None
    """Names sides, order and files; whoever knows it can tell the systems apart."""


def _make(arguments: Sequence[str]) -> None:
    asked = parsed(Make, "nearstep study make", arguments)
    from nearstep.ranges import check_count
    from nearstep.study.make import QUESTION, make_study
    from nearstep.study.plan import Extent
    from nearstep.study.systems import open_systems

    check_count("seed", asked.seed, least=0, most=2**63 - 1)
    made = make_study(
        open_systems(asked.folders),
        asked.output,
        seed=secrets.randbits(62) if asked.seed is None else asked.seed,
        extent=Extent(prompts=asked.prompts, repeat=asked.repeat, attention=asked.attention),
        question=QUESTION if asked.question is None else asked.question,
        fit=asked.fit,
    )
    for name, count in made["left_out"].items():
        note(f"{count} clips of {name} are in no pair: another folder has none of their name")
    note(
        f"{made['pairs']} pairs of {made['prompts']} prompts, {made['repeats']} of them twice, and "
        f"{made['attention']} beside a broken copy; nearstep study serve {asked.output}"
    )
    print(asked.output)


@dataclass(frozen=True, kw_only=True)
class Serve:
    """The voting page: by keyboard, resumed where it was, for many raters. Votes are on the disk before they are
    answered, in STUDY/votes.jsonl.

    Without --host only this machine reaches it. With another a token is asked for, which the address that is printed
    holds. Ctrl-C ends it.
    """  # noqa: D205

    study: Folder
    """What "nearstep study make" wrote; its key may be elsewhere."""
    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0 is all of this machine's."""
    port: int = 7861
    """0 takes one that is free."""
    token: Annotated[str | None, optional("TEXT", "made and printed where --host is not this machine alone")] = None
    """What a rater has to know, besides the address."""
    allow_host: Annotated[tuple[str, ...], optional("NAME ...", "none")] = ()
    """Further names that it is reached under, such as a proxy's."""


def _serve(arguments: Sequence[str]) -> None:
    asked = parsed(Serve, "nearstep study serve", arguments)
    from nearstep.cli.serve import address, check_listening, token_of

    check_listening("nearstep study serve", asked.host, asked.port, asked.token)
    from nearstep.server.guard import door_of
    from nearstep.server.listen import listening, server_of
    from nearstep.server.voting import voting_app
    from nearstep.study.plan import VOTES
    from nearstep.study.public import Public
    from nearstep.study.votes import VoteFile

    public, votes = Public.open(asked.study), VoteFile(asked.study / VOTES)
    token = token_of(asked.host, asked.token)
    with listening(asked.host, asked.port) as listener:
        port = listener.getsockname()[1]
        app = voting_app(public, votes, door_of(asked.host, port, token, asked.allow_host))
        note(f"{len(public.trials)} trials for each rater at {address(asked.host, port, token)} (Ctrl-C ends)")
        server_of(app, connections=1024).run(sockets=[listener])


@dataclass(frozen=True, kw_only=True)
class Judge:
    """Let a world's judge vote as one more rater, named judge, on the clips that raters see."""

    study: Folder
    """What "nearstep study make" wrote, of clips of that world."""
    world: Annotated[str, tyro.conf.arg(metavar="NAME")] = "playground"
    """Judges the clips."""
    margin: Annotated[float, tyro.conf.arg(metavar="M")] = 0.0
    """Totals (of 0 to 1) that differ by no more are a tie."""


def _judge(arguments: Sequence[str]) -> None:
    asked = parsed(Judge, "nearstep study judge", arguments)
    from nearstep.recipes.worlds import find_world
    from nearstep.study.judge import judge_study
    from nearstep.study.votes import JUDGE

    count = judge_study(asked.study, find_world(asked.world), margin=asked.margin)
    note(f"{count} votes by {JUDGE}; nearstep study report {asked.study}")


@dataclass(frozen=True, kw_only=True)
class Report:
    """Add the votes up: preferences with intervals, strengths of three or more systems, and how far raters agree.

    A rater who fails the attention trials is left out, and said to be. Ties count as half a vote for each.
    """

    study: Folder
    """What "nearstep study make" wrote, with its key and votes."""
    without: Annotated[tuple[str, ...], optional("RATER ...", "none but by the rule")] = ()
    """Leave these raters out, too."""
    wanted: Annotated[tuple[float, ...], optional("RATE ...", "some from 0.55 to 0.8")] = ()
    """Preferences of which to say how many votes tell them from one half."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"], metavar="FILE.json")] = None
    """Write all of it there, too."""
    picture: Annotated[Path | None, optional("FILE.png", "none")] = None
    """Draw the preferences with their intervals (png, svg or pdf)."""


def _report(arguments: Sequence[str]) -> None:
    asked = parsed(Report, "nearstep study report", arguments)
    from nearstep.files import check_writable, write_json
    from nearstep.study.report import WANTED, check_picture, report_of, write_picture

    if asked.output is not None:
        check_writable(asked.output)
    if asked.picture is not None:
        check_picture(asked.picture)
    found = report_of(asked.study, without=asked.without, wanted=asked.wanted or WANTED)
    print("\n".join(found.lines()))
    if asked.output is not None:
        write_json(asked.output, found.content())
    if asked.picture is not None:
        write_picture(found, asked.picture)


PARTS: Parts = {
    "make": ("pairs of clips of two or more folders, on hidden sides", _make),
    "serve": ("the voting page", _serve),
    "judge": ("a world's judge votes, as one more rater", _judge),
    "report": ("what the votes add up to, with intervals", _report),
}
"""Word after ``nearstep study`` -> a line about it, and what runs it."""


def run(arguments: Sequence[str]) -> None:
    """Find the part that is asked for, and run it."""
    run_part("study", PARTS, arguments)
