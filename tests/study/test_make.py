"""Pairs are hidden, balanced and honest about what they leave out; nothing that is served says whose a clip is."""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from studies import FPS, FRAMES, SIDE, new_study, prompt, write_clips

from nearstep.cli.main import main
from nearstep.data.videos import read_frames, read_rate
from nearstep.errors import NearstepError
from nearstep.study.make import broken, make_study
from nearstep.study.plan import ATTENTION, PAIR, REPEAT, Extent, planned, read_key
from nearstep.study.public import APART, Public
from nearstep.study.systems import common_form, open_systems, read_shown

NAMES = ("alphasystem", "betasystem", "gammasystem")
STEMS = [f"{prompt(number)}-0" for number in range(40)]


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    return new_study(tmp_path_factory.mktemp("made"), NAMES, count=12, attention=6)


def test_every_two_systems_meet_on_every_prompt_and_sides_are_even() -> None:
    for seed in range(5):
        trials = planned(NAMES, STEMS, Extent(), seed)
        pairs = [trial for trial in trials if trial.kind == PAIR]
        met = Counter((frozenset((trial.left, trial.right)), trial.stem) for trial in pairs)
        assert len(met) == 3 * 40 and set(met.values()) == {1}
        for name in NAMES:
            left, right = (sum(getattr(t, side) == name for t in pairs) for side in ("left", "right"))
            assert left + right == 80 and abs(left - right) <= 2
        # The side on one prompt says nothing of the next: runs as of a coin.
        first = [t.left for t in sorted(pairs, key=lambda t: t.stem) if {t.left, t.right} == set(NAMES[:2])]
        runs = 1 + sum(one != other for one, other in pairwise(first))
        assert 10 <= runs <= 31


def test_a_tenth_comes_again_with_its_sides_changed() -> None:
    trials = {trial.id: trial for trial in planned(NAMES[:2], STEMS, Extent(repeat=0.1), 3)}
    again = [trial for trial in trials.values() if trial.kind == REPEAT]
    assert len(again) == 4 and len({trial.repeats for trial in again}) == 4
    for trial in again:
        first = trials[trial.repeats]
        assert (trial.stem, trial.left, trial.right) == (first.stem, first.right, first.left)
    assert not [t for t in planned(NAMES, STEMS, Extent(repeat=0, attention=0), 3) if t.kind != PAIR]


def test_a_seed_names_the_study_and_another_names_another() -> None:
    one, same, other = (planned(NAMES[:2], STEMS, Extent(), seed) for seed in (1, 1, 2))
    assert one == same and not {t.id for t in one} & {t.id for t in other}
    sides = [{t.stem: t.left for t in trials if t.kind == PAIR} for trials in (one, other)]
    assert 8 < sum(sides[0][stem] == sides[1][stem] for stem in STEMS) < 32


def test_a_broken_copy_is_far_from_its_clip_and_not_far_in_colour() -> None:
    down, across = np.mgrid[:48, :64]
    clip = np.stack([np.stack([4 * down + t, 3 * across, 0 * down + 90], -1) for t in range(8)]).astype(np.uint8)
    copy = broken(clip, 1)
    assert copy.shape == clip.shape and np.array_equal(copy, broken(clip, 1))
    assert np.abs(copy.astype(int) - clip).mean() > 30
    assert np.abs(copy.mean(axis=(0, 1, 2)) - clip.mean(axis=(0, 1, 2))).max() < 20
    assert broken(clip[:, :3, :5], 1).shape == (8, 3, 5, 3)


def test_attention_trials_show_a_clip_beside_its_broken_copy(study: Path) -> None:
    key, public = read_key(study), Public.open(study)
    trials = [trial for trial in key.trials.values() if trial.kind == ATTENTION]
    assert len(trials) == 6 and {trial.broken for trial in trials} == {"left", "right"}
    for trial in trials:
        assert trial.left == trial.right
        whole = "right" if trial.broken == "left" else "left"
        shown = {side: read_frames(public.clip(key.clip_name(trial.id, side)), 99) for side in ("left", "right")}
        original = read_frames(study.parent / trial.left / f"{trial.stem}.mp4", 99)
        error = {side: np.abs(frames.astype(int) - original).mean() for side, frames in shown.items()}
        assert error[whole] < 12 and error[trial.broken] > 3 * error[whole]


def test_each_clip_is_whose_the_key_says(study: Path) -> None:
    key, public = read_key(study), Public.open(study)
    for trial in [trial for trial in key.trials.values() if trial.kind != ATTENTION][:12]:
        for side in ("left", "right"):
            shown = read_frames(public.clip(key.clip_name(trial.id, side)), 99).astype(int)
            error = {n: np.abs(shown - read_frames(study.parent / n / f"{trial.stem}.mp4", 99)).mean() for n in NAMES}
            assert min(error, key=error.get) == trial.system(side)
            assert read_rate(public.clip(key.clip_name(trial.id, side))) == FPS


def test_public_files_say_nothing(study: Path) -> None:
    key, public = read_key(study), study / "public"
    files = sorted(public.rglob("*.mp4"))
    assert {path.stem for path in files} == Public.open(study).clips and len(files) == 2 * len(key.trials)
    assert all(re.fullmatch(r"[0-9a-f]{16}", path.stem) for path in files)
    assert len({path.stat().st_size for path in files}) == 1
    for path in public.rglob("*"):
        if path.is_file():
            content = path.read_bytes().lower()
            assert not [name for name in NAMES if name.encode() in content or b"plan-of" in content]
            assert str(key.seed).encode() not in content
    tags = []
    for path in files:
        with av.open(str(path)) as container:
            tags.append((dict(container.metadata), dict(container.streams.video[0].metadata)))
            assert sum(1 for _ in container.decode(video=0)) == FRAMES
    assert all(each == tags[0] for each in tags)
    told = json.loads((public / "trials.json").read_text())["trials"]
    assert {*told[0]} == {"id", "left", "right", "group", "prompt"}
    assert [each["id"] for each in told] == sorted(each["id"] for each in told)


def test_one_clip_has_another_name_in_every_trial(study: Path) -> None:
    public = Public.open(study)
    names = [name for trial in public.trials.values() for name in (trial.left, trial.right)]
    assert len(names) == len(set(names))


def test_raters_have_orders_of_their_own_in_which_a_prompt_does_not_come_twice_at_once(tmp_path: Path) -> None:
    public = Public.open(new_study(tmp_path, count=40, repeat=0.2, attention=4))
    orders = {name: [trial.id for trial in public.order(name)] for name in ("ann", "bob", "chen")}
    assert all(sorted(order) == sorted(public.trials) for order in orders.values())
    assert len({tuple(order) for order in orders.values()}) == 3
    assert [trial.id for trial in public.order("ann")] == orders["ann"]
    for name in orders:
        groups = [trial.group for trial in public.order(name)]
        assert all(len(set(groups[at : at + APART])) == APART for at in range(len(groups) - APART))


def test_a_study_of_one_prompt_has_an_order_all_the_same(tmp_path: Path) -> None:
    public = Public.open(new_study(tmp_path, NAMES, count=1, repeat=1.0, attention=3))
    assert sorted(trial.id for trial in public.order("ann")) == sorted(public.trials)


def test_what_only_some_have_is_left_out_and_said(tmp_path: Path, capsys) -> None:
    write_clips(tmp_path / "a", STEMS[:5])
    write_clips(tmp_path / "b", STEMS[2:9], 1)
    line = ["study", "make", str(tmp_path / "a"), str(tmp_path / "b"), "--attention", "2", "-o", str(tmp_path / "s")]
    assert main(line) == 0
    said = capsys.readouterr().err
    assert "2 clips of a are in no pair" in said and "4 clips of b" in said and "3 pairs of 3 prompts" in said
    assert {trial.stem for trial in read_key(tmp_path / "s").trials.values()} == set(STEMS[2:5])


def test_clips_of_two_forms_are_refused_or_made_alike(tmp_path: Path) -> None:
    write_clips(tmp_path / "a", STEMS[:2])
    write_clips(tmp_path / "b", STEMS[:2], 1, side=24, frames=9, fps=16)
    systems = open_systems([str(tmp_path / "a"), str(tmp_path / "b")])
    with pytest.raises(NearstepError, match="4 frames of 16x16 at 8 fps.*--fit"):
        make_study(systems, tmp_path / "s", seed=1, extent=Extent(attention=0))
    assert not (tmp_path / "s").exists() and not [*tmp_path.glob(".*")]
    form = common_form(systems, STEMS[0], fit=True)
    assert (form.frames, form.height, form.width, form.fps) == (4, SIDE, SIDE, FPS)
    shapes = {read_shown(system.clips[STEMS[0]], form, fit=True).shape for system in systems}
    assert shapes == {(4, SIDE, SIDE, 3)}
    make_study(systems, tmp_path / "s", seed=1, extent=Extent(attention=0), fit=True)
    assert {read_frames(path, 99).shape for path in (tmp_path / "s").rglob("*.mp4")} == shapes


REFUSED = [
    (["a"], "1 folders"),
    (["a", "a"], "given twice"),
    (["a", "x=a"], "given twice"),
    (["n=a", "n=b"], "two folders are called n"),
    (["a", "other"], "no clip has the same name"),
    (["a", "empty"], "holds no clips"),
    (["a", "nowhere"], "not there"),
    (["a", "twice"], "have one name"),
    (["a", "damaged"], "damaged/"),
    (["a", "b", "--repeat", "1.5"], "repeat=1.5"),
    (["a", "b", "--repeat", "nan"], "repeat=nan"),
    (["a", "b", "--attention", "99"], "attention=99"),
    (["a", "b", "--prompts", "0"], "prompts=0"),
    (["a", "b", "--prompts", "4"], "share 3 clips"),
    (["a", "b", "--seed", "-1"], "seed=-1"),
    (["a", "b", "--question", " "], "question"),
    (["a", "b", "-o", "full"], "not empty"),
]


@pytest.mark.parametrize(
    ("words", "said"), REFUSED, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_what_makes_no_study_is_refused_in_one_line(
    tmp_path: Path, monkeypatch, capsys, words: list, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("a", "b", "twice", "full")):
        write_clips(Path(name), STEMS[:3], number)
    write_clips(Path("other"), STEMS[5:7])
    Path("empty").mkdir()
    Path("damaged").mkdir()
    for stem in STEMS[:3]:
        Path("damaged", f"{stem}.mp4").write_bytes(b"no video")
    Path("twice", f"{STEMS[0]}.webm").write_bytes(b"")
    before = sorted(path for path in Path().rglob("*"))
    output = [] if "-o" in words else ["-o", "study"]
    assert main(["study", "make", *words, *output]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("nearstep: ") and said in line
    assert sorted(path for path in Path().rglob("*")) == before


def test_two_files_of_one_name_that_state_two_prompts_are_no_pair(tmp_path: Path) -> None:
    write_clips(tmp_path / "a", ["one-0"])
    write_clips(tmp_path / "b", ["two-0"], 1)
    (tmp_path / "b" / "two-0.mp4").rename(tmp_path / "b" / "one-0.mp4")
    systems = open_systems([str(tmp_path / "a"), str(tmp_path / "b")])
    # The second file's name and comment differ, so it states nothing; the first one's statement holds for both.
    make_study(systems, tmp_path / "s", seed=1, extent=Extent(attention=0))
    assert read_key(tmp_path / "s").prompts == {"one-0": "one"}
