"""Lessons in the planner: an update of each kind is what a run of such updates alone would have."""

from __future__ import annotations

from dataclasses import replace

import pytest
import usual_runs

from nearstep.cost import fake_step
from nearstep.cost.courses import courses
from nearstep.cost.fake_step import Config
from nearstep.cost.memory import Estimate, estimate, operations
from nearstep.cost.sizes import Sizes
from nearstep.errors import NearstepError
from nearstep.train.lessons import Lesson

NETWORK = dict(
    patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=32, in_channels=4, out_channels=4, text_dim=24,
    freq_dim=64, ffn_dim=192, num_layers=1,
)  # fmt: skip
CODEC = dict(base_dim=8, z_dim=4, dim_mult=[1, 1, 1], temperal_downsample=[True, True], patch_size=2)
ENCODER = dict(vocab_size=30, d_model=24, d_kv=8, d_ff=16, num_heads=2, num_layers=1)
SIZES = Sizes(
    student={**NETWORK, "chunk_frames": 3}, teacher=NETWORK, clip=(6, 4, 16, 16), text_length=12, codec=CODEC,
    encoder=ENCODER,
)  # fmt: skip
RUN = replace(usual_runs.self_forcing(), batch=2)


def whole(found: Estimate) -> float:
    """Operations of an update."""
    return sum(part.all for part in found.flops.values())


@pytest.mark.parametrize("base", [replace(RUN, replay=True), replace(usual_runs.forcing(), batch=2)])
def test_a_lesson_takes_what_a_run_of_its_clips_would(base: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake_step, "peaks", lambda run, sizes, _: {"a step": 1.0 * run.batch * sizes.clip[0]})
    monkeypatch.setattr(fake_step, "preview", lambda _, sizes: {"preview": 1.0 * sizes.clip[0]})
    long, pictures = (24, *SIZES.clip[1:]), (3, *SIZES.clip[1:])
    latents = usual_runs.distill().latents
    lessons = tuple(Lesson(latents=latents, batch=batch) for batch in (None, 40))
    found = estimate(replace(base, lessons=lessons, lesson_every=4), replace(SIZES, lessons=(long, pictures)))
    usual = estimate(base, SIZES)
    each = [usual, estimate(base, replace(SIZES, clip=long))]
    each.append(estimate(replace(base, batch=40), replace(SIZES, clip=pictures)))
    held = sum(usual.resident.values())
    assert found.resident == usual.resident and found.phases == {"a step": held + 40 * 3, "preview": held + 6}
    assert whole(found) == pytest.approx(3 / 4 * whole(each[0]) + 1 / 8 * whole(each[1]) + 1 / 8 * whole(each[2]))


def test_lessons_that_cost_the_same_are_one_course() -> None:
    latents = usual_runs.distill().latents
    lessons = tuple(Lesson(latents=latents, batch=batch) for batch in (40, 2, 40, 40))
    pictures, long = (1, *SIZES.clip[1:]), (24, *SIZES.clip[1:])
    found = [*courses(replace(RUN, lessons=lessons), replace(SIZES, lessons=(pictures, long, pictures, pictures)))]
    assert [(each.config.batch, each.sizes.clip[0]) for each in found] == [(2, 6), (40, 1), (2, 24)]
    assert [each.share for each in found] == pytest.approx([2 / 3, 1 / 4, 1 / 12])


def test_a_first_chunk_that_is_given_is_not_made() -> None:
    run = replace(RUN, step_counts=(4,))
    made, given = (operations(run, replace(SIZES, first_chunk=first)) for first in (None, 3))
    assert given["student backward"].all < 0.6 * made["student backward"].all
    # Of 4 steps and a commit, and 4 steps, the first 4 are not made.
    assert given["rollout"].all == pytest.approx(5 / 9 * made["rollout"].all, rel=0.1)
    with pytest.raises(NearstepError, match="the run has 0 lessons, and 1 have sizes"):
        estimate(run, replace(SIZES, lessons=(SIZES.clip,)))


def test_a_run_of_lessons_alone_has_no_usual_updates() -> None:
    latents = usual_runs.distill().latents
    lessons = (Lesson(latents=latents), Lesson(latents=latents, batch=40))
    config = replace(RUN, lessons=lessons, lesson_every=1)
    found = [*courses(config, replace(SIZES, lessons=(SIZES.clip, (1, *SIZES.clip[1:]))))]
    assert [(each.config.batch, each.share) for each in found] == [(2, 0.5), (40, 0.5)]
