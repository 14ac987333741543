"""The pipeline's laws, on a tiny untrained model: streamed equals whole, and a clip depends on its own names alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from nearstep import CausalVideoPipeline, NearstepError

PROMPTS = ["a small red ball slides left", "the large blue football bounces on snow"]


@pytest.fixture(scope="module")
def pipe(model_folder: Path) -> CausalVideoPipeline:
    return CausalVideoPipeline.from_pretrained(model_folder)


@pytest.fixture(scope="module")
def teacher(model_folder: Path) -> CausalVideoPipeline:
    return CausalVideoPipeline.from_pretrained(model_folder, transformer="teacher")


@pytest.mark.parametrize("plan", ["1", "4,1x", "2"])
def test_streamed_equals_whole(pipe: CausalVideoPipeline, plan: str) -> None:
    whole = pipe(PROMPTS, plan, seed=7, output_type="pt").frames
    chunks = list(pipe.stream(PROMPTS, plan, seed=7))
    assert torch.equal(torch.cat([chunk.video for chunk in chunks], dim=1), whole)
    assert [chunk.start for chunk in chunks] == [0, 5, 13]
    assert whole.shape == (2, 21, 3, 32, 32)
    latents = pipe(PROMPTS, plan, seed=7, output_type="latent").frames
    assert torch.equal(torch.cat([chunk.latents for chunk in chunks], dim=1), latents)
    assert torch.equal(pipe.codec.decode(latents), whole)


def test_a_clip_depends_on_its_own_names(pipe: CausalVideoPipeline) -> None:
    together = pipe(PROMPTS, seed=7, output_type="latent").frames
    alone = pipe(PROMPTS[1], seed=7, samples=[1], output_type="latent").frames
    torch.testing.assert_close(alone[0], together[1], atol=1e-5, rtol=1e-5)
    others = (dict(seed=8, samples=[1]), dict(seed=7, samples=[0]), dict(seed=7, samples=[1], plan="3"))
    for names in others:
        other = pipe(PROMPTS[1], output_type="latent", **names).frames
        assert not torch.allclose(alone, other, atol=1e-2)


def test_output_types_are_diffusers(pipe: CausalVideoPipeline) -> None:
    made = {kind: pipe(PROMPTS, seed=1, output_type=kind).frames for kind in ("pt", "np", "pil")}
    assert made["np"].shape == (2, 21, 32, 32, 3) and made["np"].dtype == np.float32
    assert len(made["pil"]) == 2 and len(made["pil"][0]) == 21 and made["pil"][0][0].size == (32, 32)
    assert np.array_equal(made["np"], made["pt"].permute(0, 1, 3, 4, 2).numpy())
    assert np.abs(np.asarray(made["pil"][1][20]) / 255 - made["np"][1, 20]).max() <= 0.5 / 255 + 1e-6


def test_a_teacher_runs_as_one_guided_chunk(teacher: CausalVideoPipeline) -> None:
    out = teacher(PROMPTS[0], seed=3)
    assert (out.plan.lengths, out.plan.steps, out.plan.commits, out.request.guidance) == ((6,), 3, 0, 2.0)
    unguided = teacher(PROMPTS[0], seed=3, guidance_scale=1)
    assert not np.allclose(out.frames, unguided.frames)
    assert teacher(PROMPTS[0], num_inference_steps=5, seed=3).plan.steps == 5


def test_guidance_of_one_is_the_conditional_prediction(pipe: CausalVideoPipeline) -> None:
    plain = pipe(PROMPTS[0], seed=3, output_type="latent").frames
    almost = pipe(PROMPTS[0], seed=3, guidance_scale=1 + 1e-7, negative_prompt="a", output_type="latent").frames
    torch.testing.assert_close(plain, almost, atol=1e-4, rtol=1e-4)


def test_seeds_and_generators(pipe: CausalVideoPipeline) -> None:
    generator = torch.Generator().manual_seed(5)
    first, second = (pipe(PROMPTS[0], generator=generator, output_type="latent") for _ in range(2))
    again = pipe(PROMPTS[0], generator=torch.Generator().manual_seed(5), output_type="latent")
    assert torch.equal(first.frames, again.frames) and first.seed != second.seed
    assert torch.equal(pipe(PROMPTS[0], seed=first.seed, output_type="latent").frames, first.frames)
    assert pipe.request(PROMPTS[0]).seed != pipe.request(PROMPTS[0]).seed
    with pytest.raises(NearstepError, match="not both"):
        pipe(PROMPTS[0], seed=1, generator=generator)


def test_global_randomness_is_neither_read_nor_moved(pipe: CausalVideoPipeline) -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = pipe(PROMPTS[0], seed=7, output_type="latent").frames
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(2)
    assert torch.equal(first, pipe(PROMPTS[0], seed=7, output_type="latent").frames)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(plan="4,0x"), "at least 1 step"),
        (dict(plan="four"), "does not parse"),
        (dict(plan="adaptive"), "is for streams alone"),
        (dict(plan="fps:16"), "is for streams alone"),
        (dict(plan="4,2"), "2 chunks and the clip has 3"),
        (dict(plan="4", num_inference_steps=4), "not both"),
        (dict(num_frames=20), "4n\\+1"),
        (dict(num_frames=9), "no whole number of chunks of 2"),
        (dict(num_frames=8 * 2000 - 3), "positions for 1024"),
        (dict(height=40), "height=40 must be a multiple of 16"),
        (dict(width=0), "width=0 must be a multiple of 16"),
        (dict(samples=[1, 2]), "2 samples for 1 prompts"),
        (dict(negative_prompt=["a", "a"]), "2 negative prompts for 1"),
        (dict(negative_prompt="ugly"), "'ugly'"),
        (dict(output_type="mp4"), "use one of np, pt"),
    ],
    ids=str,
)
def test_bad_options_are_one_line_and_run_nothing(
    pipe: CausalVideoPipeline, options: dict, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(pipe), "denoiser", lambda *_: pytest.fail("a network was run"))
    with pytest.raises(NearstepError, match=message) as caught:
        pipe(PROMPTS[0], **options)
    assert "\n" not in str(caught.value)


def test_a_text_is_tokenised_and_encoded_once(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = CausalVideoPipeline.from_pretrained(model_folder)
    encoded, tokenised = [], []
    pipe.text_encoder.register_forward_hook(lambda *_: encoded.append(1))
    tokenise = type(pipe.tokenizer).__call__

    def noted(self, texts, **options):
        tokenised.extend(texts)
        return tokenise(self, texts, **options)

    monkeypatch.setattr(type(pipe.tokenizer), "__call__", noted)
    many = pipe([PROMPTS[0]] * 3, "1", seed=7, output_type="latent").frames
    assert (len(encoded), tokenised) == (1, [PROMPTS[0], ""])
    alone = pipe(PROMPTS[0], "1", seed=7, samples=[2], output_type="latent").frames
    torch.testing.assert_close(many[2:], alone, atol=1e-5, rtol=1e-5)


def test_bad_prompts(pipe: CausalVideoPipeline) -> None:
    with pytest.raises(NearstepError, match="'reed': did you mean red"):
        pipe.stream("a reed ball")  # when asked, not when the first chunk is
    with pytest.raises(NearstepError, match="no prompt"):
        pipe([])


def test_saved_and_loaded_makes_the_same(pipe: CausalVideoPipeline, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path)
    loaded = CausalVideoPipeline.from_pretrained(tmp_path)
    assert loaded.settings == pipe.settings
    first, second = (p(PROMPTS, seed=7, output_type="latent").frames for p in (pipe, loaded))
    assert torch.equal(first, second)


def test_dtype_is_the_networks(model_folder: Path) -> None:
    half = CausalVideoPipeline.from_pretrained(model_folder, torch_dtype=torch.bfloat16)
    assert half.text_encoder.dtype == torch.bfloat16 and half.vae.dtype == torch.float32
    full = CausalVideoPipeline.from_pretrained(model_folder)
    first, second = (p(PROMPTS[0], "1", seed=7, output_type="latent").frames for p in (half, full))
    assert first.dtype == torch.float32
    torch.testing.assert_close(first, second, atol=0.1, rtol=0.1)


def test_lora_goes_in_and_out_as_in_diffusers(model_folder: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    pipe, other = (CausalVideoPipeline.from_pretrained(model_folder) for _ in range(2))

    def made(by: CausalVideoPipeline) -> torch.Tensor:
        return by(PROMPTS[0], "1", seed=1, output_type="latent").frames

    plain = made(pipe)
    config = peft.LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_v"], init_lora_weights=False)
    pipe.transformer.add_adapter(config)
    adapted = made(pipe)
    assert not torch.allclose(adapted, plain)
    layers = peft.get_peft_model_state_dict(pipe.transformer)
    pipe.save_lora_weights(tmp_path, transformer_lora_layers=layers)
    other.load_lora_weights(tmp_path)
    torch.testing.assert_close(made(other), adapted)
    other.unload_lora_weights()
    assert torch.equal(made(other), plain)
