"""Makes the videos that were asked for by HTTP, one after the other, a chunk a turn beside the streams."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nearstep.errors import NearstepError
from nearstep.server.fragments import thumbnail
from nearstep.server.jobs import CANCELLED, DONE, FAILED, Job, Jobs
from nearstep.server.protocol import Json
from nearstep.server.uploads import context_of
from nearstep.server.worker import Worker
from nearstep.stream.mp4 import Grow, growing_mp4
from nearstep.stream.output import pixels
from nearstep.stream.session import Session

if TYPE_CHECKING:
    from nearstep.stream.pipeline import CausalVideoPipeline

OPENING = ("plan", "seed", "height", "width", "negative_prompt", "guidance_scale")
"""What is asked of a session beside its prompt."""


class _Making:
    """The one that is being made: its session, and its file, which the encoder's thread writes."""

    def __init__(self, job: Job, session: Session, path: Path, fps: float) -> None:
        self.job, self.session, self._path = job, session, path
        self._stack = ExitStack()
        opening = session.recording.opening
        file = growing_mp4(path, fps=fps, height=opening.height, width=opening.width)
        self._grow: Grow = self._stack.enter_context(file)

    def write(self, clip: np.ndarray, first: bool) -> None:
        """One more chunk, uint8 [T, H, W, 3]."""
        self._grow(clip)
        if first:
            self._path.with_suffix(".jpg").write_bytes(thumbnail(clip[0]))

    def close(self) -> None:
        """Let go of the file."""
        self._stack.close()


class Maker:
    """Takes turns (worker.py:Turns) with what was asked for.

    Args:
        pipe: the model.
        worker: whose turns.
        jobs: what was asked for.
        folder: where videos are kept.
        told: is told of what happens.
    """

    def __init__(
        self,
        pipe: CausalVideoPipeline,
        worker: Worker,
        jobs: Jobs,
        folder: Path,
        told: Callable[[str, Json], None],
    ) -> None:
        self._pipe, self._worker, self._jobs, self._folder, self._told = pipe, worker, jobs, folder, told
        self._now: _Making | None = None
        self._writing: Future[None] | None = None
        self._news = True
        """Whether something may wait."""
        self.ended: str | None = None
        """Why nothing more is made, if so."""

    def video(self, name: str) -> Path:
        """The file of a video."""
        return self._folder / f"{name}.mp4"

    def notice(self) -> None:
        """Something was asked for, or cancelled."""
        self._news = True
        self._worker.wake()

    def ready(self) -> bool:
        """Whether there is anything to make."""
        return self._now is not None or self._news

    def take_turn(self, waiting: int) -> None:
        """Begin the next, or make a chunk of the one that was begun."""
        if self._now is None and not self._begin():
            return
        assert self._now is not None
        making = self._now
        try:
            self._advance(making, waiting)
        except Exception as error:
            self._finish(making, FAILED, _reason(error))

    def break_off(self, error: BaseException) -> None:
        """The table itself cannot be used: nothing more is made."""
        self.ended = _reason(error)
        self._told("jobs ended", {"why": self.ended})

    def remove(self, name: str) -> None:
        """The files of a video go."""
        self.video(name).unlink(missing_ok=True)
        self.video(name).with_suffix(".jpg").unlink(missing_ok=True)
        self.video(name).with_suffix(".npy").unlink(missing_ok=True)

    def _begin(self) -> bool:
        self._news = False
        job = self._jobs.waiting()
        if job is None or not self._jobs.start(job.id):
            self._news = job is not None
            return False
        asked, path = job.asked, self.video(job.id)
        options = {name: asked[name] for name in OPENING if asked.get(name) is not None}
        try:
            session = self._pipe.open(asked["prompt"], **options, **context_of(path.with_suffix(".npy")))
            self._now = _Making(job, session, path, self._pipe.settings.fps)
        except Exception as error:
            self._jobs.finish(job.id, FAILED, _reason(error))
            self._told("video failed", {"video": job.id, "why": _reason(error)})
            self._news = True
            return False
        return True

    def _advance(self, making: _Making, waiting: int) -> None:
        job = self._jobs.find(making.job.id)
        if job is None or job.status == CANCELLED:
            self._finish(making, CANCELLED)
            return
        chunk = next(making.session)
        if self._writing is not None:
            self._writing.result()  # no more than one chunk waits to be encoded
        clip, first = pixels(chunk.video[0]), chunk.index == 0
        self._writing = self._worker.encoder.submit(making.write, clip, first)
        self._told("chunk", {"video": job.id, "chunk": chunk.index, "steps": chunk.steps, "seconds": 0.0})
        self._jobs.advance(job.id, chunk.index + 1)
        if chunk.index + 1 == job.asked["chunks"]:
            self._writing.result()
            self._finish(making, DONE)

    def _finish(self, making: _Making, status: str, why: str | None = None) -> None:
        """Close file and session; only then is it said to be over."""
        self._now, writing, self._writing, self._news = None, self._writing, None, True
        if writing is not None and writing.exception() is not None:
            status, why = FAILED, _reason(writing.exception())
        try:
            self._worker.encoder.submit(making.close).result()
        except Exception as error:
            status, why = FAILED, _reason(error)
        making.session.close()
        if status != DONE:
            self.remove(making.job.id)
        self._jobs.finish(making.job.id, status, why)
        self._told(f"video {status}", {"video": making.job.id, "why": why})


def _reason(error: BaseException | None) -> str:
    return str(error) if isinstance(error, NearstepError) else f"{type(error).__name__}: {error}"
