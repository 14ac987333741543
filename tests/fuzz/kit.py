"""What the cases damage: a tiny model, its clips, recordings and runs, made once."""

from __future__ import annotations

import json
import shutil
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from tests.fuzz.cases import command
from tests.fuzz.damage import Damage
from tests.tiny import PROMPT, make_model

GENERATE = ("--plan", "1", "--frames", "5", "--seed", "1", "-o", "made.png")
CHUNKS = 2


class Kit:
    """Materials in a folder; each is made when it is first asked for.

    Args:
        root: a scratch folder, which the cases run in, too.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.own = root / "kit"
        self.own.mkdir(parents=True, exist_ok=True)

    @cached_property
    def model(self) -> Path:
        """A model folder."""
        return make_model(self.own / "model")

    @cached_property
    def pipe(self) -> Any:
        """The model, loaded."""
        from nearstep.stream.pipeline import CausalVideoPipeline

        return CausalVideoPipeline.from_pretrained(self.model, device="cpu")

    @cached_property
    def picture(self) -> bytes:
        """What the model makes of the prompt: pixels of a contact sheet."""
        return self.generate(self.own)

    def generate(self, folder: Path, *options: object, model: Path | None = None) -> bytes:
        """The pixels of ``nearstep generate`` with options, made in ``folder``."""
        made = folder / "made.png"
        made.unlink(missing_ok=True)
        command("generate", PROMPT, "--model", model or self.model, *GENERATE[:-1], made, *options)
        return pixels(made)

    def copy_of(self, source: Path, folder: Path, *path: str) -> tuple[Path, Path]:
        """A copy of a folder inside of another, and the path of one of its files."""
        copy = folder / source.name
        shutil.copytree(source, copy)
        return copy, copy.joinpath(*path)

    @cached_property
    def _clip(self) -> Path:
        from nearstep.stream.output import write_video

        clip = torch.linspace(0, 1, 21).view(-1, 1, 1, 1).expand(-1, 3, 32, 32)
        return write_video(self.own / "clip.mp4", clip, fps=12)

    @cached_property
    def clip(self) -> Path:
        """A video of 21 frames."""
        return self._clip

    @cached_property
    def videos(self) -> Path:
        """A folder of three captioned videos."""
        folder = self.own / "videos"
        folder.mkdir()
        for number in range(3):
            shutil.copy(self.clip, folder / f"{number}.mp4")
            (folder / f"{number}.txt").write_text(PROMPT)
        return folder

    @cached_property
    def latents(self) -> Path:
        """Their latents, in shards of two."""
        folder = self.own / "latents"
        command("prepare", self.videos, folder, "--model", self.model, "--workers", 0, "--shard", 2)
        return folder

    @cached_property
    def take(self) -> Path:
        """The recording of a stream with a change of prompt."""
        video, take = self.own / "take.mp4", self.own / "take.jsonl"
        change = ("--at", 1, "a large blue football slides right")
        size = ("--chunks", CHUNKS, "--seed", 1, "--plan", 1)
        command("stream", PROMPT, "--model", self.model, *size, *change, "-o", video, "--log", take)
        return take

    @cached_property
    def text_cache(self) -> Path:
        """A folder of text features that holds the prompt's."""
        folder = self.own / "text"
        self.generate(self.own, "--text-cache", folder)
        return folder

    @cached_property
    def run(self) -> Path:
        """A training's folder, after two steps."""
        folder = self.own / "run"
        command(*self.training(folder, steps=2))
        return folder

    def training(self, folder: Path, *, steps: int, latents: Path | None = None) -> list[object]:
        """A command line that trains the model on its latents."""
        return [
            *("train", "playground.forcing", "--model", self.model, "--latents.folder", latents or self.latents),
            *("--latents.clips", "None", "--loop.no-tensorboard", "--loop.steps", steps, "--loop.save-every", 1),
            *("--loop.log-every", 1, "--loop.preview-every", 1000, "--loop.folder", folder, "--batch", 2),
            *("--chunk-frames", 2, "--network", "transformer", "--lesson-every", 0),
        ]  # fmt: skip

    @cached_property
    def lora(self) -> Path:
        """An adapter of one layer."""
        from safetensors.torch import save_file

        layer, torch_seed = "transformer.blocks.0.attn1.to_q", torch.Generator().manual_seed(3)
        down, up = (torch.randn(shape, generator=torch_seed) for shape in ((2, 32), (32, 2)))
        save_file({f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": up}, self.own / "lora.safetensors")
        return self.own / "lora.safetensors"

    @cached_property
    def with_lora(self) -> bytes:
        """The picture with the adapter."""
        return self.generate(self.own, "--lora", self.lora)

    @cached_property
    def evaluation(self) -> bytes:
        """Results as evaluate writes them, of two plans."""
        bounds = {"value": 0.5, "low": 0.25, "high": 0.75}
        sums = ("total", "quality", "semantic", "correct")
        plan: dict[str, Any] = {name: bounds for name in (*sums, "frechet")}
        plan |= {"calls": 5, "agreement": {"colour": bounds}, "figures": {"sharpness": bounds}, "course": [0.5, 0.25]}
        plan |= {"clips": {name: [0.5, 0.25] for name in sums}, "seconds_per_clip": 0.1}
        settings = {"name": "m", "captions": 2, "captions_seed": 7_000_000, "seed": 0, "world": "playground"}
        return json.dumps({"settings": settings, "plans": {"1": plan, "4": plan}}).encode()


def pixels(path: Path) -> bytes:
    """Size and pixels of a picture file."""
    from PIL import Image

    with Image.open(path) as image:
        return repr(image.size).encode() + image.tobytes()


def put(path: Path, damage: Damage) -> None:
    """Write a damaged file in the place of the whole one."""
    path.unlink(missing_ok=True)
    path.write_bytes(damage.data)
