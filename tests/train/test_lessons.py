"""Lessons: which step learns what, captions that change on the way, and clips that go on from a picture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import usual_runs
from untrained import NETWORK, TEXT, write_untrained
from worlds import Shades

from nearstep.data.latents import LatentClips, LatentsConfig, load_latents
from nearstep.errors import NearstepError
from nearstep.flow.plan import chunk_lengths, make_plan
from nearstep.nets.codec import VideoCodec
from nearstep.nets.denoiser import TextDenoiser
from nearstep.nets.script import Script, TextKeys, encoded
from nearstep.nets.transformer import VideoTransformer
from nearstep.playground import Playground
from nearstep.playground.world import WorldConfig
from nearstep.rollout.rollout import generate
from nearstep.train.distill import update as updates
from nearstep.train.distill.stage import DistillConfig, DistillStage
from nearstep.train.distill.steps import StepPlan
from nearstep.train.lessons import Lesson, taught
from nearstep.train.loop import LoopConfig
from nearstep.train.optim import OptimConfig
from nearstep.train.phases import Phase
from nearstep.train.stages.causal import CausalConfig, CausalStage
from nearstep.train.stages.shared import codec_name, open_lessons
from nearstep.train.stages.teacher import TeacherConfig, TeacherStage

pytestmark = pytest.mark.usefixtures("few_clips")

WORLD = Playground(WorldConfig(size=32))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, few_clips: None) -> Path:
    """A random model of the world of things at 32 pixels."""
    return write_untrained(tmp_path_factory.mktemp("model"), WORLD)


@pytest.fixture(scope="module")
def kinds(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, LatentsConfig]:
    """Usual clips, stories, and clips of a picture and three chunks; made once."""
    place = tmp_path_factory.mktemp("latents")
    made = {
        "usual": LatentsConfig(folder=place / "usual", clips=8, world=WORLD),
        "stories": LatentsConfig(folder=place / "stories", clips=8, world=WORLD, changes=(3, 6)),
        "pictures": LatentsConfig(folder=place / "pictures", clips=8, world=WORLD, frames=37),
        "single": LatentsConfig(folder=place / "single", clips=8, world=WORLD, frames=1),
    }
    codec = VideoCodec.from_pretrained(folder / "vae")
    for config in made.values():
        load_latents(config, codec, codec_name(codec))
    return made


def loop(folder: Path, steps: int = 4) -> LoopConfig:
    return LoopConfig(folder=folder, steps=steps, log_every=1, save_every=2, preview_every=100, tensorboard=False)


def lessons(kinds: dict[str, LatentsConfig]) -> tuple[Lesson, ...]:
    return Lesson(latents=kinds["stories"]), Lesson(latents=kinds["pictures"], first_chunk=1)


def causal(objective: str, folder: Path, kinds: dict[str, LatentsConfig], run: Path) -> CausalConfig:
    return replace(
        usual_runs.causal(objective),
        loop=loop(run),
        model=folder,
        network="transformer",
        latents=kinds["usual"],
        lessons=lessons(kinds),
        lesson_every=2,
        batch=2,
        autocast=False,
    )


def distillation(folder: Path, kinds: dict[str, LatentsConfig], run: Path) -> DistillConfig:
    rate = OptimConfig(lr=1e-3, warmup=1, decay=0.0, betas=(0.0, 0.99))
    return replace(
        usual_runs.distill(),
        loop=loop(run), model=folder, latents=kinds["usual"], lessons=lessons(kinds), lesson_every=2, batch=2, ratio=1,
        network="transformer", warmup=0, adversary_delay=0, student=rate, assistant=rate, discriminator=rate,
    )  # fmt: skip


def test_lessons_take_turns_at_the_end_of_every_few_steps():
    assert [taught(index, 0, (1, 2), 3) for index in range(12)] == [0, 0, 1, 0, 0, 2, 0, 0, 1, 0, 0, 2]
    assert [taught(index, 0, (), 3) for index in range(6)] == [0] * 6
    assert [taught(index, 0, (1,), 2) for index in range(4)] == [0, 1, 0, 1]
    assert [taught(index, 0, (1, 2), 1) for index in range(4)] == [1, 2, 1, 2]


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    """(frames of a clip, first clip, clips) of every read."""
    reads: list[tuple[int, int, int]] = []
    batch = LatentClips.batch

    def noted(self: LatentClips, first: int, size: int):
        found = batch(self, first, size)
        assert found[0] is not None
        reads.append((found[0].shape[1], first, size))
        return found

    monkeypatch.setattr(LatentClips, "batch", noted)
    return reads


def read_of(taken: list[tuple[int, int, int]], frames: int) -> list[tuple[int, int, int]]:
    return [part for part in taken if part[0] == frames]


@pytest.mark.parametrize("chunk", [1, 3])
def test_a_lesson_of_pictures_takes_more_of_them_at_once(
    folder: Path, kinds: dict[str, LatentsConfig], tmp_path: Path, taken: list[tuple[int, int, int]], chunk: int
):
    pictures = Lesson(latents=kinds["single"], first_chunk=1, batch=6)
    config = replace(
        causal("forcing", folder, kinds, tmp_path / "run"), lessons=(pictures,), chunk_frames=chunk, micro=2
    )
    config.run()
    assert read_of(taken, 9)[:2] == [(9, 0, 2), (9, 4, 2)]  # steps 0 and 2
    assert read_of(taken, 1)[:6] == [(1, first, 2) for first in (6, 8, 10, 18, 20, 22)]  # steps 1 and 3
    with pytest.raises(NearstepError, match="micro=4 does not divide"):
        replace(config, micro=4, batch=4)


def test_a_distillation_makes_more_pictures_at_once(
    folder: Path, kinds: dict[str, LatentsConfig], tmp_path: Path, taken: list[tuple[int, int, int]]
):
    config = replace(
        distillation(folder, kinds, tmp_path / "run"),
        lessons=(Lesson(latents=kinds["single"], batch=6),), chunk_frames=1, micro=2, step_counts=(1,),
    )  # fmt: skip
    stage = DistillStage(config)
    taken.clear()  # what the stage shows of the clips
    logged = [stage.step(index) for index in range(4)]
    assert read_of(taken, 9) == [(9, 0, 2), (9, 4, 2)]
    assert read_of(taken, 1) == [(1, first, 2) for first in (6, 8, 10, 18, 20, 22)]
    assert all(bool(torch.isfinite(value).all()) for metrics in logged for value in metrics.values())
    assert ["motion_1" in metrics for metrics in logged] == [True, False, True, False]
    with pytest.raises(NearstepError, match="micro=4 does not divide"):
        replace(config, micro=4, batch=4)


def test_lessons_may_be_left_out_and_are_of_the_size_of_all_clips(
    folder: Path, kinds: dict[str, LatentsConfig], tmp_path: Path
):
    base = causal("forcing", folder, kinds, tmp_path / "run")
    assert replace(base, lesson_every=0).lessons == ()
    with pytest.raises(NearstepError, match="lesson_every=-1; give at least 1"):
        replace(base, lesson_every=-1)
    other = LatentsConfig(folder=tmp_path / "other", clips=8, world=Playground(WorldConfig(size=64, frames=9)))
    for config in (base, distillation(folder, kinds, tmp_path / "run")):
        with pytest.raises(NearstepError, match=r"\[4, 8, 8\] a frame.* \[4, 4, 4\]; .*lesson_every=0"):
            replace(config, lessons=(Lesson(latents=other),)).run()
    assert not other.folder.exists()  # nothing is encoded first


def test_a_lesson_that_comes_up_again_is_opened_once(folder: Path, kinds: dict[str, LatentsConfig]):
    codec = VideoCodec.from_pretrained(folder / "vae")
    stories, pictures, single = (Lesson(latents=kinds[kind]) for kind in ("stories", "pictures", "single"))
    again = Lesson(latents=replace(kinds["stories"]), batch=1)  # equal, another object
    usual = load_latents(kinds["usual"], codec, codec_name(codec)).shape
    opened = open_lessons([stories, single, again, pictures, single], codec, usual)
    assert [clips.shape[0] for clips in opened] == [9, 1, 9, 10, 1]
    assert opened[2] is opened[0] and opened[4] is opened[1]


def test_a_folder_without_a_teacher_is_refused_before_a_step(
    folder: Path, kinds: dict[str, LatentsConfig], tmp_path: Path
):
    config = replace(causal("forcing", folder, kinds, tmp_path / "run"), teacher="tutor")
    with pytest.raises(NearstepError, match=r"holds no tutor/.*\(teacher=\)"):
        config.run()


def test_a_distillation_makes_something_of_every_lesson(folder: Path, kinds: dict[str, LatentsConfig], tmp_path: Path):
    given = Lesson(latents=kinds["single"], first_chunk=1)
    with pytest.raises(NearstepError, match="first_chunk=1 is all of the lesson's clips"):
        DistillStage(replace(distillation(folder, kinds, tmp_path / "run"), lessons=(given,)))


def test_scenes_of_a_lesson_may_begin_with_more_steps(
    folder: Path, kinds: dict[str, LatentsConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    stories = Lesson(latents=kinds["stories"], first_steps=4)
    base = replace(distillation(folder, kinds, tmp_path / "run"), chunk_frames=1, step_counts=(1,))
    stage = DistillStage(replace(base, lessons=(stories,), lesson_every=2))
    plans = []
    made = updates.generate
    monkeypatch.setattr(updates, "generate", lambda net, plan, **more: plans.append(plan) or made(net, plan, **more))
    for index in range(2):
        stage.step(index)
    steps = [[len(schedule) for schedule in plan.schedules] for plan in plans]
    assert steps == [[1] * 9, [2] * 9, [4, 1, 1, 4, 1, 1, 4, 1, 1], [4, 2, 2, 4, 2, 2, 4, 2, 2]]
    with pytest.raises(NearstepError, match="first_steps=5; give at most 4"):
        replace(base, lessons=(replace(stories, first_steps=5),))
    with pytest.raises(NearstepError, match="first_steps=4: only a distillation rolls clips out"):
        replace(causal("forcing", folder, kinds, tmp_path / "run"), lessons=(stories,))


def test_an_assistant_learns_nothing_of_frames_that_were_given(
    folder: Path, kinds: dict[str, LatentsConfig], tmp_path: Path
):
    onward = Lesson(latents=kinds["usual"], first_chunk=1)
    base = replace(distillation(folder, kinds, tmp_path / "run"), chunk_frames=1, step_counts=(1,))
    lesson = DistillStage(replace(base, lessons=(onward,), lesson_every=1)).lessons[0]
    batch, noise = lesson.sample(lesson.plan(0), 0, lesson.rows), lesson.noise("learners", 0, 0)
    assert (lesson.kind, batch.given) == (1, 1)
    assert torch.equal(batch.x_n[:, :1], batch.clips[:, :1])
    assistant = lesson.networks.assistant
    lesson.assistant(replace(batch, given=batch.x_n.shape[1]), noise)
    assert not any(p.grad is not None and bool(p.grad.any()) for p in assistant.parameters())
    lesson.assistant(batch, noise)
    assert any(p.grad is not None and bool(p.grad.any()) for p in assistant.parameters())


def test_a_clip_of_a_story_is_encoded_with_its_captions(folder: Path, kinds: dict[str, LatentsConfig]):
    codec = VideoCodec.from_pretrained(folder / "vae")
    clips = load_latents(kinds["stories"], codec, codec_name(codec))
    assert clips.starts == (3, 6)
    latents, captions = clips.batch(0, 8)
    assert all(isinstance(caption, tuple) and len(caption) == 3 for caption in captions)
    usual, _ = load_latents(kinds["usual"], codec, codec_name(codec)).batch(0, 8)
    torch.testing.assert_close(latents[:, :3], usual[:, :3], rtol=0, atol=1e-2)  # the first scene is the world's own
    assert float((latents[:, 3:] - usual[:, 3:]).abs().amax(dim=(1, 2, 3, 4)).min()) > 0.01
    with pytest.raises(NearstepError, match="changes is"):
        load_latents(replace(kinds["stories"], changes=()), codec, codec_name(codec))
    with pytest.raises(NearstepError, match="growing latent frames"):
        replace(kinds["stories"], changes=(6, 3))
    with pytest.raises(NearstepError, match="a world whose clips can change"):
        LatentsConfig(folder=folder, clips=8, world=Shades(), changes=(3,))


def test_a_teacher_reads_each_scenes_own_caption(folder: Path, kinds: dict[str, LatentsConfig], tmp_path: Path):
    config = TeacherConfig(
        loop=loop(tmp_path / "run", 8),
        optim=OptimConfig(lr=1e-3, warmup=1),
        network=NETWORK,
        text=TEXT,
        codec=folder / "vae",
        latents=kinds["usual"],
        phases=(Phase(4, 9, 2), Phase(4, 33, 2)),
        lessons=(Lesson(latents=kinds["stories"]),),
        lesson_every=2,
        autocast=False,
    )
    stage = TeacherStage(config)
    read: list[TextKeys] = []
    forward = stage.network.forward
    stage.network.forward = lambda *a, text, **b: (read.append(text), forward(*a, text, **b))[1]
    for index in range(8):
        assert torch.isfinite(stage.step(index)["loss"])
    # Three latent frames show the first scene alone; nine show all of them.
    assert [text.starts for text in read] == [()] * 5 + [(3, 6), (), (3, 6)]
    with pytest.raises(NearstepError, match="has no chunks"):
        replace(config, lessons=lessons(kinds))
    with pytest.raises(NearstepError, match="batch=4: a teacher's phases say"):
        replace(config, lessons=(Lesson(latents=kinds["stories"], batch=4),))


@pytest.mark.parametrize("objective", ["forcing", "consistency", "trajectory"])
def test_causal_runs_learn_scripts_and_clips_that_begin_with_a_picture(objective, folder, kinds, tmp_path: Path):
    config = causal(objective, folder, kinds, tmp_path / "run")
    if objective == "trajectory":
        config = replace(config, teacher="teacher", network="teacher", ode_steps=8)
    stage = CausalStage(config)
    seen = [taught(index, stage.update, [course.update for course in stage.lessons], 2) for index in range(4)]
    assert [update.lengths for update in seen] == [(3, 3, 3), (3, 3, 3), (3, 3, 3), (1, 3, 3, 3)]
    assert [update.starts for update in seen] == [(), (3, 6), (), ()]
    for index in range(4):
        assert torch.isfinite(stage.step(index)["loss"])


def test_distillation_learns_scripts_and_goes_on_from_a_picture(folder, kinds, tmp_path: Path):
    stage = DistillStage(distillation(folder, kinds, tmp_path / "run"))
    usual, story, picture = stage.update, *stage.lessons
    plan = StepPlan(steps=1, discriminator_learns=True, student_listens=True)
    assert isinstance(story.sample(plan, 0, range(2)).text, Script)
    batch = picture.sample(plan, 0, range(2), graph=True)
    assert batch.x_n.shape[1] == 10
    assert torch.equal(batch.x_n[:, :1], batch.data[:, :1])  # given, and by both samples of a pair
    assert torch.equal(batch.x_next[:, :1], batch.data[:, :1])
    assert not torch.equal(batch.x_n[:, 1:], batch.data[:, 1:])
    picture.student(plan, batch, picture.noise("test"))
    assert any(p.grad is not None and bool(p.grad.any()) for p in usual.networks.student.parameters())
    for index in range(4):
        assert all(torch.isfinite(value) for value in stage.step(index).values())
    with pytest.raises(NearstepError, match="makes no rollouts"):
        replace(stage.config, sampling="data")


def test_replay_gives_the_gradients_of_scripts_and_of_what_follows_a_picture(folder, kinds, tmp_path: Path):
    plan = StepPlan(steps=2, discriminator_learns=True, student_listens=True)
    found: list[list[torch.Tensor]] = []
    for replay in (False, True):
        stage = DistillStage(replace(distillation(folder, kinds, tmp_path / "run"), replay=replay))
        for update in stage.lessons:
            update.student(plan, update.sample(plan, 0, range(2), graph=True), update.noise("test"))
        found.append([p.grad for p in stage.update.networks.student.parameters() if p.grad is not None])
    for gradient, again in zip(*found, strict=True):
        torch.testing.assert_close(again, gradient, rtol=1e-3, atol=1e-5 * float(gradient.abs().max()))


def test_longer_samples_are_judged_by_excerpts(folder, kinds, tmp_path: Path):
    config = replace(distillation(folder, kinds, tmp_path / "run"), excerpt_frames=6)
    stage = DistillStage(config)
    plan = StepPlan(steps=1, discriminator_learns=True, student_listens=True)
    for update in (stage.update, *stage.lessons):
        frames = [update.sample(plan, index, range(2), graph=True) for index in range(3)]
        assert {part.shape[1] for batch in frames for part in (batch.x_n, batch.x_next, batch.data)} == {6}
    for index in range(4):
        assert all(torch.isfinite(value) for value in stage.step(index).values())
    with pytest.raises(NearstepError, match="of which there are excerpts"):
        replace(config, lessons=(), sampling="data")


def test_a_run_with_lessons_resumes_exactly(folder, kinds, tmp_path: Path):
    whole = distillation(folder, kinds, tmp_path / "whole").run()
    cut = distillation(folder, kinds, tmp_path / "cut")
    replace(cut, loop=replace(cut.loop, minutes=1e-9, save_every=1)).run()
    again = cut.run()
    name = "transformer/diffusion_pytorch_model.safetensors"
    assert (whole / name).read_bytes() == (again / name).read_bytes()


@torch.no_grad()
def test_a_given_chunk_is_what_the_rest_goes_on_from():
    torch.manual_seed(0)
    net = VideoTransformer(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=10, freq_dim=16,
        ffn_dim=32, num_layers=2, chunk_frames=3,
    ).eval()  # fmt: skip
    denoiser = TextDenoiser(net, torch.randn(2, 5, 10))
    lengths = chunk_lengths(7, 3, 1)
    assert lengths == (1, 3, 3)
    plan = replace(make_plan("2", frames=9, chunk_frames=3, shift=3.0), lengths=lengths)
    make = dict(shape=(4, 4, 4), seed=0, samples=[0, 1])
    whole = generate(denoiser, plan, **make)
    picture = whole[:, :1]
    torch.testing.assert_close(generate(denoiser, plan, given=picture, **make), whole)  # noise by the chunk's number
    other = generate(denoiser, plan, given=picture + 1, **make)
    assert torch.equal(other[:, :1], picture + 1)
    assert not torch.allclose(other[:, 1:], whole[:, 1:])


def test_captions_beyond_the_clip_are_left_out():
    def encode(prompts):
        return torch.zeros(len(prompts), 5, 10)

    assert isinstance(encoded(encode, [("a", "b", "c")], (3, 6), 3), torch.Tensor)
    script = encoded(encode, [("a", "b", "c")], (3, 6), 6)
    assert isinstance(script, Script) and script.starts == (3,)
