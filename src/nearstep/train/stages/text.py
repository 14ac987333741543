"""The text encoder, before the teacher: two wordings of one clip say the same.

A denoiser learns what a caption says last of all: places fill a frame and are learnt at once, what stands in them is a
tenth of the loss, and the word that names it is one of thirty tokens whose features mean nothing yet. So the encoder
first learns by itself, in minutes: of many captions it is to find the other wording of each (InfoNCE, van den Oord et
al. 2018, on the mean of a caption's features). What a caption says is then spread over all of its tokens, and attention
that has learnt nothing yet, a mean, already reads it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from transformers import UMT5Config, UMT5EncoderModel

from nearstep import rng
from nearstep.errors import NearstepError, first_line
from nearstep.nets.text import PromptEncoder, build_tokenizer
from nearstep.protocols import World
from nearstep.ranges import check_count, check_number
from nearstep.train.checkpoint import TrainState
from nearstep.train.loop import LoopConfig, run
from nearstep.train.optim import OptimConfig, Optimizer
from nearstep.train.parallel import ranks
from nearstep.train.preview import write_grid
from nearstep.train.recipe import recipe_of
from nearstep.train.stages.shared import check_sizes

_SHOWN, _SIDE = 32, 6


@dataclass(frozen=True, kw_only=True)
class TextSize:
    """UMT5's own names; the vocabulary follows from the world."""

    d_model: int
    d_kv: int
    d_ff: int
    num_heads: int
    num_layers: int
    length: int
    """Text tokens a caption is padded to."""

    def build(self, vocabulary: Sequence[str]) -> PromptEncoder:
        """The untrained encoder with a tokenizer of these words."""
        sizes = asdict(self)
        length = sizes.pop("length")
        tokenizer = build_tokenizer(vocabulary, length=length)
        config = UMT5Config(vocab_size=len(tokenizer), dropout_rate=0.0, **sizes)
        return PromptEncoder(tokenizer, UMT5EncoderModel(config))


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """A run of the text encoder."""

    loop: LoopConfig
    optim: OptimConfig
    text: TextSize
    world: World
    """What words its clips."""
    batch: int = 256
    """Captions of an update, among which each is to find its other wording."""
    temperature: float = 0.07
    """Of the cosines between captions."""
    seed: int = 0

    def __post_init__(self) -> None:
        check_count("batch", self.batch, least=2, most=10**6)
        check_number("temperature", self.temperature, above=0)

    def run(self) -> Path:
        """Train, or go on; returns the folder with ``text_encoder/`` and ``tokenizer/``."""
        return run(lambda: TextStage(self), self.loop, recipe_of(self))


class TextStage:
    """The text encoder's step, preview and export; of several processes, each does the same."""

    def __init__(self, config: TextConfig) -> None:
        self.config, self.here = config, ranks()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(rng.key("text weights", config.seed))
            self.text = config.text.build(config.world.vocabulary()).to(self.here.device)
        self.optimizer = Optimizer([self.text], config.optim, config.loop.steps)
        self.state = TrainState({"text": self.text, "optimizer": self.optimizer})

    def step(self, index: int) -> dict[str, Tensor]:
        """Make one update, on captions of clips that no other step has."""
        config = self.config
        clips = range(index * config.batch, (index + 1) * config.batch)
        one, other = (self._meanings(config.seed, clips, 2 * index + wording) for wording in (1, 2))
        scores = one @ other.mT / config.temperature
        own = torch.arange(len(scores), device=scores.device)
        loss = 0.5 * (F.cross_entropy(scores, own) + F.cross_entropy(scores.mT, own))
        found = (scores.argmax(dim=1) == own).float().mean()
        return {"loss": loss.detach(), "found": found, **self.optimizer.step(loss, index)}

    def _meanings(self, seed: int, clips: range, wording: int) -> Float[Tensor, "B D"]:
        return meanings(self.text, self.config.world.prompts(seed, clips, wording=wording))

    @torch.no_grad()
    def preview(self, path: Path) -> None:
        """Cosines between two wordings of some clips, one down and one across: a bright diagonal."""
        one, other = (self._meanings(self.config.seed - 1, range(_SHOWN), wording) for wording in (1, 2))
        if self.here.main:
            cosines = (one @ other.mT).clamp(0, 1).cpu()
            picture = cosines.repeat_interleave(_SIDE, 0).repeat_interleave(_SIDE, 1)
            write_grid(picture.expand(1, 1, 3, -1, -1), path)

    def export(self, folder: Path) -> None:
        """Write ``text_encoder/`` and ``tokenizer/``."""
        if self.here.main:
            self.text.encoder.save_pretrained(folder / "text_encoder")
            self.text.tokenizer.save_pretrained(folder / "tokenizer")


def meanings(text: PromptEncoder, captions: Sequence[str]) -> Float[Tensor, "B D"]:
    """What captions say, each a vector of length 1: the mean of its features."""
    tokens = text.tokens(captions)
    features = text(captions, tokens)
    return F.normalize(features.sum(dim=1) / tokens.mask.sum(dim=1, keepdim=True).to(features), dim=-1)


def take_text(text: PromptEncoder, folder: Path) -> None:
    """Give a text encoder the weights of the one in ``folder``.

    Raises:
        NearstepError: if there is none, it is of another size, or reads other words.
    """
    if not (folder / "text_encoder").is_dir():
        raise NearstepError(
            f"there is no text encoder in {folder}; run the stage before this one first, or name another"
        )
    try:
        own = PromptEncoder.from_pretrained(folder, dtype=torch.float32)
    except Exception as error:  # of transformers, anything
        raise NearstepError(f"{folder} holds no text encoder that can be read: {first_line(error)}") from error
    if own.vocabulary() != text.vocabulary():
        raise NearstepError(f"the text encoder in {folder} reads other words than the world of the clips; name another")
    check_sizes(own.state_dict(), text.state_dict(), f"{folder} has a text encoder")
    text.load_state_dict(own.state_dict())
