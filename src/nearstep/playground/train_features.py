"""Trains the feature network of the Fréchet distance on real clips.

A plain loop of two minutes on one core: nothing to resume, nothing to share with the stages of train/.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from nearstep import rng
from nearstep.files import write_json
from nearstep.playground.features import CLASSES, FeatureNet, split_names
from nearstep.playground.world import FRAMES, Scene, render, sample_scenes
from nearstep.precision import narrowed
from nearstep.shapes import TEMPORAL_STRIDE

_DRAWN = 32
"""Clips drawn at once."""


@dataclass(frozen=True, kw_only=True)
class FeaturesConfig:
    """A training of the feature network."""

    path: Path = Path("runs/features/features.safetensors")
    clips: int = 4096
    """Real clips, drawn once and kept as bytes (0.1 MB each)."""
    rounds: int = 6
    """How often each clip is trained on."""
    batch: int = 16
    lr: float = 3e-3
    warmup: float = 0.05
    """Part of the steps over which the rate rises; it then falls to 0 along a half cosine by the last step."""
    weight_decay: float = 0.01
    noise: float = 0.02
    """Largest standard deviation of the noise on the clips, so that a codec's traces do not confuse the names."""
    seed: int = 7_500_000
    held_out: int = 512
    """Clips for the accuracy and for the scale of the features."""

    def run(self) -> Path:
        """Train; writes the weights and, beside them, the accuracy of each attribute."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(rng.key("feature weights", self.seed))
            net = FeatureNet()
        scenes = sample_scenes(self.seed, range(self.clips))
        video = torch.cat([to_bytes(draw_sparsely(part)) for part in _parts(scenes, _DRAWN)])
        right = labels(scenes)
        steps = self.rounds * self.clips // self.batch
        optimizer = torch.optim.AdamW(net.parameters(), lr=self.lr, weight_decay=self.weight_decay)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, self.lr, total_steps=steps, pct_start=self.warmup, cycle_momentum=False
        )
        for step in range(steps):
            draw = rng.generator("feature batch", self.seed, step)
            rows = torch.randint(self.clips, (self.batch,), generator=draw)
            with narrowed("cpu"):
                names = net(self._worn(video[rows], draw))[1].float()
            loss = naming_loss(names, {name: values[rows] for name, values in right.items()})
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0, error_if_nonfinite=True)
            optimizer.step()
            schedule.step()
        accuracy = self._finish(net.eval())
        self.path.parent.mkdir(parents=True, exist_ok=True)
        save_file(net.state_dict(), self.path)
        write_json(self.path.with_suffix(".json"), accuracy, indent=1)
        return self.path

    def _worn(self, video: Tensor, draw: torch.Generator) -> Tensor:
        level = self.noise * torch.rand(len(video), 1, 1, 1, 1, generator=draw)
        return video / 255 + level * torch.randn(video.shape, generator=draw)

    @torch.no_grad()
    def _finish(self, net: FeatureNet) -> dict[str, float]:
        # Accuracy on clips never trained on, and the features' mean and deviation there.
        scenes = sample_scenes(self.seed, range(self.clips, self.clips + self.held_out))
        raw, logits = map(torch.cat, zip(*(net(draw_sparsely(part)) for part in _parts(scenes, _DRAWN)), strict=True))
        net.mean.copy_(raw.mean(dim=0))
        net.deviation.copy_(raw.std(dim=0))
        right = labels(scenes)
        return {
            name: float((part.argmax(1) == right[name]).float().mean()) for name, part in split_names(logits).items()
        }


def _parts(scenes: Sequence[Scene], size: int) -> list[Sequence[Scene]]:
    return [scenes[first : first + size] for first in range(0, len(scenes), size)]


def to_bytes(video: Tensor) -> Tensor:
    """Values in [0, 1] as bytes."""
    return (video * 255).round().to(torch.uint8)


def draw_sparsely(scenes: Sequence[Scene]) -> Tensor:
    """Only the frames the network looks at, [B, T', 3, SIZE, SIZE]."""
    return torch.cat([render(scenes, frames=1, first=first) for first in range(0, FRAMES, TEMPORAL_STRIDE)], dim=1)


def labels(scenes: Sequence[Scene]) -> dict[str, Tensor]:
    """Attribute -> index into CLASSES, [B]."""
    return {
        name: torch.tensor([values.index(scene.attributes[name]) for scene in scenes])
        for name, values in CLASSES.items()
    }


def naming_loss(logits: Tensor, right: dict[str, Tensor]) -> Tensor:
    """Cross entropy summed over the attributes, mean over clips."""
    return torch.stack([F.cross_entropy(part, right[name]) for name, part in split_names(logits).items()]).sum()
