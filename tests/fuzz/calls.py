"""The Python API with values of wrong types, and the small grammars: plans, strengths, names of students."""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch

from tests.fuzz.cases import Case
from tests.fuzz.damage import ABSURD, SMALL, WORDS, odd_value
from tests.fuzz.kit import Kit
from tests.tiny import PROMPT


def odd_object(draw: Random) -> Any:
    """A value that a Python program may pass by mistake."""
    made: tuple[Callable[[], Any], ...] = (
        lambda: odd_value(draw),
        lambda: odd_value(draw),
        lambda: np.int64(3),
        lambda: np.float32("nan"),
        lambda: np.zeros((2, 3)),
        lambda: np.zeros((0, 0, 0), np.uint8),
        lambda: torch.tensor(2),
        lambda: torch.full((3, 4, 4), float("nan")),
        lambda: torch.zeros(2, 3, 0, 4),
        lambda: b"bytes",
        lambda: object(),
        lambda: (1, 2),
        lambda: range(3),
        lambda: {1, 2},
        lambda: lambda: 3,
        lambda: Path("x"),
        lambda: 3 + 4j,
        lambda: [[PROMPT]],
        lambda: iter([PROMPT]),
    )
    return draw.choice(made)()


def api_calls(kit: Kit) -> dict[str, tuple[Callable[..., Any], dict[str, Any]]]:
    """Public calls that work, with their arguments."""
    import nearstep
    from nearstep.stream.recording import Recording

    clip = torch.rand(5, 3, 16, 16)
    return {
        "pipe": (
            kit.pipe,
            dict(prompt=PROMPT, plan="1", num_frames=5, height=32, width=32, seed=1, samples=[0], guidance_scale=1.0,
                 negative_prompt="", output_type="pt", generator=None, num_inference_steps=None),
        ),
        "open": (
            lambda **given: _chunk(kit.pipe.open(**given)),
            dict(prompt=PROMPT, plan="1", seed=1, sample=0, negative_prompt="", guidance_scale=None, height=32,
                 width=32, image=None, video=None, window=None, sink=None, relative_sink=None, undo_depth=0,
                 prefetch=False, final=False),
        ),
        "rewind": (lambda chunk: _session(kit, "rewind", chunk), dict(chunk=1)),
        "change": (
            lambda **given: _session(kit, "change", **given), dict(prompt="a large blue ball", plan="1", seed=3),
        ),
        "replay": (lambda recording, plan: kit.pipe.replay(recording, plan), dict(recording=kit.take, plan="1")),
        "from_pretrained": (_loaded, _loading(kit)),
        "write_video": (
            lambda **given: nearstep.write_video(**given), dict(path="x.mp4", video=clip, fps=12, metadata={"a": 1}),
        ),
        "export_to_video": (
            nearstep.export_to_video, dict(video_frames=clip, output_video_path="x.mp4", fps=12),
        ),
        "contact_sheet": (nearstep.contact_sheet, dict(clips=[clip], labels=["x"], columns=3)),
        "make_plan": (nearstep.make_plan, dict(text="4,1x", frames=6, chunk_frames=2, shift=5.0, grid=4)),
        "Student": (lambda **given: nearstep.Student.of(**given), dict(given=str(kit.lora), chunk_frames=2, shift=5.0)),
        "Recording.load": (Recording.load, dict(path=kit.take)),
    }  # fmt: skip


def api(draw: Random, kit: Kit, folder: Path) -> Case:
    """A public call that works, with one argument of another type."""
    calls = api_calls(kit)
    name = draw.choice(("pipe", "open", *calls))
    call, given = calls[name]
    wrong = draw.choice([*given])
    given = {**given, wrong: odd_object(draw)}
    return Case(what=f"{name}({wrong}={given[wrong]!r:.60})", act=lambda: call(**given), judge=_finite)


def _loading(kit: Kit) -> dict[str, Any]:
    return dict(model=kit.model, torch_dtype=None, device="cpu", text_device=None, vae_tile=None,
                text_cache=None, tiny_decoder=None, transformer="transformer", vae_dtype=None)  # fmt: skip


def _loaded(model: Any, **given: Any) -> Any:
    from nearstep.stream.pipeline import CausalVideoPipeline

    return CausalVideoPipeline.from_pretrained(model, **given).transformer.dtype


def _chunk(session: Any) -> Any:
    with session:
        return next(session).video


def _session(kit: Kit, what: str, *given: Any, **named: Any) -> Any:
    with kit.pipe.open(PROMPT, "1", seed=1) as session:
        next(session)
        try:
            getattr(session, what)(*given, **named)
        finally:  # refused or not, it goes on
            after = next(session).video
        return after


def _finite(made: Any) -> str | None:
    found = getattr(made, "frames", made)
    if isinstance(found, torch.Tensor) and found.is_floating_point() and not found.isfinite().all():
        return "numbers that are not finite came of it"
    return None


# --- grammars ------------------------------------------------------------------------------------------------------


def plans(draw: Random, kit: Kit, folder: Path) -> Case:
    """Plan strings: what is accepted means what it says, as a clip's and as a stream's."""
    from nearstep.flow.live_plan import Repeating, live_plan
    from nearstep.flow.plan import make_plan

    text = _plan_text(draw)
    frames, chunk = draw.choice((2, 4, 6, 20)), draw.choice((2, 2, None))
    if draw.random() < 0.3:

        def follow() -> Any:
            plan = live_plan(text, shift=5.0, grid=4, frames=8)
            return plan, [len(plan.next(since).schedule) for since in range(5)]

        def known(found: Any) -> str | None:
            plan, steps = found
            wrong = isinstance(plan, Repeating) and not all(1 <= count <= 4 for count in steps)
            return f"{steps} steps" if wrong else None

        return Case(what=f"stream {text!r:.100}", act=follow, judge=known)

    def means(plan: Any) -> str | None:
        times = [schedule.times for schedule in plan.schedules]
        if any(not isfinite(t) or not 0 < t <= 1 for row in times for t in row):
            return "times beyond 0 to 1"
        if any(list(row) != sorted(set(row), reverse=True) for row in times):
            return "times that do not fall"
        again = make_plan(str(plan), frames=frames, chunk_frames=chunk, shift=5.0)
        return None if plan.frames == frames and again == plan else "another plan when read again"

    act = lambda: make_plan(text, frames=frames, chunk_frames=chunk, shift=5.0)  # noqa: E731
    return Case(what=f"clip of {frames}: {text!r:.100}", act=act, judge=means)


def _plan_text(draw: Random) -> str:
    pieces = (
        "1",
        "2",
        "4",
        "16",
        ",",
        ",",
        "x",
        "0",
        "-",
        " ",
        "adaptive",
        "fps",
        ":",
        ".9",
        "16",
        "*",
        "\n",
        "٤",
        "1e3",
    )
    way = draw.random()
    if way < 0.6:
        return "".join(draw.choice(pieces) for _ in range(draw.randrange(1, 8)))
    if way < 0.8:
        return draw.choice(("", "fps:", "adaptive:", "4,")) + draw.choice((*SMALL, *ABSURD))
    return draw.choice((*WORDS, ",".join(["1"] * 10_000), "1," * 3, "9" * 4301, "4,1x,", "x", "4x1", "1x1x"))


def names(draw: Random, kit: Kit, folder: Path) -> Case:
    """``FILE:STRENGTH`` of adapters and ``NAME=FILE`` of students."""
    from nearstep.models.lora_choice import LoraFile
    from nearstep.models.student import Student

    tail = draw.choice((*SMALL, *ABSURD, *WORDS))
    if draw.random() < 0.5:
        given = f"{kit.lora}{draw.choice((':', '::', '=', ''))}{tail}"
        return Case(
            what=f"lora ...{given[-60:]!r}",
            act=lambda: LoraFile.of(given),
            judge=lambda found: None if isfinite(found.strength) else f"strength {found.strength}",
        )
    given = f"{draw.choice(('causvid', 'causvit', 'self-forcing', '', tail))}{draw.choice(('=', ''))}{kit.lora}"
    return Case(what=f"student {given[:40]!r}", act=lambda: Student.of(given))


def numbers(draw: Random, kit: Kit, folder: Path) -> Case:
    """Configs with numbers that they may not have."""
    from dataclasses import fields

    from nearstep.data.latents import LatentsConfig
    from nearstep.data.videos import ClipSize
    from nearstep.models.folder import Settings
    from nearstep.models.student import Causality

    kinds: dict[type, dict[str, Any]] = {
        Settings: {},
        Causality: {},
        ClipSize: dict(frames=5, height=32, width=32, fps=12.0),
        LatentsConfig: dict(folder=Path("x")),
    }
    kind = draw.choice([*kinds])
    name = draw.choice([field.name for field in fields(kind) if field.name not in ("folder", "world")])
    value = odd_value(draw)

    def judge(made: Any) -> str | None:
        kept = getattr(made, name)
        odd = isinstance(kept, float) and not isfinite(kept)
        return f"{name}={kept!r} was taken" if odd or isinstance(kept, bool) else None

    given = {**kinds[kind], name: value}
    return Case(what=f"{kind.__name__}({name}={value!r:.60})", act=lambda: kind(**given), judge=judge)
