"""The pipeline as a diffusers user calls it: what is handed over makes what would have been made in its place."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.callbacks import PipelineCallback

from nearstep import CausalVideoPipeline, NearstepError, rng

PROMPTS = ["a small red ball slides left", "the large blue football bounces on snow"]
Latents = torch.Tensor


@pytest.fixture(scope="module")
def pipe(model_folder: Path) -> CausalVideoPipeline:
    pipe = CausalVideoPipeline.from_pretrained(model_folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def teacher(model_folder: Path) -> CausalVideoPipeline:
    pipe = CausalVideoPipeline.from_pretrained(model_folder, transformer="teacher")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def made(pipe: CausalVideoPipeline, *prompt, **options) -> Latents:
    return pipe(*(prompt or (PROMPTS,)), **{"seed": 7, "output_type": "latent", **options}).frames


@pytest.mark.parametrize("plan", ["1", "3,2,1"])
def test_latents_are_what_the_seed_draws(pipe: CausalVideoPipeline, plan: str) -> None:
    noise = pipe.request(PROMPTS, plan, seed=7).noise()
    drawn = [rng.noise((2, 4, 4, 4), seed=7, samples=[0, 1], chunk=chunk, step=0) for chunk in range(3)]
    assert torch.equal(noise, torch.cat(drawn, dim=1))
    expected = made(pipe, plan=plan)
    assert torch.equal(made(pipe, plan=plan, latents=noise), expected)
    assert torch.equal(made(pipe, plan=plan, latents=noise.transpose(1, 2)), expected)  # diffusers' axes
    assert torch.equal(made(pipe, plan="1", latents=noise, seed=8), made(pipe, plan="1"))  # no noise between steps
    if plan != "1":
        assert not torch.equal(made(pipe, plan=plan, latents=noise, seed=8), expected)
    assert not torch.allclose(made(pipe, plan=plan, latents=noise.flip(0)), expected, atol=1e-2)


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_features_are_what_the_prompt_says(pipe: CausalVideoPipeline, guidance: float) -> None:
    text, negative = pipe.encode_prompt(PROMPTS, "snow")
    options = {"negative_prompt": "snow"} if guidance > 1 else {}
    expected = made(pipe, guidance_scale=guidance, **options)
    given = {"negative_prompt_embeds": negative} if guidance > 1 else {}
    assert torch.equal(made(pipe, None, prompt_embeds=text, guidance_scale=guidance, **given), expected)
    assert pipe.encode_prompt(PROMPTS, do_classifier_free_guidance=False)[1] is None
    half = made(pipe, None, prompt_embeds=text / 2, guidance_scale=guidance, **given)
    assert not torch.allclose(half, expected, atol=1e-4)


def test_features_need_no_text_encoder(model_folder: Path) -> None:
    pipe = CausalVideoPipeline.from_pretrained(model_folder)
    text, negative = pipe.encode_prompt(PROMPTS)
    expected = made(pipe, guidance_scale=2.0)
    pipe.text_encoder = None
    given = made(pipe, None, prompt_embeds=text, negative_prompt_embeds=negative, guidance_scale=2.0)
    assert torch.equal(given, expected)
    with pytest.raises(NearstepError, match="the text encoder was taken away"):
        made(pipe)


def test_several_videos_of_a_prompt_are_samples_of_the_seed(pipe: CausalVideoPipeline) -> None:
    together = made(pipe, num_videos_per_prompt=2)
    assert torch.equal(together, made(pipe, [PROMPTS[0], PROMPTS[0], PROMPTS[1], PROMPTS[1]]))
    alone = made(pipe, PROMPTS[1], samples=[3])
    torch.testing.assert_close(together[3:], alone, atol=1e-5, rtol=1e-5)
    text, _ = pipe.encode_prompt(PROMPTS)
    assert torch.equal(made(pipe, None, prompt_embeds=text, num_videos_per_prompt=2), together)


def test_a_generator_each_makes_what_it_makes_alone(pipe: CausalVideoPipeline) -> None:
    def generators() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in (5, 6)]

    out = pipe(PROMPTS, generator=generators(), output_type="latent")
    for row, (prompt, generator) in enumerate(zip(PROMPTS, generators(), strict=True)):
        alone = pipe(prompt, generator=generator, output_type="latent")
        torch.testing.assert_close(out.frames[row : row + 1], alone.frames, atol=1e-5, rtol=1e-5)
        assert out.request.seeds[row] == alone.seed == out.request.metadata(row)["seed"]


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_a_callback_sees_every_step(pipe: CausalVideoPipeline, guidance: float) -> None:
    seen = []

    def note(owner, step, time, tensors):
        assert owner is pipe and owner.num_timesteps == 7 and owner.guidance_scale == guidance
        seen.append((step, float(time), {name: tensors[name] for name in tensors}))
        return tensors

    names = ["latents", "prompt_embeds", "negative_prompt_embeds"][: 3 if guidance > 1 else 2]
    whole = made(
        pipe, plan="4,2,1", guidance_scale=guidance, callback_on_step_end=note, callback_on_step_end_tensor_inputs=names
    )
    assert torch.equal(whole, made(pipe, plan="4,2,1", guidance_scale=guidance))
    assert [step for step, _, _ in seen] == [*range(7)]
    plan = pipe.request(PROMPTS, "4,2,1", seed=7).clip.plan
    assert [time for _, time, _ in seen] == pytest.approx([1000 * t for each in plan.schedules for t in each.times])
    clean = [seen[last][2]["latents"] for last in (3, 5, 6)]
    assert torch.equal(torch.cat(clean, dim=1), whole)
    text, negative = pipe.encode_prompt(PROMPTS)
    assert torch.equal(seen[4][2]["prompt_embeds"], text)
    assert guidance == 1 or torch.equal(seen[4][2]["negative_prompt_embeds"], negative)


def test_a_callback_may_change_what_comes_after(pipe: CausalVideoPipeline, teacher: CausalVideoPipeline) -> None:
    def last_is_zero(_, step, __, tensors):
        return {"latents": torch.zeros_like(tensors["latents"])} if step == 1 else None

    def in_place(_, step, __, tensors):
        if step == 1:
            tensors["latents"].zero_()

    first = made(pipe, plan="2", callback_on_step_end=last_is_zero)
    plain = made(pipe, plan="2")
    assert first[:, :2].abs().max() == 0 and not torch.allclose(
        first[:, 2:], plain[:, 2:], atol=1e-5
    )  # later chunks see it
    assert torch.equal(made(pipe, plan="2", callback_on_step_end=in_place), first)

    other, _ = teacher.encode_prompt(["the large blue football bounces"] * 2)

    def other_text(_, step, __, tensors):
        return {"prompt_embeds": other} if step == 0 else tensors

    def unguided(owner, step, __, tensors):
        owner._guidance_scale = 0.0
        return tensors

    for change in (other_text, unguided):
        turned = made(teacher, callback_on_step_end=change)
        assert not torch.allclose(turned, made(teacher), atol=1e-4)
    every = made(teacher, guidance_scale=1, callback_on_step_end=None)
    one = made(teacher, plan="1", callback_on_step_end=unguided)
    assert torch.equal(one, made(teacher, plan="1")) and not torch.equal(every, made(teacher))


def test_a_callback_may_end_the_clip(pipe: CausalVideoPipeline) -> None:
    def end(owner, step, _, tensors):
        if step == 3:
            owner._interrupt = True
        return tensors

    ended = made(pipe, plan="3", callback_on_step_end=end)  # in the second chunk, after its first step
    assert ended.shape[1] == 4 and torch.equal(ended[:, :2], made(pipe, plan="3")[:, :2])
    assert made(pipe, plan="3").shape[1] == 6


def test_diffusers_callback_objects_name_their_tensors(pipe: CausalVideoPipeline) -> None:
    class Counting(PipelineCallback):
        tensor_inputs = ["prompt_embeds"]  # pyright: ignore[reportAssignmentType]
        calls = 0

        def callback_fn(self, pipeline, step_index, timesteps, callback_kwargs):
            assert list(callback_kwargs) == ["prompt_embeds"]
            Counting.calls += 1
            return callback_kwargs

    assert torch.equal(made(pipe, callback_on_step_end=Counting()), made(pipe)) and Counting.calls == 6


def test_a_callback_of_chunks_gets_what_a_stream_gives(pipe: CausalVideoPipeline) -> None:
    told = []
    whole = pipe(PROMPTS, seed=7, output_type="pt", callback_on_chunk_end=lambda owner, chunk: told.append(chunk))
    assert torch.equal(whole.frames, torch.cat([chunk.video for chunk in told], dim=1))
    assert torch.equal(whole.frames, torch.cat([chunk.video for chunk in pipe.stream(PROMPTS, seed=7)], dim=1))


def test_outputs_are_tuples_too(pipe: CausalVideoPipeline) -> None:
    out = pipe(PROMPTS[0], seed=7)
    assert len(out) == 1 and out[0] is out.frames is out["frames"] and out["seed"] == 7
    assert next(iter(out)) is out.frames and out.to_tuple() == tuple(out)
    (frames,) = pipe(PROMPTS[0], seed=7, return_dict=False)
    assert np.array_equal(frames, out.frames)
    with pytest.raises(IndexError):
        out[1]  # pyright: ignore[reportGeneralTypeIssues]


def test_what_a_notebook_shows_is_a_line(pipe: CausalVideoPipeline) -> None:
    out = pipe(PROMPTS, seed=7)
    assert repr(out) == "VideoOutput(2 clips of 21 frames, array (2, 21, 32, 32, 3); plan 2, seed 7)"
    chunks = list(pipe.stream(PROMPTS[0], "1", seed=7))
    assert repr(chunks[1]) == "ChunkVideo(1: frames 5 to 12, 32 x 32, 1 step)"
    with pipe.open(PROMPTS[0], "1", seed=7, window=4, sink=0) as session:
        assert repr(next(session)).startswith("ChunkVideo(0: frames 0 to 4")
        assert repr(session) == f"Session(chunk 1 comes next; {PROMPTS[0]!r}, plan 1, seed 7)"
    assert "closed" in repr(session) and len(repr(pipe.request(PROMPTS, seed=7))) < 1000


def test_the_bar_is_diffusers(model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipe = CausalVideoPipeline.from_pretrained(model_folder)
    capsys.readouterr()
    pipe.set_progress_bar_config(desc="steps", leave=True)
    made(pipe, plan="4,2,1")
    shown = capsys.readouterr().err
    assert "steps" in shown and "7/7" in shown
    pipe.set_progress_bar_config(disable=True)
    made(pipe, plan="4,2,1")
    assert not capsys.readouterr().err


def test_a_length_of_text_is_part_of_what_is_asked(pipe: CausalVideoPipeline) -> None:
    assert torch.equal(made(pipe, max_sequence_length=12), made(pipe))
    longer, _ = pipe.encode_prompt(PROMPTS, max_sequence_length=20)
    assert longer.shape[1] == 20 and longer[:, 12:].abs().max() == 0
    padded = made(pipe, max_sequence_length=20)
    assert torch.equal(made(pipe, None, prompt_embeds=longer), padded)
    assert not torch.allclose(padded, made(pipe), atol=1e-6)  # zeros are attended
    first, second = (pipe.request(PROMPTS, seed=7, max_sequence_length=length) for length in (20, 12))
    assert first != second and pipe.request(PROMPTS, seed=7) == pipe.request(PROMPTS, seed=7)
    with pytest.raises(NearstepError, match="7 tokens, 4 fit"):
        made(pipe, max_sequence_length=4)


NAN = torch.full((2, 6, 4, 4, 4), torch.nan)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(latents=torch.zeros(2, 6, 4, 4, 5)), r"latents of shape \(2, 6, 4, 4, 5\): .*\(2, 6, 4, 4, 4\)"),
        (dict(latents=NAN), "latents: NaN or infinity"),
        (dict(latents=torch.zeros(2, 6, 4, 4, 4, dtype=torch.long)), "latents is a tensor of torch.int64"),
        (dict(prompt_embeds=torch.zeros(2, 12, 16)), "a prompt .* or prompt_embeds; not both"),
        (dict(prompt=None), "a prompt .* or prompt_embeds; there is neither"),
        (dict(prompt=None, prompt_embeds=torch.zeros(2, 12, 15)), r"this network takes \[B, L, 16\]"),
        (dict(negative_prompt_embeds=torch.zeros(2, 12, 16)), "act through guidance"),
        (dict(negative_prompt_embeds=torch.zeros(1, 12, 16), guidance_scale=2), r"takes \[2, L, 16\]"),
        (dict(negative_prompt_embeds=torch.zeros(2, 12, 16), negative_prompt="a", guidance_scale=2), "not both"),
        (dict(guidance_scale=0), "from 1, which is none"),
        (dict(num_videos_per_prompt=0), "num_videos_per_prompt=0; give at least 1"),
        (dict(max_sequence_length=0), "max_sequence_length=0; give at least 1"),
        (dict(max_sequence_length=10**9), "at most 10000"),
        (dict(generator=[torch.Generator()]), "1 generators for 2 clips"),
        (dict(generator=[torch.Generator()] * 2, samples=[1, 2]), "leave seed and samples out"),
        (dict(callback_on_step_end_tensor_inputs=["prompt_embeds"]), "is about callback_on_step_end; give both"),
        (
            dict(callback_on_step_end=print, callback_on_step_end_tensor_inputs=["latent"]),
            "names 'latent': did you mean latents",
        ),
        (dict(num_inference_step=4), "argument 'num_inference_step'; did you mean num_inference_steps"),
        (dict(attention_kwargs={}), "argument 'attention_kwargs': a LoRA's strength"),
        (dict(guidance_scale_2=3.0), "argument 'guidance_scale_2': it belongs to"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-",
)
def test_what_cannot_be_done_is_refused_in_a_line(pipe: CausalVideoPipeline, options: dict, message: str) -> None:
    with pytest.raises(NearstepError, match=message) as caught:
        pipe(**{"prompt": PROMPTS, **options})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"latent": 1}, "returned 'latent': did you mean latents"),
        ({"latents": torch.zeros(1)}, r"returned latents as \(1,\)"),
        ({"latents": torch.full((2, 2, 4, 4, 4), torch.nan)}, "NaN"),
        ({"negative_prompt_embeds": torch.zeros(2, 12, 16)}, "without guidance there are none"),
        (3, "returned int"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-",
)
def test_what_a_callback_cannot_do_is_refused(pipe: CausalVideoPipeline, said: object, message: str) -> None:
    with pytest.raises(NearstepError, match=message):
        made(pipe, callback_on_step_end=lambda *_: said)


WRONG = """
import sys
import numpy as np, torch
from nearstep import CausalVideoPipeline, NearstepError
folder, pipe = sys.argv[1], CausalVideoPipeline.from_pretrained(sys.argv[1])
pipe.set_progress_bar_config(disable=True)
PROMPTS = ["a small red ball", "a large ball"]
def said(call, **options):
    try:
        call(**options)
    except NearstepError as error:
        print(error)
    else:
        print("done:", options)
first = pipe(PROMPTS, seed=np.int64(7), samples=np.arange(2), num_frames=np.int32(21), output_type="latent").frames
print(torch.equal(first, pipe(PROMPTS, seed=7, output_type="latent").frames))
for options in (
    dict(prompt=3), dict(prompt=[]), dict(prompt=[3]), dict(latents=np.zeros((2, 6, 4, 4, 4))),
    dict(guidance_scale="2"), dict(num_videos_per_prompt=1.5), dict(generator=[1, 2]), dict(generator=1),
    dict(callback_on_step_end=3),
    dict(num_frames=33.0), dict(plan=4), dict(plan=[4, 1, 1]), dict(samples=["a", "b"]), dict(samples=3),
    dict(seed=1.5), dict(height="48"), dict(negative_prompt=3, guidance_scale=2), dict(output_type=None),
):
    said(pipe, **{"prompt": PROMPTS, **options})
for options in (
    dict(name=None), dict(name=""), dict(name=3), dict(device=3), dict(device="nope"), dict(torch_dtype=3),
    dict(torch_dtype={"default": torch.float32}), dict(transformer=3), dict(vae_dtype="half"),
):
    said(CausalVideoPipeline.from_pretrained, **{"name": folder, **options})
"""


def test_what_is_of_another_type_is_refused_in_a_line(model_folder: Path) -> None:
    """In a process of its own, where annotations are not checked as the code runs."""
    command = [sys.executable, "-c", WRONG, str(model_folder)]
    ended = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert ended.returncode == 0, ended.stderr
    first, *lines = ended.stdout.splitlines()
    assert first == "True" and len(lines) == 27 and not [line for line in lines if line.startswith("done")]
