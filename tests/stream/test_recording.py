"""Recordings: what was written once stays readable, and says the same."""

from __future__ import annotations

from pathlib import Path

import pytest
from streams import BLUE, RED, equal, take

from nearstep.errors import NearstepError
from nearstep.stream.pipeline import CausalVideoPipeline
from nearstep.stream.recording import Changes, Opening, Recording

FIRST_VERSION = """\
{"nearstep": 1, "prompt": "a large red apple slides left slowly on snow", "negative_prompt": "", "plan": "4,1x", \
"seed": 5, "sample": 0, "guidance": 1.0, "height": 48, "width": 48, "window": 6, "sink": 2, "following": false, \
"given": null, "weights": "e55f9452470d6404", "torch": "2.13.0+cpu"}
{"chunk": 0, "times": [1.0, 0.9, 0.75, 0.5]}
{"chunk": 1, "times": [1.0]}
{"chunk": 2, "times": [1.0, 0.75], "prompt": "a small green frog drifts up quickly on a meadow", "plan": "2,1x"}
{"chunk": 3, "times": [1.0]}
{"chunk": 4, "times": [1.0], "seed": 6}
"""
"""A file as the first version wrote it."""


@pytest.fixture(scope="module")
def playground() -> CausalVideoPipeline:
    return CausalVideoPipeline.from_pretrained("playground")


def test_the_first_versions_files_open_and_make_the_same(playground: CausalVideoPipeline, tmp_path: Path) -> None:
    path = tmp_path / "old.jsonl"
    path.write_text(FIRST_VERSION)
    recording = Recording.load(path)
    assert (recording.opening.relative_sink, recording.opening.context, recording.opening.window) == (False, None, 6)
    assert recording.chunks[2].changes == Changes(prompt=BLUE, plan="2,1x")
    session = playground.open(RED, "4,1x", seed=5, window=6, sink=2, relative_sink=False, recommit=True)
    made = take(session, 2)
    session.change(prompt=BLUE, plan="2,1x")
    made += take(session, 2)
    session.change(seed=6)
    made += take(session, 1)
    assert equal(list(playground.replay(path)), made)
    assert session.recording.chunks == recording.chunks


def test_a_file_says_what_was_recorded(tmp_path: Path) -> None:
    old = tmp_path / "old.jsonl"
    old.write_text(FIRST_VERSION)
    recording = Recording.load(old)
    assert Recording.load(recording.save(tmp_path / "new.jsonl")) == recording


@pytest.mark.parametrize(
    ("line", "written", "said"),
    [
        (0, '"sink": 2, "snik": 1', "line 1: a recording of version 1 has no 'snik'"),
        (0, '"sank": 2', "its first line lacks sink"),
    ],
)
def test_names_that_are_unknown_are_refused(tmp_path: Path, line: int, written: str, said: str) -> None:
    path = tmp_path / "old.jsonl"
    path.write_text(FIRST_VERSION.replace('"sink": 2', written))
    with pytest.raises(NearstepError, match=said):
        Recording.load(path)
    path.write_text(FIRST_VERSION.replace('"seed": 6', '"sed": 6'))
    with pytest.raises(NearstepError, match="line 6: 'sed' is nothing that changes"):
        Recording.load(path)


def test_changes_one_after_the_other() -> None:
    assert Changes(prompt=RED, seed=3).then(Changes(prompt=BLUE)) == Changes(prompt=BLUE, seed=3)
    assert Changes().named() == {}


def test_an_opening_is_all_that_a_stream_was_opened_with(playground: CausalVideoPipeline) -> None:
    with playground.open(RED, "1", seed=5, sample=2, window=6, sink=1, relative_sink=True, recommit=True) as session:
        opening = session.recording.opening
    told = Opening(
        prompt=RED, negative_prompt="", plan="1", seed=5, sample=2, guidance=1.0, height=48, width=48, window=6,
        sink=1, relative_sink=True, weights=opening.weights, torch=opening.torch,
    )  # fmt: skip
    assert opening == told
