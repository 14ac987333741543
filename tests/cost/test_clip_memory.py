"""What a clip takes, predicted without numbers, against what making one holds."""

from __future__ import annotations

import pytest
import torch
from meters import Meter

from nearstep.cli.main import main
from nearstep.cost.clip_memory import (
    CACHED,
    DECODING,
    LAYERS,
    MODELS,
    NETWORK,
    TEXT_AWAY,
    WHOLE,
    ClipSetup,
    clip_memory,
    with_chunks,
)
from nearstep.cost.live_bytes import LiveBytes
from nearstep.cost.sizes import Sizes
from nearstep.errors import NearstepError
from nearstep.nets.fp8_layers import find_fp8
from nearstep.nets.kernels import fused
from nearstep.stream.pipeline import CausalVideoPipeline


@pytest.fixture(scope="module")
def pipe(model_folder) -> CausalVideoPipeline:
    return CausalVideoPipeline.from_pretrained(model_folder)


def sizes(pipe: CausalVideoPipeline) -> Sizes:
    network = {key: value for key, value in pipe.transformer.config.items() if key[0] != "_"}
    clip = pipe.request("a ball").clip.shape
    return Sizes(
        student=network,
        teacher=network,
        clip=(clip.frames, *clip.frame),
        text_length=12,
        codec=pipe.vae.config,
        encoder=pipe.text_encoder.config.to_dict(),
    )


@pytest.mark.parametrize("guided", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_call_and_the_decoder_hold_what_is_predicted(pipe: CausalVideoPipeline, guided: bool) -> None:
    found = clip_memory(ClipSetup(sizes=sizes(pipe), dtype="float32", guided=guided))
    request = pipe.request("a ball", "1", seed=7, guidance_scale=2.0 if guided else 1.0)
    calls, decoding = Meter(), LiveBytes()  # what convolutions use inside themselves is no tensor
    with torch.no_grad():
        text, negative = pipe.features(request)
        with calls.phase(NETWORK):
            denoiser = pipe.bound(text, negative, request.guidance)
            latents = [chunk.latents for chunk in pipe._chunks(request, denoiser)]
        with decoding, decoding.phase(DECODING):
            stream = pipe.latent_stream()
            torch.cat([stream.decode(part) for part in latents], dim=1)
    assert found.work[NETWORK] == pytest.approx(calls.peaks[NETWORK], rel=0.05)
    assert found.work[DECODING] == pytest.approx(decoding.peaks[DECODING], rel=0.05)
    held = {
        name: sum(p.nbytes for p in part.parameters())
        for name, part in pipe.components.items()
        if hasattr(part, "parameters")
    }
    assert list(found.weights.values()) == [held["text_encoder"], held["transformer"], held["vae"]]


@pytest.mark.parametrize("how", ["weights", "products", "cache"])
def test_eight_bits_hold_what_is_predicted(model_folder, how: str) -> None:
    pipe = CausalVideoPipeline.from_pretrained(model_folder, fp8=how)
    found = clip_memory(ClipSetup(sizes=sizes(pipe), dtype="float32", fp8=find_fp8(how, None)))
    assert found.weights["network"] == sum(value.nbytes for value in pipe.transformer.state_dict().values())
    wide = clip_memory(ClipSetup(sizes=sizes(pipe), dtype="float32"))
    assert (found.block < wide.block) == (how != "cache")
    assert (found.work[NETWORK] < wide.work[NETWORK]) == (how == "cache")
    request, tensors, allocated = pipe.request("a ball", "1", seed=7), LiveBytes(), Meter()
    with torch.no_grad(), fused():
        text, negative = pipe.features(request)
        with tensors, tensors.phase(NETWORK), allocated.phase(NETWORK):
            list(pipe._chunks(request, pipe.bound(text, negative, request.guidance)))
    # What a CPU's scaled product uses inside itself is no tensor.
    seen = tensors if how == "products" else allocated
    assert found.work[NETWORK] == pytest.approx(seen.peaks[NETWORK], rel=0.05)


def test_what_is_away_is_not_counted(pipe: CausalVideoPipeline) -> None:
    small = sizes(pipe)
    found = clip_memory(ClipSetup(sizes=small)).arrangements
    assert found[WHOLE] > found[TEXT_AWAY] > found[CACHED] >= found[LAYERS] and found[MODELS] >= found[CACHED]
    near = clip_memory(ClipSetup(sizes=with_chunks(small, 2, 2)))
    assert near.work[NETWORK] < clip_memory(ClipSetup(sizes=small)).work[NETWORK]  # a window is a smaller cache
    with pytest.raises(NearstepError, match="6 latent frames are no whole number of chunks of 4"):
        with_chunks(small, 4, None)


def test_the_command_says_what_fits(model_folder, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan-memory", "generate", "--model", str(model_folder), "--memory", "1G"]) == 0
    said = capsys.readouterr().out
    assert said.count("fits") == 5 and "enable_model_cpu_offload" in said
    assert main(["plan-memory", "generate", "--memory", "much"]) == 2
