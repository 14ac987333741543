"""The codec's stage at the smallest size: it resumes, and its decoder learns on by itself."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_runs import assert_equal, cut, loop, tiny_codec, weights
from untrained import CODEC

from nearstep.errors import NearstepError
from nearstep.nets.codec import VideoCodec
from nearstep.playground import PLAYGROUND
from nearstep.train.phases import Phase
from nearstep.train.stages.codec import CodecStage, difference_error, halved

pytestmark = pytest.mark.usefixtures("few_clips")


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_codec(tmp_path_factory.mktemp("codec"), 2).run()


def test_codec_resumes_exactly(tmp_path: Path):
    whole = tiny_codec(tmp_path / "whole").run()
    cut(tiny_codec(tmp_path / "cut"))
    assert_equal(whole, tiny_codec(tmp_path / "cut").run())
    config = json.loads((whole / "vae" / "config.json").read_text())
    assert all(deviation > 0 for deviation in config["latents_std"])


def test_a_decoder_learns_on_by_itself(codec: Path, tmp_path: Path):
    config = replace(tiny_codec(tmp_path / "decoder"), start=codec / "vae")
    whole, before = config.run(), weights(codec)
    cut(replace(config, loop=loop(tmp_path / "cut")))
    assert_equal(whole, replace(config, loop=loop(tmp_path / "cut")).run())
    for name, value in weights(whole).items():
        encodes = name.split("/")[1].split(".")[0] in ("encoder", "quant_conv")
        assert torch.equal(value, before[name]) == encodes, name
    ours, theirs = (json.loads((each / "vae" / "config.json").read_text()) for each in (whole, codec))
    assert ours["latents_std"] == theirs["latents_std"] and ours["latents_mean"] == theirs["latents_mean"]
    clips = PLAYGROUND.clips(0, range(2), frames=5)
    latents = [VideoCodec.from_pretrained(each / "vae").encode(clips) for each in (whole, codec)]
    assert torch.equal(*latents)


def test_a_decoder_of_another_width_begins_from_nothing(codec: Path, tmp_path: Path):
    wider = replace(CODEC, decoder_base_dim=CODEC.decoder_base_dim + 4)
    made = weights(replace(tiny_codec(tmp_path / "wider"), start=codec / "vae", size=wider).run())
    before = weights(codec)
    assert all(torch.equal(value, before[name]) for name, value in made.items() if "/encoder." in name)
    assert made["vae/decoder.conv_out.weight"].shape != before["vae/decoder.conv_out.weight"].shape
    other = replace(CODEC, base_dim=CODEC.base_dim + 4)
    with pytest.raises(NearstepError, match=r"has an encoder of another size \(encoder\."):
        replace(tiny_codec(tmp_path / "other"), start=codec / "vae", size=other).run()
    replace(CODEC, num_res_blocks=CODEC.num_res_blocks + 1).build().save_pretrained(tmp_path / "deeper")
    with pytest.raises(NearstepError, match=r"has an encoder of another size \(encoder\."):
        replace(tiny_codec(tmp_path / "shallower"), start=tmp_path / "deeper").run()
    with pytest.raises(NearstepError, match=r"nothing holds no codec that can be read"):
        replace(tiny_codec(tmp_path / "none"), start=tmp_path / "nothing").run()


def test_what_halved_latents_show_is_part_of_the_loss(tmp_path: Path):
    config = replace(tiny_codec(tmp_path), phases=(Phase(4, 1, 4, 32),))
    plain, smooth = (CodecStage(replace(config, coarse=weight)) for weight in (0.0, 4.0))
    before, after = (
        {name: float(value.detach()) for name, value in stage.step(0).items()} for stage in (plain, smooth)
    )
    assert "coarse" not in before and after["coarse"] > 0
    assert before["loss"] + 4 * after["coarse"] == pytest.approx(after["loss"])
    # It reaches the encoder: what was the same before the step has learnt something else.
    ours, theirs = (dict(stage.codec.vae.encoder.named_parameters()) for stage in (plain, smooth))
    assert any(not torch.equal(ours[name], theirs[name]) for name in ours)


def test_halves_are_means_of_four_and_odd_sides_are_refused(tmp_path: Path):
    x = torch.arange(16.0).view(1, 1, 1, 4, 4)
    assert halved(x).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    config = tiny_codec(tmp_path)
    with pytest.raises(NearstepError, match=r"a side of 24 pixels has an odd number.* a multiple of 16, or coarse=0"):
        replace(config, coarse=0.5, phases=(Phase(4, 1, 2, 24),))
    with pytest.raises(NearstepError, match=r"coarse"):
        replace(config, coarse=-1.0)


def test_difference_error_sees_edges_and_not_brightness():
    video = torch.rand(1, 3, 3, 8, 8)
    assert float(difference_error(video + 0.2, video)) < 1e-6
    assert float(difference_error(video.flip(-1), video)) > 0.1
