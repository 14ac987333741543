"""Prompt features kept on disk, so that a large text encoder is loaded only for prompts that are not there.

UMT5-xxl weighs 11 GB in bfloat16; what it makes of a prompt, four megabytes at most. An entry is a safetensors file
named by a hash of (encoder, cleaned prompt, text length) and holds the features without their zero padding, in the type
they were computed in. Each prompt is encoded alone and without autocast, so an entry does not depend on who asked for
it. Entries appear whole or not at all, and equal names hold equal features, so any number of processes may share a
folder.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedTokenizerFast, UMT5EncoderModel

from nearstep.contents import parts_name
from nearstep.errors import NearstepError
from nearstep.files import replacing
from nearstep.nets.devices import device_of
from nearstep.nets.text import PromptEncoder, Tokens, cleaned, text_length, tokens

_FEATURES, _DIGEST = "features", "digest"


class CachedPromptEncoder:
    """Used like a PromptEncoder; asks the network only for prompts that the folder lacks.

    Args:
        folder: of the entries; made if its parent is there.
        source: names the encoder (:func:`encoder_name`); entries of others are not touched.
        tokenizer: the encoder's.
        load: the encoder, or loads it; called once at most, when a prompt is missing.
        length: as for PromptEncoder.
        device: where features are wanted.

    Raises:
        NearstepError: if the folder is none and cannot be made.
    """

    def __init__(
        self,
        folder: Path,
        source: str,
        tokenizer: PreTrainedTokenizerFast,
        load: Callable[[], UMT5EncoderModel],
        length: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        check_cache_folder(folder)
        self.folder, self.source = folder, source
        self.tokenizer = tokenizer
        self.length = length or text_length(tokenizer)
        self.device = device
        self._load = load
        self._encoder: UMT5EncoderModel | None = None

    @property
    def encoder(self) -> UMT5EncoderModel:
        """The network; loaded now if it was not."""
        if self._encoder is None:
            self._encoder = self._load()
        return self._encoder

    def tokens(self, prompts: Sequence[str]) -> Tokens:
        """As PromptEncoder.tokens."""
        return tokens(self.tokenizer, prompts, self.length)

    def __call__(self, prompts: Sequence[str], tokens: Tokens | None = None) -> Tensor:
        """``prompts`` -> features [B, L, D] on the device, without grad; arguments and errors are PromptEncoder's."""
        tokens = tokens or self.tokens(prompts)
        features: dict[str, Tensor] = {}
        for row, prompt in enumerate(map(cleaned, prompts)):
            if prompt not in features:
                features[prompt] = self._features(prompt, tokens.rows([row]))
        rows = [features[cleaned(prompt)] for prompt in prompts]
        return torch.stack([pad(row, (0, 0, 0, self.length - len(row))) for row in rows]).to(self.device)

    def path(self, prompt: str) -> Path:
        """The entry of a prompt, there or not."""
        name = hashlib.sha256(repr((self.source, cleaned(prompt), self.length)).encode()).hexdigest()[:32]
        return self.folder / name[:2] / f"{name}.safetensors"

    def _features(self, prompt: str, tokens: Tokens) -> Tensor:
        """[tokens, D], from the folder or from the network, which then fills the folder."""
        path, count = self.path(prompt), int(tokens.mask.sum())
        if path.is_symlink():
            warnings.warn(f"{path} is a link, which is not followed; the entry is made again", stacklevel=2)
            path.unlink()
        if path.exists():
            try:
                return _read(path, count)
            except (SafetensorError, OSError, ValueError) as error:
                warnings.warn(f"{path} is damaged ({error}); it is made again", stacklevel=2)
        encoder = self.encoder
        with torch.no_grad(), torch.autocast(device_of(encoder).type, enabled=False):
            features = (
                PromptEncoder(self.tokenizer, encoder, self.length)([prompt], tokens)[0, :count].cpu().contiguous()
            )
        if not features.isfinite().all():
            raise NearstepError(
                f"the text encoder makes NaN or infinity of {prompt[:60]!r}; its weights are not finite"
            )
        with replacing(path) as part:
            save_file(
                {_FEATURES: features}, part, {"prompt": prompt, "encoder": self.source, _DIGEST: _digest(features)}
            )
        return features


def encoder_name(text_encoder: Path, tokenizer: Path, dtype: torch.dtype | None) -> str:
    """Names what a text encoder computes: its configuration, its weights, its tokenizer and the type it runs in.

    Args:
        text_encoder: the component's folder.
        tokenizer: the tokenizer's.
        dtype: what the weights are loaded as; None: as stored.
    """
    files = [
        file
        for folder in (text_encoder, tokenizer)
        for file in sorted(folder.iterdir())
        if file.suffix in (".json", ".safetensors", ".model")
    ]
    return parts_name([repr(dtype)], files)


def check_cache_folder(folder: Path, *, parents: bool = False) -> None:
    """Make the folder of a text cache, or say why not.

    Args:
        folder: the cache.
        parents: make those that it lies in as well, as a run does.

    Raises:
        NearstepError: if it is a file, if the folder that it should lie in is missing, or if it cannot be made.
    """
    if folder.is_dir():
        return
    if not parents and not folder.resolve().parent.is_dir():
        raise NearstepError(f"the text cache {folder} cannot be made: there is no folder {folder.parent}")
    try:
        folder.mkdir(parents=parents, exist_ok=True)  # of two processes that begin together one finds it made
    except FileExistsError as error:
        raise NearstepError(f"the text cache {folder} is a file; name a folder") from error
    except OSError as error:
        raise NearstepError(f"the text cache {folder} cannot be made: {error.strerror}") from error


def _read(path: Path, count: int) -> Tensor:
    with safe_open(path, "pt") as file:
        if list(file.keys()) != [_FEATURES]:
            raise ValueError(f"it holds {list(file.keys())}")
        features, stated = file.get_tensor(_FEATURES), (file.metadata() or {}).get(_DIGEST)
    if features.ndim != 2 or len(features) != count:
        raise ValueError(f"it holds {list(features.shape)}, the prompt has {count} tokens")
    if not features.isfinite().all():
        raise ValueError("it holds NaN or infinity")
    if stated is not None and stated != _digest(features):
        raise ValueError("its numbers are not those that were written")
    return features


def _digest(features: Tensor) -> str:
    return hashlib.blake2b(features.contiguous().view(torch.uint8).numpy().tobytes(), digest_size=16).hexdigest()
