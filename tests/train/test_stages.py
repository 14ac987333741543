"""The stages end to end at the smallest size: each starts from the last one's folder, and the result generates."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import usual_runs
from small_runs import assert_equal, cut, loop, tiny_codec, weights
from torch import Tensor
from transformers import AutoTokenizer, UMT5EncoderModel
from untrained import NETWORK, TEXT
from worlds import Shades

from nearstep.data.latents import LatentClips, LatentsConfig
from nearstep.data.order import rows_after
from nearstep.data.shards import read_index
from nearstep.errors import NearstepError
from nearstep.nets.masks import teacher_forcing
from nearstep.nets.text import PromptEncoder
from nearstep.playground import PLAYGROUND, Playground
from nearstep.playground.world import WorldConfig
from nearstep.reach import Reach
from nearstep.train.optim import OptimConfig
from nearstep.train.phases import Phase
from nearstep.train.stages.causal import CausalConfig, CausalStage
from nearstep.train.stages.shared import open_model, stratified
from nearstep.train.stages.teacher import TeacherConfig, TeacherStage
from nearstep.train.stages.text import TextConfig, TextStage, meanings

pytestmark = pytest.mark.usefixtures("few_clips")


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_codec(tmp_path_factory.mktemp("codec"), 2).run()


def tiny_teacher(codec: Path, folder: Path, latents: Path, steps: int = 4) -> TeacherConfig:
    return replace(
        usual_runs.teacher(),
        loop=loop(folder, steps),
        network=NETWORK,
        text=TEXT,
        codec=codec / "vae",
        latents=LatentsConfig(folder=latents, clips=8, world=PLAYGROUND),
        phases=(Phase(steps // 2, 9, 6), Phase(steps - steps // 2, 33, 4)),
    )


def tiny_causal(recipe: CausalConfig, model: Path, folder: Path, latents: Path) -> CausalConfig:
    return replace(
        recipe,
        loop=loop(folder),
        model=model,
        latents=LatentsConfig(folder=latents, clips=8, world=PLAYGROUND),
        batch=2,
    )


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("latents")


@pytest.fixture(scope="module")
def teacher(codec: Path, latents: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_teacher(codec, tmp_path_factory.mktemp("teacher"), latents).run()


def test_teacher_resumes_exactly(codec: Path, teacher: Path, latents: Path, tmp_path: Path):
    cut(tiny_teacher(codec, tmp_path, latents))
    assert_equal(teacher, tiny_teacher(codec, tmp_path, latents).run())


def test_phases_of_pictures_learn_from_more_of_them(codec: Path, latents: Path, tmp_path: Path):
    config = tiny_teacher(codec, tmp_path / "run", latents)
    pictures = replace(config.latents, folder=tmp_path / "pictures", clips=12, frames=1)
    stage = TeacherStage(replace(config, pictures=pictures, phases=(Phase(2, 1, 6), Phase(2, 9, 4))))
    assert (stage.pictures.count, stage.pictures.shape[0], stage.clips.count) == (12, 1, 8)
    # The codec is causal: a picture is the first frame of the clip of its name.
    both = stage.pictures.latents.rows([*range(8)]), stage.clips.latents.rows([*range(8)])[:, :1]
    torch.testing.assert_close(*both, rtol=0, atol=0.02)
    assert stage.pictures.captions(3, 1) == stage.clips.captions(3, 1)
    seen: list[tuple[int, int]] = []

    def batch(first: int, size: int):
        seen.append((first, size))
        return LatentClips.batch(stage.pictures, first, size)

    stage.pictures.batch = batch  # pyright: ignore[reportAttributeAccessIssue]
    for index in range(4):
        stage.step(index)
    assert seen == [(0, 6), (6, 6)]
    with pytest.raises(NearstepError, match="give them frames=1"):
        replace(config, pictures=replace(pictures, frames=5))


def test_phases_of_windows_learn_what_lies_near_the_focus(codec: Path, latents: Path, tmp_path: Path):
    config = tiny_teacher(codec, tmp_path / "run", latents)
    stage = TeacherStage(replace(config, phases=(Phase(2, 1, 6, 32), Phase(2, 9, 4))))
    seen: list[torch.Size] = []
    stage.network.register_forward_hook(lambda _, inputs, output: seen.append(output.shape))
    for index in range(4):
        assert torch.isfinite(stage.step(index)["loss"])
    stride = stage.codec.spatial_stride
    assert [tuple(shape[-2:]) for shape in seen] == [(32 // stride,) * 2] * 2 + [(PLAYGROUND.size // stride,) * 2] * 2
    rows = [row for _, row in rows_after(0, 6, count=8, seed=0)]
    assert torch.equal(stage.clips.focus(0, 6, 1), PLAYGROUND.focus(0, rows, frames=1))
    with pytest.raises(NearstepError, match="no whole number of tokens"):
        TeacherStage(replace(config, phases=(Phase(2, 1, 6, 20), Phase(2, 9, 4))))


def test_a_teacher_learns_from_first_frames_that_are_given(codec: Path, latents: Path, tmp_path: Path):
    config = replace(tiny_teacher(codec, tmp_path / "run", latents), phases=(Phase(1, 1, 8), Phase(3, 9, 8, draws=4)))
    none, half, all_ = (TeacherStage(replace(config, given=given)) for given in (0.0, 0.5, 1.0))
    for stage in (none, half, all_):
        assert (stage.batch(0).t > 0).all()  # a picture is never given
    assert (none.batch(1).t > 0).all()
    assert 4 < int((half.batch(1).t[:, 0] == 0).sum()) < 28
    assert (all_.batch(1).t[:, 0] == 0).all() and (all_.batch(1).t[:, 1:] > 0).all()
    torch.testing.assert_close(half.batch(1).t[:, 1:], none.batch(1).t[:, 1:], rtol=0, atol=0)
    assert torch.isfinite(all_.step(1)["loss"])
    with pytest.raises(NearstepError, match=r"given"):
        replace(config, given=1.5)


def test_a_teacher_goes_on_from_a_model(teacher: Path, codec: Path, latents: Path, tmp_path: Path):
    config = replace(tiny_teacher(codec, tmp_path / "run", latents), start=teacher)
    stage, before = TeacherStage(config), weights(teacher)
    for name, value in stage.network.state_dict().items():  # stored in bfloat16
        assert torch.equal(value, before[f"teacher/{name}"].float()), name
    for each in (stage.both, stage.ema.module):
        assert torch.equal(each["network"].proj_out.bias, before["teacher/proj_out.bias"].float())  # pyright: ignore
    prompts = ["a red ball slides left"]
    assert torch.equal(stage.text(prompts), PromptEncoder.from_pretrained(teacher, dtype=torch.float32)(prompts))
    with pytest.raises(NearstepError, match=r"has a teacher of another size .*give the recipe its size"):
        TeacherStage(replace(config, network=replace(config.network, ffn_dim=config.network.ffn_dim + 8)))
    with pytest.raises(NearstepError, match=r"has a teacher of another size .*give the recipe its size"):
        TeacherStage(replace(config, network=replace(config.network, num_layers=config.network.num_layers - 1)))
    half = replace(config.network, num_attention_heads=1, attention_head_dim=2 * config.network.attention_head_dim)
    with pytest.raises(NearstepError, match=r"num_attention_heads=2, and the recipe says 1; give it that size"):
        TeacherStage(replace(config, network=half))  # weights of the same shapes
    other = LatentsConfig(folder=tmp_path / "latents", clips=8, world=Shades(size=64, frames=33))
    with pytest.raises(NearstepError, match="reads other words than the world"):
        TeacherStage(replace(config, latents=other))
    with pytest.raises(NearstepError, match="no network at"):
        TeacherStage(replace(config, start=tmp_path / "nowhere"))


@pytest.mark.parametrize("layers", [3, 5])
def test_a_teacher_goes_on_with_more_layers(teacher: Path, codec: Path, latents: Path, tmp_path: Path, layers: int):
    """It begins by making what the shallower one made, and every new layer learns."""
    config = replace(tiny_teacher(codec, tmp_path / "run", latents), start=teacher)
    stage, deep = (
        TeacherStage(replace(config, network=replace(config.network, num_layers=n)))
        for n in (config.network.num_layers, layers)
    )
    batch = stage.batch(0)
    torch.testing.assert_close(deep._losses(batch), stage._losses(batch), rtol=1e-5, atol=1e-6)
    before = {name: value.clone() for name, value in deep.network.state_dict().items()}
    for index in range(3):
        deep.step(index)
    still = [name for name, value in deep.network.state_dict().items() if torch.equal(value, before[name])]
    assert not still, still


def test_draws_share_a_clip_and_its_caption(codec: Path, latents: Path, tmp_path: Path):
    config = tiny_teacher(codec, tmp_path / "run", latents)
    stage = TeacherStage(replace(config, phases=(Phase(4, 1, 6, 32, draws=3),)))
    captions, times = [], []
    stage.text.register_forward_hook(lambda _, inputs, output: captions.append(len(output)))
    stage.network.register_forward_hook(lambda _, inputs, output: times.append(inputs[1][:, 0]))
    assert torch.isfinite(stage.step(0)["loss"])
    assert captions == [6]
    even: Tensor = times[0] / (config.shift - (config.shift - 1) * times[0])  # the shift undone
    assert (even.view(6, 3) * 3).floor().tolist() == [[0, 1, 2]] * 6  # a time of each clip in every third of [0, 1]
    with pytest.raises(NearstepError, match="leave the draws of its phases at 1"):
        replace(tiny_codec(tmp_path / "codec"), phases=(Phase(4, 1, 2, draws=2),))


def test_from_teacher_to_a_few_step_student_that_generates(teacher: Path, latents: Path, tmp_path: Path):
    from nearstep import CausalVideoPipeline

    forced = tiny_causal(usual_runs.forcing(), teacher, tmp_path / "forcing", latents).run()
    again = tiny_causal(usual_runs.forcing(), teacher, tmp_path / "again", latents)
    cut(again)
    assert_equal(forced, again.run())

    student = tiny_causal(usual_runs.consistency(), forced, tmp_path / "consistency", latents)
    cut(student)
    resumed = student.run()
    assert_equal(tiny_causal(usual_runs.consistency(), forced, tmp_path / "whole", latents).run(), resumed)

    for network, plan in (("transformer", "2,1x"), ("teacher", "3")):
        pipe = CausalVideoPipeline.from_pretrained(resumed, transformer=network)
        video = pipe("a red ball slides left", plan=plan, seed=0, output_type="pt").frames
        assert video.shape == (1, 33, 3, PLAYGROUND.size, PLAYGROUND.size)
        assert torch.isfinite(video).all()


def test_a_window_of_long_clips_goes_into_the_model_and_its_streams(teacher: Path, tmp_path: Path):
    from nearstep import CausalVideoPipeline

    recipe = replace(tiny_causal(usual_runs.forcing(), teacher, tmp_path / "run", tmp_path), window_frames=6)
    long = replace(recipe, latents=LatentsConfig(folder=tmp_path / "latents", clips=8, world=PLAYGROUND, frames=45))
    stage = CausalStage(long)
    assert stage.update.lengths == (3, 3, 3, 3)
    assert stage.update.visibility == teacher_forcing(stage.update.lengths, Reach(window=6))
    pipe = CausalVideoPipeline.from_pretrained(long.run())
    with pipe.open("a red ball slides left", "1", seed=0) as session:
        assert (session.recording.opening.window, session.recording.opening.sink) == (6, 0)
    with pytest.raises(NearstepError, match="window_frames=2 is shorter than a chunk of 3"):
        replace(long, window_frames=2)


def test_trajectory_regression_trains_and_resumes(teacher: Path, latents: Path, tmp_path: Path):
    whole, halved = (
        replace(tiny_causal(usual_runs.trajectory(), teacher, tmp_path / name, latents), ode_steps=8)
        for name in ("whole", "cut")
    )
    cut(halved)
    assert_equal(whole.run(), halved.run())


def test_a_text_cache_serves_training(teacher: Path, latents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = replace(
        tiny_causal(usual_runs.forcing(), teacher, tmp_path / "run", latents), text_cache=tmp_path / "texts"
    )
    trained = config.run()
    assert any((tmp_path / "texts").rglob("*.safetensors"))
    encoders = [weights(model) for model in (teacher, trained)]
    for name in (name for name in encoders[0] if name.startswith("text_encoder/")):
        assert torch.equal(encoders[0][name], encoders[1][name])  # exported whole, whether it was needed or not

    prompts = ["a red ball slides left", ""]
    plain, first = (open_model(teacher, config.latents, cache)[1](prompts) for cache in (None, tmp_path / "texts"))
    torch.testing.assert_close(first, plain)
    monkeypatch.setattr(UMT5EncoderModel, "from_pretrained", lambda *_, **__: pytest.fail("it was loaded"))
    assert torch.equal(open_model(teacher, config.latents, tmp_path / "texts")[1](prompts), first)


def test_another_world_trains_by_configuration_alone(tmp_path: Path):
    world = Shades(size=64, frames=33)
    codec = replace(tiny_codec(tmp_path / "codec", 2), world=world).run()
    clips = LatentsConfig(folder=tmp_path / "latents", clips=8, world=world)
    recipe = replace(tiny_teacher(codec, tmp_path / "teacher", tmp_path / "latents", 2), latents=clips)
    model = recipe.run()
    index = read_index(tmp_path / "latents")
    assert index is not None and index.kind == "shades-64" and index.shape == (9, 4, 8, 8) and index.fps == 4
    tokenizer = AutoTokenizer.from_pretrained(model / "tokenizer")
    assert set(world.vocabulary()) <= set(tokenizer.get_vocab()) and "red" not in tokenizer.get_vocab()
    with pytest.raises(NearstepError, match="learns the words of a world; set latents.world"):
        replace(recipe, latents=replace(clips, world=None))


def test_latents_of_another_codec_are_refused(teacher: Path, codec: Path, latents: Path, tmp_path: Path):
    other = tiny_codec(tmp_path / "other", 4).run()
    with pytest.raises(NearstepError, match="another latents folder"):
        tiny_teacher(other, tmp_path / "run", latents).run()


def test_a_missing_stage_is_named(tmp_path: Path, latents: Path, teacher: Path):
    config = tiny_causal(usual_runs.consistency(), teacher, tmp_path, latents)
    with pytest.raises(NearstepError, match="run the stage before this one"):
        config.run()


def test_phases_must_fill_the_run(tmp_path: Path):
    with pytest.raises(NearstepError, match="phases have 4 steps and the run 5"):
        replace(tiny_codec(tmp_path), loop=loop(tmp_path, 5))


def test_stratified_times_are_one_in_each_cell():
    u = stratified(16, torch.Generator().manual_seed(0))
    assert sorted((u * 16).int().tolist()) == list(range(16))


def test_a_text_encoder_learns_what_captions_have_in_common(codec: Path, latents: Path, tmp_path: Path):
    alone = Playground(WorldConfig(pairs=0.0))  # pairs are drawn until their paths suit each other
    config = TextConfig(
        loop=loop(tmp_path / "text", 60), optim=OptimConfig(lr=2e-2, warmup=3), text=TEXT, world=alone, batch=24
    )
    model = config.run()
    learnt, new = PromptEncoder.from_pretrained(model), TextStage(config).text
    captions = [alone.prompts(-5, range(24), wording=wording) for wording in (1, 2)]
    found = [
        float(((meanings(text, captions[0]) @ meanings(text, captions[1]).mT).argmax(1) == torch.arange(24)).sum())
        for text in (learnt, new)
    ]
    assert found[0] > found[1] + 4, found
    assert (tmp_path / "text" / "previews" / "0000060.png").exists()

    stage = TeacherStage(replace(tiny_teacher(codec, tmp_path / "run", latents), words=model))
    assert torch.equal(stage.text(captions[0]), learnt(captions[0]))

    kept = replace(tiny_teacher(codec, tmp_path / "kept", latents, steps=2), words=model, text_learns=False)
    made = weights(kept.run())
    for name, value in weights(model).items():
        assert torch.equal(made[f"text_encoder/{name.removeprefix('text_encoder/')}"], value.bfloat16()), name
    with pytest.raises(NearstepError, match="keeps a text encoder that knows nothing; give words=DIR or start=DIR"):
        replace(kept, words=None)
    other = replace(tiny_teacher(codec, tmp_path / "other", latents), words=model, text=replace(TEXT, d_ff=24))
    with pytest.raises(NearstepError, match=r"a text encoder of another size .*give the recipe its size"):
        TeacherStage(other)
    missing = replace(other, words=tmp_path / "nowhere", latents=replace(other.latents, folder=tmp_path / "unmade"))
    with pytest.raises(NearstepError, match="no text encoder in .*; run the stage before this one"):
        TeacherStage(missing)
    assert not (tmp_path / "unmade").exists()  # refused before any clip is encoded


def test_a_text_encoder_resumes_exactly(tmp_path: Path):
    def recipe(name: str) -> TextConfig:
        optim = OptimConfig(lr=1e-3, warmup=1)
        return TextConfig(loop=loop(tmp_path / name, 4), optim=optim, text=TEXT, world=PLAYGROUND, batch=4)

    whole = weights(recipe("whole").run())
    part = recipe("part")
    replace(part, loop=replace(part.loop, minutes=1e-9)).run()
    resumed = weights(part.run())
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[name], resumed[name]) for name in whole)
