"""A graft adds what a network learnt, and the student that comes of it streams with that network's window."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nearstep.errors import NearstepError
from nearstep.nets.transformer import VideoTransformer
from nearstep.train.stages.graft import GraftConfig, grafted

WEIGHTS = "diffusion_pytorch_model.safetensors"


def test_a_graft_adds_what_was_learnt():
    student, before, after = ({"w": torch.tensor([value])} for value in (5.0, 1.0, 4.0))
    assert grafted(student, before, before, 1.0) == student
    assert grafted(before, before, after, 1.0) == after
    assert grafted(student, before, after, 0.5)["w"].item() == 6.5
    with pytest.raises(NearstepError, match=r"w differs \(student \(1,\), before \(1,\), after \(2,\)\)"):
        grafted(student, before, {"w": torch.zeros(2)}, 1.0)
    with pytest.raises(NearstepError, match=r"v differs \(student None, before \(1,\), after None\)"):
        grafted(student, {**before, "v": torch.zeros(1)}, after, 1.0)


@pytest.mark.usefixtures("few_clips")
def test_a_grafted_student_streams_with_the_window_of_what_it_learnt_from(model, tmp_path: Path):
    from nearstep import CausalVideoPipeline

    long = VideoTransformer.from_pretrained(model.folder / "transformer", torch_dtype=torch.float32)
    long.register_to_config(window_frames=6)
    with torch.no_grad():
        long.proj_out.weight += 1
    long.save_pretrained(tmp_path / "long")
    config = GraftConfig(
        folder=tmp_path / "run", model=model.folder, after=tmp_path / "long", before="transformer", weight=2.0
    )
    made = config.run()
    was, now = (load_file(folder / "transformer" / WEIGHTS) for folder in (model.folder, made))
    assert torch.equal(now["proj_out.bias"], was["proj_out.bias"])
    torch.testing.assert_close(now["proj_out.weight"].float(), was["proj_out.weight"].float() + 2, rtol=0, atol=0.02)
    assert json.loads((made / "transformer" / "config.json").read_text())["window_frames"] == 6
    with CausalVideoPipeline.from_pretrained(made).open("a red ball slides left", "1", seed=0) as session:
        assert session.recording.opening.window == 6
    with pytest.raises(NearstepError, match="no network at"):
        replace(config, after=tmp_path / "none").run()
