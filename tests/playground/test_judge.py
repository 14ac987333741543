"""The judge finds nothing wrong with real clips, and in a clip broken in one way, that one thing."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from nearstep.errors import NearstepError
from nearstep.playground.judge.judge import ATTRIBUTES, Verdict, judge
from nearstep.playground.judge.quality import FIGURES
from nearstep.playground.world import COLOURS, SHAPES, SIZE, background, positions, render, shape_mask
from nearstep.rng import generator
from nearstep.shapes import chunk_frames

HALF = 17


def agreement(verdicts: list[Verdict]) -> dict[str, float]:
    """Mean agreement of each attribute over the clips whose caption states it."""
    said = {name: [v.agreement[name] for v in verdicts if name in v.agreement] for name in ATTRIBUTES}
    return {name: sum(marks) / len(marks) for name, marks in said.items()}


def figures(verdicts: list[Verdict]) -> dict[str, float]:
    return {name: sum(v.figures[name] for v in verdicts) / len(verdicts) for name in FIGURES}


def only_lost(values: dict[str, float], *lost: str, least: float = 0.95, most: float = 0.85) -> None:
    """What is named fell below ``most``, and nothing else below ``least``."""
    assert all(values[name] < most for name in lost), values
    assert all(value >= least for name, value in values.items() if name not in lost), values


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator("broken clips"))


def empty(clips) -> Tensor:
    return torch.stack([background(scene.background) for scene in clips.scenes])[:, None].expand_as(clips.video)


def redrawn(clips, attribute: str, names) -> Tensor:
    """The clips with each scene's attribute replaced by the next name, everything else as it was."""
    known = tuple(names)
    after = dict(zip(known, [*known[1:], known[0]], strict=True))
    changed = [dataclasses.replace(scene, **{attribute: after[getattr(scene, attribute)]}) for scene in clips.scenes]
    return render(changed)


def spliced(first: Tensor, second: Tensor) -> Tensor:
    return torch.cat([first[:, :HALF], second[:, HALF:]], dim=1)


# --- real clips ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", range(0, 256, 64))
def test_real_clips_agree_with_their_captions_and_look_good(draw, first: int):
    clips = draw(first, 64)
    verdicts = judge(clips.video, clips.captions)
    assert [(v.measured, v.stated) for v in verdicts if not v.correct] == []
    only_lost(figures(verdicts), least=0.98)
    assert min(v.quality for v in verdicts) > 0.96


def test_blur_leaves_agreement_and_lowers_sharpness(clips, blur):
    verdicts = judge(blur(clips.video), clips.captions)
    assert min(agreement(verdicts).values()) >= 0.95
    only_lost(figures(verdicts), "sharpness", least=0.9, most=0.6)


def test_sharpness_and_fidelity_fall_with_every_blur(clips, blur):
    video, seen = clips.video[:16], []
    for _ in range(3):
        seen.append(figures(judge(video, clips.captions[:16])))
        video = blur(video)
    for name in ("sharpness", "fidelity"):
        assert seen[0][name] > seen[1][name] > seen[2][name]


# --- one thing broken ----------------------------------------------------------------------------------------------


def test_frozen_clip_loses_motion(clips):
    moving = [i for i, scene in enumerate(clips.scenes) if scene.motion != "still"]
    video = clips.video[moving, :1].expand_as(clips.video[moving])
    verdicts = judge(video, [clips.captions[i] for i in moving])
    marks = agreement(verdicts)
    only_lost(marks, "motion", "direction", "speed", most=0.01)
    only_lost(figures(verdicts), "pace", most=0.01)


def test_half_the_speed_is_measured(clips):
    fast = [i for i, scene in enumerate(clips.scenes) if scene.speed == "fast" and scene.motion == "slide"]
    video = clips.video[fast][:, torch.arange(33) // 2]
    verdicts = judge(video, [clips.captions[i] for i in fast])
    only_lost(agreement(verdicts), "speed", most=0.01)
    only_lost(figures(verdicts), "pace", most=0.6, least=0.9)


def test_wrong_colour_costs_the_colour_alone(clips):
    verdicts = judge(redrawn(clips, "colour", COLOURS), clips.captions)
    only_lost(agreement(verdicts), "colour", most=0.01)
    only_lost(figures(verdicts))


def test_wrong_shape_costs_the_shape_alone(clips):
    verdicts = judge(redrawn(clips, "shape", SHAPES), clips.captions)
    only_lost(agreement(verdicts), "shape", most=0.01)
    only_lost(figures(verdicts))


def test_wrong_size_costs_the_size_alone(clips):
    small = [i for i, scene in enumerate(clips.scenes) if scene.size == "small"]
    wider = render([dataclasses.replace(clips.scenes[i], radius=8.7) for i in small])
    verdicts = judge(wider, [clips.captions[i] for i in small])
    only_lost(agreement(verdicts), "size", most=0.01)


def test_swapped_direction_costs_the_direction_alone(clips):
    slides = [i for i, scene in enumerate(clips.scenes) if scene.motion == "slide"]
    verdicts = judge(clips.video[slides].flip(1), [clips.captions[i] for i in slides])
    only_lost(agreement(verdicts), "direction", most=0.01)
    only_lost(figures(verdicts))


def test_wrong_background_costs_the_background_alone(clips):
    verdicts = judge(redrawn(clips, "background", ["night", "forest", "slate", "dusk", "sand", "snow"]), clips.captions)
    only_lost(agreement(verdicts), "background", most=0.01)
    only_lost(figures(verdicts))


def test_noise_costs_fidelity_and_steadiness(clips):
    noisy = clips.video + 0.05 * normal(*clips.video.shape)
    verdicts = judge(noisy, clips.captions)
    only_lost(agreement(verdicts))
    only_lost(figures(verdicts), "fidelity", "steadiness")


def test_flickering_brightness_costs_steadiness(clips):
    gain = 1 + 0.12 * normal(len(clips.video), 33, 1, 1, 1)
    verdicts = judge(clips.video * gain, clips.captions)
    only_lost(agreement(verdicts))
    only_lost(figures(verdicts), "steadiness", most=0.4)


def test_shape_that_changes_costs_identity(clips):
    verdicts = judge(spliced(clips.video, redrawn(clips, "shape", SHAPES)), clips.captions)
    only_lost(agreement(verdicts), "shape")
    only_lost(figures(verdicts), "identity", most=0.7, least=0.85)  # the chunk of the change fits neither shape


def test_colour_that_changes_costs_identity(clips):
    verdicts = judge(spliced(clips.video, redrawn(clips, "colour", COLOURS)), clips.captions)
    assert figures(verdicts)["identity"] < 0.7
    assert agreement(verdicts)["shape"] == 1.0


def test_jumping_object_costs_smoothness(clips):
    shifts = (2 * normal(33)).round().int().tolist()
    video = torch.stack([clips.video[:, t].roll(shift, -1) for t, shift in enumerate(shifts)], dim=1)
    inside = [i for i, scene in enumerate(clips.scenes) if _stays_inside(scene)]
    verdicts = judge(video[inside], [clips.captions[i] for i in inside])
    only_lost(figures(verdicts), "smoothness", most=0.4, least=0.9)


def _stays_inside(scene) -> bool:
    x = positions(scene)[:, 0]
    return bool(x.min() > 20 and x.max() < 44)


def test_second_object_costs_the_count(clips):
    chosen, video = [], []
    for index, (scene, clip) in enumerate(zip(clips.scenes, clips.video, strict=True)):
        corner = max(((x, y) for x in (7.0, 40.0) for y in (7.0, 40.0)), key=lambda at: _clearance(scene, at))
        if _clearance(scene, corner) > 12:
            mask = shape_mask("circle", 6.0, torch.tensor(corner))
            colour = torch.tensor(COLOURS[scene.colour])[:, None, None]
            chosen.append(index)
            video.append(torch.lerp(clip, colour.expand_as(clip), mask))
    verdicts = judge(torch.stack(video), [clips.captions[i] for i in chosen])
    assert {v.measured["count"] for v in verdicts} == {"2"}
    followed = [v for v, i in zip(verdicts, chosen, strict=True) if clips.scenes[i].size != "small"]
    only_lost(agreement(followed), "count", most=0.01)
    only_lost(figures(followed), "fidelity", most=0.97)


def _clearance(scene, corner: tuple[float, float]) -> float:
    ways = (positions(scene) - torch.tensor(corner)).norm(dim=-1)
    return float(ways.min()) - 1.3 * scene.radius


def test_vanishing_object_costs_count_and_constancy(clips):
    slides = [i for i, scene in enumerate(clips.scenes) if scene.motion == "slide"]
    video = spliced(clips.video, empty(clips))[slides]
    verdicts = judge(video, [clips.captions[i] for i in slides])
    only_lost(agreement(verdicts), "count", most=0.01)
    assert figures(verdicts)["constancy"] == 0.0
    assert figures(verdicts)["identity"] < 0.7


def test_growing_blur_costs_constancy(clips, blur):
    course = torch.linspace(0, 1, 33)[:, None, None, None]
    verdicts = judge(torch.lerp(clips.video, blur(blur(clips.video)), course), clips.captions)
    assert figures(verdicts)["constancy"] < 0.85
    assert all(v.course[0] > v.course[2] for v in verdicts)


# --- nothing to see ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["empty", "black", "grey", "white", "uniform", "normal", "patches"])
def test_a_clip_without_object_scores_nothing(clips, kind: str):
    shape = clips.video.shape
    uniform = torch.rand(shape, generator=generator("noise clips"))
    video = {
        "empty": empty(clips),
        "black": torch.zeros(shape),
        "grey": torch.full(shape, 0.5),
        "white": torch.ones(shape),
        "uniform": uniform,
        "normal": (0.5 + 0.3 * normal(*shape)).clamp(0, 1),
        "patches": uniform[..., ::6, ::6].repeat_interleave(6, -1).repeat_interleave(6, -2),
    }[kind]
    verdicts = judge(video, clips.captions)
    marks = agreement(verdicts)
    assert all(marks[name] == 0 for name in ATTRIBUTES if name not in ("background", "count"))
    assert (marks["background"], marks["count"]) == ((1.0, 0.0) if kind == "empty" else (0.0, 0.0))
    assert all(v.quality == 0.0 and v.course == [0.0, 0.0, 0.0] for v in verdicts)


def test_an_object_in_a_few_frames_does_not_break_the_judge(clips):
    video = empty(clips).clone()
    video[:, 20] = clips.video[:, 20]
    assert all(v.quality == 0.0 and v.measured["shape"] is None for v in judge(video, clips.captions))


# --- verdicts and limits -------------------------------------------------------------------------------------------


def test_only_what_the_caption_states_counts(clips):
    red = next(i for i, scene in enumerate(clips.scenes) if scene.motion == "slide")
    scene = clips.scenes[red]
    verdict = judge(clips.video[[red]], [f"a {scene.colour} {scene.shape} slides {scene.direction}"])[0]
    assert set(verdict.agreement) == {"count", "colour", "shape", "motion", "direction"}
    assert verdict.correct and verdict.semantic == 1.0


def test_total_is_formed_as_vbench_does():
    verdict = Verdict(
        measured={"count": "1", "shape": "ring"},
        stated={"count": "1", "shape": "star"},
        figures={"sharpness": 0.5, "fidelity": 1.0},
        course=[],
    )
    assert (verdict.semantic, verdict.quality, verdict.total) == (0.5, 0.75, (4 * 0.75 + 0.5) / 5)


def test_a_verdict_does_not_depend_on_the_batch(clips):
    alone = judge(clips.video[5:6], clips.captions[5:6])[0]
    together = judge(clips.video, clips.captions)[5]
    assert alone.measured == together.measured
    assert alone.figures == pytest.approx(together.figures, abs=1e-5)


def test_longer_clips_are_judged_by_their_first_part_for_motion(clips):
    verdicts = judge(render(clips.scenes[:8], frames=69), clips.captions[:8])
    assert all(v.correct and len(v.course) == 6 for v in verdicts)


def test_chunks_in_pixel_frames():
    assert chunk_frames(33, 3) == (9, 12, 12)
    assert chunk_frames(33, 4) == (13, 16, 4)
    assert chunk_frames(9, 3) == (9,)


@pytest.mark.parametrize(
    ("shape", "captions", "message"),
    [
        ((1, 33, 3, 32, 32), 1, "world's size"),
        ((1, 9, 3, SIZE, SIZE), 1, "at least 17 frames"),
        ((2, 33, 3, SIZE, SIZE), 1, "one caption for each"),
    ],
)
def test_what_cannot_be_judged_is_refused(shape, captions, message):
    with pytest.raises(NearstepError, match=message):
        judge(torch.zeros(shape), ["a red ball rests"] * captions)


def test_broken_values_are_refused(clips):
    video = clips.video[:1].clone()
    video[0, 3, 0, 5, 5] = torch.nan
    with pytest.raises(NearstepError, match="not finite"):
        judge(video, clips.captions[:1])
