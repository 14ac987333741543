"""A loaded model: its components, and how they come from a folder and go back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler
from diffusers.loaders import WanLoraLoaderMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, UMT5EncoderModel

from nearstep.errors import NearstepError
from nearstep.files import open_to_readers, path_of
from nearstep.models.card import Card, write_card
from nearstep.models.configs import Configs, ModelConfigs
from nearstep.models.folder import INDEX, ModelFolder, Settings, shift_of
from nearstep.models.hub import FROM_THE_HUB, Hub
from nearstep.models.loading import LOADING, DeferredTextEncoder, load_model
from nearstep.models.lora_choice import Given, loras_of
from nearstep.models.lora_peft import peft_adapter
from nearstep.models.student import Student
from nearstep.nets.codec import VideoCodec
from nearstep.nets.devices import device_of, find_device
from nearstep.nets.fp8_layers import check_wide, find_fp8
from nearstep.nets.text import PromptEncoder
from nearstep.nets.text_cache import CachedPromptEncoder
from nearstep.nets.tiny_decoder import TinyDecoder
from nearstep.nets.transformer import VideoTransformer
from nearstep.precision import find_dtype, one_dtype
from nearstep.protocols import LatentStream
from nearstep.stream.finite import check_weights
from nearstep.stream.names import LOADING_NAMES, naming

Loaded = TypeVar("Loaded", bound="VideoModel")
Loras = Given | Sequence[Given] | None


class VideoModel(DiffusionPipeline, WanLoraLoaderMixin):
    """A causal few-step student, or a bidirectional many-step teacher, with all that it needs to make video.

    Args:
        transformer: the network; bidirectional where its ``chunk_frames`` is None, and then run as one chunk.
        vae: the codec's weights.
        text_encoder: UMT5's encoder; None until it is needed, where features of prompts are cached.
        tokenizer: its fast tokenizer.
        scheduler: holds the shift; nothing else of it is used.
        nearstep: the model's :class:`Settings`, as in model_index.json.
        tiny_decoder: makes the pixels in the codec's place, where it is set.
        deferred_text: how to load the text encoder when it is needed.
    """

    _lora_loadable_modules: ClassVar = ["transformer"]
    model_cpu_offload_seq = "text_encoder->transformer->vae"

    def __init__(
        self,
        transformer: VideoTransformer,
        vae: AutoencoderKLWan,
        text_encoder: UMT5EncoderModel | None,
        tokenizer: PreTrainedTokenizerFast,
        scheduler: FlowMatchEulerDiscreteScheduler,
        nearstep: Mapping[str, Any] | None = None,
        tiny_decoder: TinyDecoder | None = None,
        deferred_text: DeferredTextEncoder | None = None,
    ) -> None:
        super().__init__()
        self.settings = Settings.of(nearstep)
        self.tiny_decoder = tiny_decoder
        self._deferred_text = deferred_text
        self.register_modules(
            transformer=transformer, vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, scheduler=scheduler
        )
        self.register_to_config(nearstep=dict(nearstep or {}))

    @classmethod
    @naming(LOADING_NAMES)
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]  # ours names what it takes
        cls: type[Loaded],
        name: str | Path | ModelConfigs,
        *,
        transformer: str | None = None,
        student: Student | str | Path | None = None,
        lora: Loras = None,
        torch_dtype: torch.dtype | str | None = None,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        text_device: torch.device | str | None = None,
        text_cache: str | Path | None = None,
        vae_dtype: torch.dtype | str | None = None,
        vae_tile: int | None = None,
        tiny_decoder: str | Path | None = None,
        fp8: str | Sequence[str] | None = None,
        variant: str | None = None,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
    ) -> Loaded:
        """Load a model folder.

        Args:
            name: ``"playground"`` (inside this package), a folder, or a hub id; or a model that was opened already
                (models/configs.py), which says network and student itself.
            transformer: the sub-folder of the network, such as ``"teacher"`` for the bidirectional one; ``transformer``
                by default.
            student: a weights file whose network takes the place of ``transformer/``, which gives its sizes; a
                :class:`Student` says how it was trained (docs/wan.md), a path alone means Self-Forcing's way.
            lora: adapter files of any writer, or several, merged into the network's weights; ``"FILE:0.8"`` counts 0.8
                times. Those that should come off again: ``load_lora_weights``.
            torch_dtype: of network and text encoder, as saved by default: a type or its name, ``"bfloat16"``.
            dtype: the same under its newer name.
            device: where to put it: ``"auto"`` is CUDA where it is here, then MPS, then the CPU; unless
                this is said it stays on the CPU, as diffusers' pipelines do.
            text_device: where to put the text encoder, if elsewhere: ``"cpu"`` leaves the GPU to the network.
            text_cache: a folder for the features of prompts; the text encoder is loaded when a prompt is not there.
            vae_dtype: of the codec, or of the tiny decoder; as saved by default (float32 for Wan's).
            vae_tile: decode in tiles of so many pixels, a quarter shared. Less memory while a tile is made, but more
                kept between chunks and more work, as much as tiles share (``pipe.vae.enable_tiling`` sets more).
            tiny_decoder: a TAEHV file (``taew2_1.safetensors``) to decode with in place of the codec.
            fp8: keep in eight bits (nets/fp8_layers.py): the ``"weights"`` of the network's linear layers, or also the
                ``"products"`` with them, which are faster on Ada and Hopper cards; the ``"cache"``; or several of
                these. Adapters that should come off again do not go with such layers, and they are not saved.
            variant: read weights from files of this variant, such as ``"fp16"``, where a component has them.
            revision: of a hub id: a branch, a tag or a commit.
            cache_dir: where files of the hub are kept.
            token: for models of the hub that ask for one.
            local_files_only: take what is in the cache, and ask nobody.

        Raises:
            NearstepError: naming the file that is missing, damaged or of another kind, or the device that is not here.
        """
        device = None if device is None else find_device(device)
        text_device = None if text_device is None else find_device(text_device)
        in_fp8 = find_fp8(fp8, device)
        if transformer is not None and not isinstance(transformer, str):
            raise NearstepError(f"transformer={transformer!r:.60}; give a sub-folder of the model, such as 'teacher'")
        precision = one_dtype(torch_dtype, dtype)
        hub = Hub(revision=revision, cache_dir=cache_dir, token=token, local_files_only=local_files_only)
        if not isinstance(name, ModelConfigs):
            folder = ModelFolder.open(name, hub=hub, variant=variant)
            model = ModelConfigs.open(folder, transformer or "transformer", student, loras_of(lora))
        elif transformer is None and student is None and lora is None and variant is None and hub == FROM_THE_HUB:
            model = name
        else:
            raise NearstepError("a model that is open names its files and network already; leave all about them out")
        loaded = load_model(
            model,
            torch_dtype=precision,
            text_device=text_device,
            text_cache=None if text_cache is None else path_of(text_cache),
            vae_dtype=None if vae_dtype is None else find_dtype(vae_dtype),
            vae_tile=vae_tile,
            tiny_decoder=None if tiny_decoder is None else path_of(tiny_decoder),
            fp8=in_fp8,
        )
        pipe = cls(
            transformer=loaded.transformer,
            vae=loaded.vae,
            text_encoder=loaded.text_encoder,
            tokenizer=loaded.tokenizer,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=shift_of(model.scheduler)),
            nearstep=model.index_settings,
            tiny_decoder=loaded.tiny_decoder,
            deferred_text=loaded.deferred_text,
        )
        places = dict.fromkeys(("transformer", "vae"), device) | {"text_encoder": text_device or device}
        for component, place in places.items():
            if place is not None and isinstance(module := pipe.components[component], nn.Module):
                module.to(place)
        source = model.student.path if model.student else model.folder.path / model.network
        check_weights(cast(nn.Module, pipe.transformer), str(source))
        check_weights(cast(nn.Module, pipe.vae), str(model.folder.path / "vae"))
        return pipe

    @classmethod
    def lora_state_dict(  # what load_lora_weights reads with, so that a file means here what it does when it is merged
        cls, pretrained_model_name_or_path_or_dict: str | Path | Mapping[str, Tensor], **options: Any
    ) -> tuple[dict[str, Tensor], dict[str, Any]] | dict[str, Tensor]:
        """An adapter for peft, from a file of any writer (models/lora_files.py).

        Args:
            pretrained_model_name_or_path_or_dict: a file, a folder, a hub id or a state dict.
            options: diffusers' own; ``weight_name`` and ``subfolder`` count for what is on disk.

        Raises:
            NearstepError: for adapters that are not low-rank alone, by their kind; ``from_pretrained(lora=...)`` merges
                those.
        """
        state, metadata = peft_adapter(pretrained_model_name_or_path_or_dict, options)
        return (state, metadata) if options.get("return_lora_metadata") else state

    def load_lora_weights(self, *arguments: Any, **options: Any) -> None:
        """diffusers' own: adapters beside the network's weights, which can come off again.

        Raises:
            NearstepError: if the network is in eight bits, whose numbers an adapter's cannot be added to.
        """
        check_wide(cast(VideoTransformer, self.transformer), "given adapters that come off; lora= merges them")
        super().load_lora_weights(*arguments, **options)

    def save_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]  # the card is ours
        self, save_directory: str | Path, *, card: Card | None = None, **options: Any
    ) -> None:
        """Write a model folder, with a model card, that :meth:`from_pretrained` loads.

        WanPipeline loads what ``nearstep convert FOLDER NEW --to diffusers`` makes of it.

        Args:
            save_directory: the folder.
            card: what the model card should say that the folder does not.
            options: diffusers', such as ``max_shard_size``.
        """
        check_wide(cast(VideoTransformer, self.transformer), "saved; load it without fp8 for that")
        self._load_text_encoder()  # one that was not needed yet is part of the folder
        folder, config = Path(save_directory), self.transformer.config
        for part in (self.transformer, self.vae):
            part.register_to_config(_name_or_path="")  # where it was loaded from is nobody's business
        super().save_pretrained(folder, **options)
        plan = self.settings.default_plan if config["chunk_frames"] else None
        write_card(folder, card or Card(), config=config, plan=plan, library="nearstep")
        open_to_readers(folder, folder / INDEX)

    # --- its parts -------------------------------------------------------------------------------------------------

    @property
    def configs(self) -> Configs:
        """What decides the clips that it can make."""
        return Configs(
            transformer=self.transformer.config,
            vae=self.vae.config,
            scheduler=self.scheduler.config,
            settings=self.settings,
        )

    @property
    def chunk_frames(self) -> int:
        """Latent frames of a chunk.

        Raises:
            NearstepError: for a bidirectional network, which has no chunks.
        """
        if (chunk := self.transformer.config["chunk_frames"]) is None:
            raise NearstepError(
                "a stream needs a causal student, and this network is bidirectional: it makes clips whole"
            )
        return chunk

    @property
    def network_device(self) -> torch.device:
        """Where the network runs."""
        return device_of(cast(VideoTransformer, self.transformer))

    @property
    def decoder_device(self) -> torch.device:
        """Where the codec runs."""
        return device_of(self.vae)

    @property
    def codec(self) -> VideoCodec:
        """Pixels to latents and back."""
        return VideoCodec(self.vae)

    @property
    def decoder(self) -> VideoCodec | TinyDecoder:
        """What makes pixels of latents: the codec, or the tiny decoder where one is set."""
        return self.codec if self.tiny_decoder is None else self.tiny_decoder.to(self.network_device)

    def latent_stream(self) -> LatentStream:
        """A fresh stream of the decoder."""
        return self.decoder.stream()

    @property
    def prompt_encoder(self) -> PromptEncoder | CachedPromptEncoder:
        """Prompts to token features."""
        return self.prompt_encoder_of(None)

    def prompt_encoder_of(self, length: int | None) -> PromptEncoder | CachedPromptEncoder:
        """One that pads to so many tokens, or to as many as the tokenizer says."""
        if (deferred := self._deferred_text) is not None:
            return CachedPromptEncoder(deferred.cache, deferred.source, self.tokenizer, self._load_text_encoder, length)
        return PromptEncoder(self.tokenizer, self.text_encoder, length)

    def _load_text_encoder(self) -> UMT5EncoderModel:
        """The text encoder; one that was not needed until now is loaded, and offloaded like the others."""
        with LOADING:  # of several threads that need it the first loads it
            if self.text_encoder is None and self._deferred_text is not None:
                self._place_text_encoder(self._deferred_text)
        return cast(UMT5EncoderModel, self.text_encoder)

    def _place_text_encoder(self, deferred: DeferredTextEncoder) -> None:
        encoder: Any = deferred.load()
        place = deferred.device or cast(VideoTransformer, self.transformer).device
        hooked = getattr(self, "_all_hooks", None)
        if not hooked and str(place) != "meta":  # where layers are offloaded one by one; this one then stays on the CPU
            encoder.to(place)
        self.register_modules(text_encoder=encoder)
        if hooked:
            self.maybe_free_model_hooks()  # which hooks all models anew
