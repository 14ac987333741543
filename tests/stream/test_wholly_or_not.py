"""Sessions under random operations that break off at random points, against the same stream made anew by a plain one.

What breaks off has not happened; what was done can be seen in the frames, bit for bit.
"""

from __future__ import annotations

import gc
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from faults import KINDS, PARTS, PROMPT, Fault, Injected, Work
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from jaxtyping import config

from nearstep.stream.pipeline import CausalVideoPipeline
from nearstep.stream.recording import Changes, Recording
from nearstep.stream.results import ChunkVideo
from nearstep.stream.session import Session

PROMPTS = (PROMPT, "the large blue football bounces", "a large red football slides right")
MOST_SESSIONS, MOST_CHUNKS = 3, 9


FAULTS = st.tuples(st.sampled_from([*KINDS, "decoder", "none"]), st.integers(0, PARTS))


# --- the plain model ------------------------------------------------------------------------------------------------


@dataclass
class Plain:
    """What a session should show: changes by chunk, and a session without any extras that makes it all anew."""

    open: Callable[[], Session]
    start: Changes
    prefetch: bool
    changes: dict[int, Changes] = field(default_factory=dict)
    made: list[ChunkVideo] = field(default_factory=list)
    waiting: int = 0
    """Chunks that are begun, which a change comes too late for."""
    _session: Session | None = None

    @property
    def index(self) -> int:
        return len(self.made)

    @property
    def direction(self) -> Changes:
        now = self.start
        for _, changes in sorted(self.changes.items()):
            now = now.then(changes)
        return now

    def change(self, changes: Changes) -> None:
        chunk = self.index + self.waiting
        self.changes[chunk] = self.changes.get(chunk, Changes()).then(changes)

    def next(self) -> ChunkVideo:
        if self._session is None or self._session.index > self.index:
            self._session = self.open()
        while (index := self._session.index) <= self.index:
            self._session.change(**self.changes.get(index, Changes()).named())
            chunk = next(self._session)
        self.waiting = int(self.prefetch and self.index > 0)
        self.made.append(chunk)
        return chunk

    def rewind(self, chunk: int) -> None:
        self.changes = {index: changes for index, changes in self.changes.items() if index < chunk}
        self.waiting = 0
        del self.made[chunk:]

    def fork(self) -> Plain:
        return Plain(self.open, self.start, self.prefetch, {**self.changes}, [*self.made], self.waiting)


# --- the machine ----------------------------------------------------------------------------------------------------


class Sessions(RuleBasedStateMachine):
    pipe: ClassVar[CausalVideoPipeline]
    work: ClassVar[Work]
    folder: ClassVar[Path]
    operations: ClassVar[int] = 0
    broken_off: ClassVar[int] = 0

    def __init__(self) -> None:
        super().__init__()
        self.pairs: list[tuple[Session, Plain]] = []
        self.log: Path | None = None

    @initialize(
        prefetch=st.booleans(),
        undo_depth=st.sampled_from([0, 0, 1, 3]),
        window=st.sampled_from([None, 2, 3, 6]),
        sink=st.sampled_from([None, 0, 1, 3]),
        relative_sink=st.booleans(),
        guidance=st.sampled_from([1.0, 2.0]),
        plan=st.sampled_from(["1", "2,1x", "3", "adaptive"]),
        logged=st.booleans(),
    )
    def begin(self, prefetch, undo_depth, window, sink, relative_sink, guidance, plan, logged) -> None:
        options: dict[str, Any] = dict(seed=1, window=window, sink=sink, relative_sink=relative_sink)
        options["guidance_scale"] = guidance
        self.log = self.folder / f"{time.monotonic_ns()}.jsonl" if logged else None
        session = self.pipe.open(PROMPTS[0], plan, prefetch=prefetch, undo_depth=undo_depth, log=self.log, **options)
        start = Changes(prompt=PROMPTS[0], plan=plan, seed=1)
        self.pairs = [(session, Plain(lambda: self.pipe.open(PROMPTS[0], plan, **options), start, prefetch))]

    def attempt(self, operation: Callable[[], Any], fault: Fault) -> Any:
        """What the operation gives, or None where it broke off."""
        type(self).operations += 1
        try:
            with self.work.breaking(self.pipe, fault):
                return operation()
        except (Injected, KeyboardInterrupt):
            type(self).broken_off += 1
        return None

    @precondition(lambda self: any(plain.index < MOST_CHUNKS for _, plain in self.pairs))
    @rule(which=st.integers(0, MOST_SESSIONS), fault=FAULTS)
    def go_on(self, which: int, fault: Fault) -> None:
        session, plain = [pair for pair in self.pairs if pair[1].index < MOST_CHUNKS][which % len(self.pairs) - 1]
        made = self.attempt(session.__next__, fault)
        if made is not None:
            self.compare(made, plain.next())
        self.look()

    @rule(
        which=st.integers(0, MOST_SESSIONS),
        prompt=st.none() | st.sampled_from(PROMPTS),
        plan=st.none() | st.sampled_from(["1", "2,1x", "3", "adaptive"]),
        seed=st.none() | st.integers(1, 3),
        fault=FAULTS,
    )
    def change(self, which: int, prompt: str | None, plan: str | None, seed: int | None, fault: Fault) -> None:
        session, plain = self.pairs[which % len(self.pairs)]
        done = self.attempt(lambda: (session.change(prompt=prompt, plan=plan, seed=seed), True), fault)
        if done:
            plain.change(Changes(prompt=prompt, plan=plan, seed=seed))
        self.look()

    @rule(which=st.integers(0, MOST_SESSIONS), back=st.integers(0, MOST_CHUNKS), fault=FAULTS)
    def rewind(self, which: int, back: int, fault: Fault) -> None:
        session, plain = self.pairs[which % len(self.pairs)]
        chunk = max(0, plain.index - back)
        if self.attempt(lambda: (session.rewind(chunk), True), fault):
            plain.rewind(chunk)
        self.look()

    @precondition(lambda self: len(self.pairs) < MOST_SESSIONS)
    @rule(
        which=st.integers(0, MOST_SESSIONS),
        back=st.none() | st.integers(0, 3),
        prompt=st.none() | st.sampled_from(PROMPTS),
        fault=FAULTS,
    )
    def fork(self, which: int, back: int | None, prompt: str | None, fault: Fault) -> None:
        session, plain = self.pairs[which % len(self.pairs)]
        chunk = None if back is None else max(0, plain.index - back)
        other = self.attempt(lambda: session.fork(chunk, prompt=prompt), fault)
        if other is not None:
            twin = plain.fork()
            if chunk is not None and chunk != plain.index:
                twin.rewind(chunk)
            twin.change(Changes(prompt=prompt))
            self.pairs.append((other, twin))
        self.look()

    @precondition(lambda self: len(self.pairs) > 1)
    @rule(which=st.integers(0, MOST_SESSIONS), closed=st.booleans())
    def end(self, which: int, closed: bool) -> None:
        type(self).operations += 1
        session, plain = self.pairs.pop(1 + which % (len(self.pairs) - 1))
        if closed:
            session.close()
        assert len(session.recording.chunks) == plain.index

    def compare(self, made: ChunkVideo, wanted: ChunkVideo) -> None:
        assert (made.index, made.start, made.steps) == (wanted.index, wanted.start, wanted.steps)
        assert torch.equal(made.latents, wanted.latents)
        assert torch.equal(made.video, wanted.video)

    def look(self) -> None:
        """Every session shows what it should."""
        for session, plain in self.pairs:
            assert session.index == plain.index
            now = plain.direction
            assert (session.prompt, session.plan, session.seed) == (now.prompt, now.plan, now.seed)
            assert [entry.changes for entry in session.recording.chunks] == [
                plain.changes.get(index, Changes()) for index in range(plain.index)
            ]

    def teardown(self) -> None:
        """Nothing was lost: each goes on, its recording makes the same frames, its log holds it, no thread stays."""
        for position, (session, plain) in enumerate(self.pairs):
            for _ in range(2):
                try:
                    made = next(session)
                except Injected:  # of a decoding beside, which was broken off before
                    made = next(session)
                self.compare(made, plain.next())
            with self.pipe.replay(session.recording) as again:
                for made, wanted in zip(again, plain.made, strict=True):
                    self.compare(made, wanted)
            if position == 0 and self.log:
                assert Recording.load(self.log) == session.recording
        self.pairs = session = plain = again = None
        for _ in range(100):
            if not any(thread.name.startswith("nearstep-decoding") for thread in threading.enumerate()):
                break
            gc.collect()
            time.sleep(0.05)
        else:
            raise AssertionError("sessions that nobody closed have left a thread")


def run(pipe: CausalVideoPipeline, work: Work, folder: Path, *, examples: int) -> type[Sessions]:
    class Machine(Sessions):
        pass

    Machine.pipe, Machine.work, Machine.folder = pipe, work, folder
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=25,
            deadline=None,
            derandomize=True,
            suppress_health_check=[*HealthCheck],
        ),
    )
    return Machine


@pytest.fixture(autouse=True)
def _unchecked() -> Iterator[None]:
    """Types go unchecked: a check that breaks off blames the type."""
    before = config.jaxtyping_disable
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", before)


@pytest.fixture(scope="module")
def pipe(model_folder: Path) -> CausalVideoPipeline:
    return CausalVideoPipeline.from_pretrained(model_folder)


@pytest.fixture(scope="module")
def work(pipe: CausalVideoPipeline) -> Work:
    return Work.of(pipe)


SETTINGS = {
    "window of a chunk": dict(window=2, sink=0),
    "relative sink": dict(window=4, sink=3, relative_sink=True),
    "prefetch": dict(prefetch=True, window=4, sink=1, relative_sink=False),
    "undo": dict(undo_depth=1, guidance_scale=2.0, window=6),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_chunk_that_breaks_off_anywhere_is_made_as_if_it_had_not(pipe, work: Work, name: str) -> None:
    """A chunk breaks off again and again, each time further on, and is then made; the prompt changes on the way."""
    options = SETTINGS[name]
    plain = {option: value for option, value in options.items() if option not in ("prefetch", "undo_depth")}
    session, other = pipe.open(PROMPTS[0], "2", seed=1, **options), pipe.open(PROMPTS[0], "2", seed=1, **plain)
    broken_off = 0
    for index in range(7):
        if index == 4:
            session.change(prompt=PROMPTS[1])
        if index == 4 + ("prefetch" in options):
            other.change(prompt=PROMPTS[1])
        if index == 6:  # where nothing waits to be handed out, two chunks are begun at once
            session.rewind(6), other.rewind(6)
        before, made = session.recording, None
        for part in range(37 * index % 131, PARTS, 131):
            with suppress(Injected, KeyboardInterrupt), work.breaking(pipe, (KINDS[part % len(KINDS)], part)):
                made = next(session)
                break  # a chunk that takes less than others
            assert session.recording is before
            broken_off += 1
        made, wanted = made or next(session), next(other)
        assert torch.equal(made.latents, wanted.latents) and torch.equal(made.video, wanted.video)
    assert broken_off > 15
    session.rewind(2)
    other.rewind(2)
    assert torch.equal(next(session).video, next(other).video)


def test_what_breaks_off_has_not_happened(pipe: CausalVideoPipeline, work: Work, tmp_path: Path) -> None:
    done = run(pipe, work, tmp_path, examples=6)
    assert done.operations > 50 and done.broken_off > 5


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_what_breaks_off_has_not_happened_in_two_thousand_operations(pipe, work: Work, tmp_path: Path) -> None:
    done = run(pipe, work, tmp_path, examples=120)
    sys.stdout.write(f"{done.operations} operations, {done.broken_off} broken off\n")
    assert done.operations >= 2000 and done.broken_off > 500
