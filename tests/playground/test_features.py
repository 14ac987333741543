"""The feature network: small, trained repeatably, and its distance grows with what makes clips worse."""

from __future__ import annotations

import json

import pytest
import torch

from nearstep.evaluate.frechet import frechet
from nearstep.playground.features import CLASSES, FeatureNet, feature_net
from nearstep.playground.train_features import FeaturesConfig
from nearstep.playground.world import SIZE
from nearstep.rng import generator


def test_the_network_fits_its_size_and_names_everything():
    net = FeatureNet()
    assert sum(weight.numel() for weight in net.state_dict().values()) * 4 < 2_000_000
    raw, names = net(torch.zeros(2, 9, 3, SIZE, SIZE))
    assert names.shape == (2, sum(map(len, CLASSES.values())))
    assert raw.shape[1] == len(net.mean)


@pytest.fixture(scope="module")
def sets(draw):
    first, second = draw(0, 64), draw(64, 64)
    return first, second, feature_net().features(first.video)


def test_blur_and_noise_add_to_the_distance(sets, blur):
    first, _, real = sets
    net = feature_net()
    blurred = [first.video, blur(first.video), blur(blur(blur(first.video)))]
    noise = torch.randn(first.video.shape, generator=generator("frechet noise"))
    noisy = [first.video + level * noise for level in (0.0, 0.05, 0.15)]
    for course in (blurred, noisy):
        far = [frechet(real, net.features(video)) for video in course]
        assert far[0] == pytest.approx(0.0, abs=1e-6)
        assert far[0] < far[1] < far[2]


def test_real_clips_are_closer_to_real_clips_than_broken_ones(sets, blur):
    first, second, real = sets
    net = feature_net()
    other = frechet(real, net.features(second.video))
    assert other < frechet(real, net.features(first.video[:, :1].expand_as(first.video)))
    assert other < frechet(real, net.features(torch.rand(second.video.shape, generator=generator("frechet rand"))))


def test_training_the_features_is_repeatable(tmp_path):
    paths = [
        FeaturesConfig(path=tmp_path / name / "f.safetensors", clips=16, rounds=2, batch=8, held_out=8).run()
        for name in ("a", "b")
    ]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    accuracy = json.loads(paths[0].with_suffix(".json").read_text())
    assert set(accuracy) == {"shape", "colour", "size", "motion", "direction", "speed", "background"}
    assert all(torch.tensor(value).isfinite() for value in accuracy.values())
