"""Sessions under random operations that break off at random points, against the same stream made anew by a plain one.

What breaks off has not happened; what was done can be seen in the frames, bit for bit.
"""

from __future__ import annotations

import gc
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from jaxtyping import config
from torch.overrides import TorchFunctionMode

from nearstep.stream.pipeline import CausalVideoPipeline
from nearstep.stream.recording import Changes, Recording
from nearstep.stream.results import ChunkVideo
from nearstep.stream.session import Session

PROMPTS = ("a small red ball slides left on snow", "the large blue square bounces", "a large red square slides right")
MOST_SESSIONS, MOST_CHUNKS = 3, 9


class Injected(Exception):
    """What breaks an operation off, unless it is Ctrl-C."""


# --- breaking off ---------------------------------------------------------------------------------------------------


class TorchFault(TorchFunctionMode):
    """The call of torch with this number, of one thread, breaks off: before it does anything, or after."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.left, self.done_first = divmod(number, 2)

    def __torch_function__(self, function, types, arguments=(), options=None):
        self.left -= 1
        if self.left == -1 and not self.done_first:
            raise Injected
        result = function(*arguments, **(options or {}))
        if self.left == -1:
            raise Injected
        return result


@contextmanager
def signal_fault(number: int) -> Iterator[None]:
    """Ctrl-C where Python looks for signals: when a function begins, and when one of C's has returned.

    The functions around ours that check types in tests are passed over: users do not have them.
    """
    left = number

    def profile(frame, event, _argument) -> None:
        nonlocal left
        file = frame.f_code.co_filename
        if event not in ("call", "c_return") or "beartype" in file or "jaxtyping" in file:
            return
        left -= 1
        if left == -1:
            sys.setprofile(None)
            raise KeyboardInterrupt

    sys.setprofile(profile)
    try:
        yield
    finally:
        sys.setprofile(None)


@contextmanager
def decoder_fault(kind: type, number: int) -> Iterator[None]:
    """A decoding breaks off half-way, in whichever thread it is."""
    whole, calls = kind.decode, iter(range(number + 1))

    def decode(self, latents, **options):
        if next(calls, None) == number:
            whole(self, latents[:, :1], **options)
            raise Injected
        return whole(self, latents, **options)

    kind.decode = decode
    try:
        yield
    finally:
        kind.decode = whole


Fault = tuple[str, int] | None
FAULTS = st.none() | st.one_of(
    st.tuples(st.just("torch"), st.integers(0, 1200)),
    st.tuples(st.just("signal"), st.integers(0, 60) | st.integers(0, 12_000)),
    st.tuples(st.just("decoder"), st.integers(0, 1)),
)


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
        window=st.sampled_from([None, 2, 3, 4]),
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

    def attempt(self, operation: Callable[[], Any], fault: Fault, expected: BaseException | None = None) -> Any:
        """What the operation gives, or None where it broke off."""
        type(self).operations += 1
        kind, number = fault or ("none", 0)
        breaking: AbstractContextManager[Any] = nullcontext()
        if kind == "torch":
            breaking = TorchFault(number)
        elif kind == "signal":
            breaking = signal_fault(number)
        elif kind == "decoder":
            breaking = decoder_fault(type(self.pipe.latent_stream()), number)
        try:
            with breaking:
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


def run(pipe: CausalVideoPipeline, folder: Path, *, examples: int) -> type[Sessions]:
    class Machine(Sessions):
        pass

    Machine.pipe, Machine.folder = pipe, folder
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
    pipe = CausalVideoPipeline.from_pretrained(model_folder)
    with pipe.open(PROMPTS[0], "1", seed=1) as session:
        next(session), next(session)  # what torch imports when it is first used is imported
    return pipe


def test_what_breaks_off_has_not_happened(pipe: CausalVideoPipeline, tmp_path: Path) -> None:
    done = run(pipe, tmp_path, examples=10)
    assert done.operations > 100 and done.broken_off > 10


@pytest.mark.slow
def test_what_breaks_off_has_not_happened_in_two_thousand_operations(pipe: CausalVideoPipeline, tmp_path: Path) -> None:
    done = run(pipe, tmp_path, examples=150)
    sys.stdout.write(f"{done.operations} operations, {done.broken_off} broken off\n")
    assert done.operations >= 2000 and done.broken_off > 200
