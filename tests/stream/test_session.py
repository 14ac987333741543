"""The stream: equal to clips made whole, changed, taken back, forked and made again; and it never grows."""

from __future__ import annotations

import gc
import inspect
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from streams import BLUE, RED, equal, take, video
from torch._subclasses.fake_tensor import FakeTensor

from nearstep.errors import NearstepError
from nearstep.nets.rope import forget_tables
from nearstep.stream.pipeline import CausalVideoPipeline
from nearstep.stream.recording import Recording
from nearstep.stream.results import ChunkVideo
from nearstep.stream.session import Session
from nearstep.stream.state import pieces

CHUNKS = 9
"""Of a clip of the playground, a latent frame each."""


@pytest.fixture(scope="module")
def playground() -> CausalVideoPipeline:
    return CausalVideoPipeline.from_pretrained("playground")


def live_bytes() -> int:
    """Bytes of every tensor that is alive, each storage once; without tables that can be made anew.

    A fake tensor, which another test's planner may have left, has none.
    """
    forget_tables()
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), torch.Tensor) and not issubclass(type(thing), FakeTensor):
            storages[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
    return sum(storages.values())


@pytest.mark.parametrize("plan", ["4,1x", "2", "1"])
def test_a_stream_is_the_clip_made_whole_bitwise(playground: CausalVideoPipeline, plan: str) -> None:
    whole = playground(RED, plan=plan, seed=7, output_type="pt").frames
    with playground.open(RED, plan, seed=7) as session:
        assert torch.equal(video(take(session, CHUNKS)), whole)


def test_a_session_does_not_depend_on_others(playground: CausalVideoPipeline) -> None:
    alone = take(playground.open(RED, "1", seed=1), 4)
    one, other = playground.open(RED, "1", seed=1), playground.open(BLUE, "4,1x", seed=2)
    mixed = []
    for _ in range(4):
        mixed += take(one, 1)
        take(other, 1)
    other.close()
    assert equal(mixed, alone)


def test_a_change_of_prompt_changes_nothing_before_it_and_all_after(playground: CausalVideoPipeline) -> None:
    straight, turned = playground.open(RED, "4,1x", seed=3), playground.open(RED, "4,1x", seed=3)
    before = take(straight, 3), take(turned, 3)
    assert equal(*before)
    turned.change(prompt=BLUE)
    assert turned.prompt == BLUE
    after = take(straight, 1), take(turned, 1)
    assert not equal(*after)
    assert [part.steps for part in after[0] + after[1]] == [1, 4]  # a scene begins: its first frames get more


def test_seed_and_plan_change_between_chunks(playground: CausalVideoPipeline) -> None:
    one, other = playground.open(RED, "1", seed=3), playground.open(RED, "1", seed=3)
    take(one, 2), take(other, 2)
    other.change(seed=4, plan="2,1x")
    assert (other.seed, other.plan) == (4, "2,1x")
    after = take(one, 2), take(other, 2)
    assert [part.steps for part in after[1]] == [2, 1]
    assert not equal(*after)


@pytest.fixture
def changed(playground: CausalVideoPipeline) -> tuple[Session, list[ChunkVideo]]:
    """Seven chunks with changes before the third and the sixth."""
    session = playground.open(RED, "4,1x", seed=5)
    made = take(session, 2)
    session.change(prompt=BLUE, plan="2,1x")
    made += take(session, 3)
    session.change(seed=6)
    return session, made + take(session, 2)


def test_a_recorded_stream_is_made_again_bit_for_bit(playground, changed, tmp_path: Path) -> None:
    session, made = changed
    path = session.recording.save(tmp_path / "stream.jsonl")
    assert len(path.read_text().splitlines()) == 8
    replay = playground.replay(path)
    assert equal(list(replay), made)
    assert replay.recording.chunks == session.recording.chunks
    with pytest.raises(StopIteration):
        next(replay)


def test_a_draft_becomes_final_on_the_same_noise(playground) -> None:
    draft = playground.open(RED, "1", seed=5)
    take(draft, CHUNKS)
    final = list(playground.replay(draft.recording, plan="4"))
    assert [part.steps for part in final] == [4] * CHUNKS
    assert torch.equal(video(final), playground(RED, plan="4", seed=5, output_type="pt").frames)


@pytest.mark.parametrize("undo_depth", [0, 2])
@pytest.mark.parametrize("chunk", [0, 2, 4, 6])
def test_a_rewound_stream_goes_on_as_it_did(playground, changed, undo_depth: int, chunk: int) -> None:
    original, made = changed
    session = playground.replay(original.recording, undo_depth=undo_depth)
    take(session, 7)
    session.rewind(chunk)
    assert session.index == chunk
    assert len(session.recording.chunks) == chunk
    assert equal(take(session, 7), made[chunk:])  # its script goes on from there


def test_what_was_asked_is_taken_back_too(changed) -> None:
    session, made = changed
    session.rewind(2)
    assert (session.prompt, session.plan, session.seed) == (RED, "4,1x", 5)
    (straight,) = take(session, 1)
    assert not torch.equal(straight.video, made[2].video)
    with pytest.raises(NearstepError, match="cannot rewind to chunk 9: 3 were made"):
        session.rewind(9)


def test_a_fork_that_holds_a_frame_rate_measures_its_own(playground, monkeypatch) -> None:
    now, tick = [0.0], [0.001]

    def clock() -> float:
        now[0] += tick[0]
        return now[0]

    monkeypatch.setattr(time, "perf_counter", clock)
    session = playground.open(RED, "fps:16", seed=5)
    assert [part.steps for part in take(session, 3)] == [4, 4, 4]  # a fast machine: .75 s leave room for all
    fork = session.fork()
    tick[0] = 100.0
    assert [part.steps for part in take(fork, 3)] == [4, 1, 1]  # it knew what the session knew, and then a slow one
    tick[0] = 0.001
    assert [part.steps for part in take(session, 2)] == [4, 4]  # which the session has not seen


def test_a_fork_shares_the_past_and_nothing_else(changed) -> None:
    session, made = changed
    fork = session.fork(5, prompt=RED)
    other = take(fork, 2)
    assert [part.index for part in other] == [5, 6]
    assert other[0].start == made[5].start
    assert not equal(other, made[5:])
    assert session.index == 7
    same = session.fork()
    assert equal(take(same, 2), take(session, 2))


def test_a_log_follows_the_stream(playground, tmp_path: Path) -> None:
    log = tmp_path / "stream.jsonl"
    session = playground.open(RED, "1", seed=5, log=log, undo_depth=1)
    take(session, 3)
    assert Recording.load(log).chunks == session.recording.chunks
    session.rewind(2)
    session.change(prompt=BLUE)
    take(session, 1)
    assert Recording.load(log) == session.recording
    assert json.loads(log.read_text().splitlines()[3])["prompt"] == BLUE


def test_a_recording_that_is_none_is_refused(playground, tmp_path: Path) -> None:
    path = tmp_path / "stream.jsonl"
    for text, said in [
        ("", "no recording"),
        ("[1]\n", "line 1"),
        ('{"nearstep": 1}\n', "lacks guidance"),
        ('{"nearstep": 9}\n', "it is of version 9"),
    ]:
        path.write_text(text)
        with pytest.raises(NearstepError, match=said):
            playground.replay(path)
    session = playground.open(RED, "1", seed=5)
    take(session, 2)
    lines = [*session.recording.lines()]
    path.write_text("\n".join([lines[0], lines[2]]))
    with pytest.raises(NearstepError, match=r"line 2: chunk 0 .* belong here"):
        playground.replay(path)
    with pytest.raises(NearstepError, match="cannot read the recording"):
        playground.replay(tmp_path / "none")


# --- going on from a picture or a clip -----------------------------------------------------------------------------


def test_a_clip_goes_on_where_it_ended(playground) -> None:
    clip = playground(RED, plan="4", seed=2, num_frames=21, output_type="pt").frames[0]
    session = playground.open(RED, "2", seed=3, video=clip)
    (first,) = take(session, 1)
    assert (first.index, first.start, first.video.shape[1]) == (0, 21, 4)
    assert float((first.video[0, 0] - clip[-1]).abs().mean()) < 0.05  # no cut: a new scene lies .2 away
    array = (clip.permute(0, 2, 3, 1).numpy() * 255).round().astype(np.uint8)
    (same,) = take(playground.open(RED, "2", seed=3, video=array), 1)
    assert float((same.video - first.video).abs().mean()) < 0.01


def test_a_picture_comes_alive(playground) -> None:
    still = playground(RED, plan="4", seed=2, output_type="pil").frames[0][0]
    session = playground.open(RED, "4", seed=3, image=still)
    made = take(session, 3)
    assert [part.start for part in made] == [1, 5, 9]
    assert equal(list(playground.replay(session.recording, image=still)), made)
    with pytest.raises(NearstepError, match="began with the picture or clip"):
        playground.replay(session.recording)
    session.rewind(1)
    assert equal(take(session, 2), made[1:])


def test_given_clips_are_cut_with_the_odd_frames_first() -> None:
    assert [pieces(frames, 3) for frames in (1, 2, 3, 4, 7)] == [(1,), (2,), (3,), (1, 3), (1, 3, 3)]


# --- without end ---------------------------------------------------------------------------------------------------


def test_memory_is_flat_and_let_go_at_once(playground) -> None:
    nothing = live_bytes()
    session = playground.open(RED, "1", seed=0)
    take(session, CHUNKS + 2)
    size = live_bytes()
    take(session, 3 * CHUNKS)
    assert live_bytes() == size > nothing
    session.close()
    assert live_bytes() == nothing
    assert (session.prompt, session.plan, session.seed) == (RED, "1", 0)
    session.close()  # twice is once


def test_a_stream_outlives_the_positions_of_its_network(playground) -> None:
    network = playground.transformer
    known = network.config["rope_max_seq_len"]
    network.register_to_config(rope_max_seq_len=16)
    try:
        with playground.open(RED, "1", seed=0) as session:
            assert all(part.video.isfinite().all() for part in take(session, 36))
    finally:
        network.register_to_config(rope_max_seq_len=known)


# --- misuse ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wishes", "said"),
    [
        ({"plan": "8"}, "asks for 8 steps and the student was trained for 1 to 4"),
        ({"plan": "4,1"}, "end it with x"),
        ({"plan": "slow"}, 'does not parse; .*"fps:16"'),
        ({"plan": "fps:0"}, "does not parse"),
        ({"prompt": "a large red zebra"}, "zebra"),
    ],
)
def test_a_wrong_change_leaves_the_session_as_it_was(playground, wishes: dict, said: str) -> None:
    session, other = (playground.open(RED, "2,1x", seed=3) for _ in range(2))
    take(session, 1), take(other, 1)
    with pytest.raises(NearstepError, match=said):
        session.change(**wishes)
    assert equal(take(session, 2), take(other, 2))
    assert session.recording == other.recording


@pytest.mark.parametrize(
    ("wishes", "said"),
    [
        ({"image": np.zeros((32, 64, 3), np.uint8)}, "32 high and 64 wide, this stream 48 by 48"),
        ({"image": np.zeros((48, 48))}, r"shape \(1, 48, 48\)"),
        ({"video": torch.full((5, 3, 48, 48), 7.0)}, "from 0 to 1"),
        ({"video": torch.zeros(4, 3, 48, 48)}, "4n"),
        ({"image": Image.new("RGB", (48, 48)), "video": torch.zeros(5, 3, 48, 48)}, "not both"),
        ({"window": 0}, "window=0"),
        ({"sink": -1}, "sink=-1"),
        ({"plan": "50"}, "trained for 1 to 4"),
    ],
)
def test_a_wrong_opening_is_refused(playground, wishes: dict, said: str) -> None:
    with pytest.raises(NearstepError, match=said):
        playground.open(RED, **wishes)


WARMED = """
import itertools, torch, torch._dynamo
from nearstep import CausalVideoPipeline
pipe, compiled = CausalVideoPipeline.from_pretrained("playground"), torch._dynamo.utils.counters["stats"]
torch._dynamo.config.recompile_limit = 64
for block in pipe.transformer.blocks:
    block.compile(dynamic=False, backend="eager")
with pipe.open("a large red apple slides left slowly on snow", "4,1x", seed=3) as session:
    session.warm_up()
    print(session.index, compiled["unique_graphs"])
    list(itertools.islice(session, 6))
    session.change(prompt="a small green frog drifts up quickly on a meadow", plan="2,1x")
    list(itertools.islice(session, 4))
    print(session.index, compiled["unique_graphs"])
"""


@pytest.mark.slow
def test_after_warming_up_nothing_is_compiled_in_mid_stream() -> None:
    # In a process of its own: what tests check of types would be compiled, too.
    done = subprocess.run([sys.executable, "-c", WARMED], capture_output=True, text=True, check=True)
    (index, before), (made, after) = (map(int, line.split()) for line in done.stdout.splitlines()[-2:])
    assert (index, made) == (0, 10)
    assert 8 < before == after


def test_what_a_session_takes_can_be_asked_for_by_name(playground) -> None:
    for function in (playground.open, playground.replay, playground.stream, playground, Session.change, Session.fork):
        kinds = {part.kind for part in inspect.signature(function).parameters.values()}
        assert not kinds & {inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL}
    with pytest.raises(TypeError, match="unexpected keyword argument 'sed'"):
        playground.open(RED, sed=3)
    with pytest.raises(TypeError, match="unexpected keyword argument 'promt'"):
        playground.open(RED, "1", seed=3).fork(promt=BLUE)


def test_a_bidirectional_network_has_no_stream() -> None:
    teacher = CausalVideoPipeline.from_pretrained("playground", transformer="teacher")
    with pytest.raises(NearstepError, match="bidirectional"):
        teacher.open(RED)
