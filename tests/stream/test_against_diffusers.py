"""The whole chain against an oracle: our teacher's clip is what diffusers' WanPipeline makes of the same noise."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
from diffusers.schedulers import scheduling_flow_match_euler_discrete
from transformers import AutoTokenizer, UMT5EncoderModel

from nearstep import CausalVideoPipeline, rng

STEPS = 6  # more than the grid has, so that times are even


class EvenSteps(FlowMatchEulerDiscreteScheduler):
    """Theirs, at our times: 1 - k/n before the shift."""

    def set_timesteps(self, num_inference_steps: int, device: Any = None, **_: Any) -> None:
        super().set_timesteps(sigmas=[1 - k / num_inference_steps for k in range(num_inference_steps)], device=device)


@pytest.mark.parametrize("renoise", ["implied", "fresh"])
def test_a_teacher_is_wan_pipeline(model_folder: Path, renoise: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = CausalVideoPipeline.from_pretrained(model_folder, transformer="teacher")
    ours.settings = replace(ours.settings, teacher_renoise=renoise)
    made = ours("a small red ball", str(STEPS), negative_prompt="snow", guidance_scale=3.0, seed=7, samples=[4])

    theirs = WanPipeline(
        tokenizer=AutoTokenizer.from_pretrained(model_folder / "tokenizer"),
        text_encoder=UMT5EncoderModel.from_pretrained(model_folder / "text_encoder"),
        vae=AutoencoderKLWan.from_pretrained(model_folder / "vae"),
        scheduler=EvenSteps(shift=5.0, stochastic_sampling=renoise == "fresh"),
        transformer=WanTransformer3DModel.from_pretrained(model_folder / "teacher"),
    )
    theirs.set_progress_bar_config(disable=True)
    shape = made.request.clip.shape
    steps = count()

    def draw(*_: Any, **__: Any) -> torch.Tensor:
        return rng.noise((shape.frames, *shape.frame), seed=7, samples=[4], chunk=0, step=next(steps)).transpose(1, 2)

    noise = draw()
    monkeypatch.setattr(scheduling_flow_match_euler_discrete, "randn_tensor", draw)  # what it renoises with
    expected = theirs(
        "a small red ball",
        negative_prompt="snow",
        guidance_scale=3.0,
        num_inference_steps=STEPS,
        num_frames=21,
        height=32,
        width=32,
        latents=noise,
        max_sequence_length=12,
        output_type="pt",
    ).frames
    torch.testing.assert_close(
        torch.from_numpy(made.frames).permute(0, 1, 4, 2, 3), expected, atol=1e-3, rtol=0
    )  # a quarter of an 8-bit step; their time sinusoid is float32
