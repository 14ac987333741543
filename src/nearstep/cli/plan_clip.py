"""``nearstep plan-memory generate``: whether making a clip fits, and what of offloading, tiles and types it takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from nearstep.cli.arguments import parsed
from nearstep.cli.memory_options import gib, room_of, text_length_of
from nearstep.cli.options import OWN_SIZE, FlatClipSize, InFp8, optional
from nearstep.cli.text import table
from nearstep.models.configs import ModelConfigs
from nearstep.models.folder import CONFIG, Settings, read_json

if TYPE_CHECKING:
    from nearstep.cost.sizes import Sizes


@dataclass(frozen=True, kw_only=True)
class PlanClip:
    """Predict the memory that a clip takes on an accelerator, placed in each of five ways, from shapes alone."""

    memory: Annotated[str, tyro.conf.arg(metavar="GB")] = "24G"
    """Memory of the accelerator, in GiB."""
    model: Annotated[str | None, optional("MODEL", "Wan2.1 of --size")] = None
    """A model folder to read sizes from."""
    size: Literal["1.3B", "14B"] = "1.3B"
    """Wan2.1's size, where no model is named."""
    clip: FlatClipSize = OWN_SIZE
    """Size of the clip."""
    chunk_frames: Annotated[int | None, optional("N", "the model's own; 3")] = None
    """Latent frames that the network denoises together; 0 for a bidirectional one."""
    window_frames: Annotated[int | None, optional("N", "the model's own, or all")] = None
    """Newest latent frames that a chunk sees."""
    guided: bool = False
    """With guidance each call is twice as wide."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Precision of network and text encoder."""
    vae_dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the decoder."""
    vae_tile: Annotated[int | None, optional("PIXELS", "whole frames")] = None
    """Decode in tiles of this size."""
    fp8: InFp8 = ()
    """In eight bits: linear layers' weights, their products too, keys and values of past frames."""


def run(arguments: Sequence[str]) -> None:
    """Print the table."""
    prog = "nearstep plan-memory generate"
    options = parsed(PlanClip, prog, arguments)
    from nearstep.cost.clip_memory import HOW, ClipSetup, clip_memory
    from nearstep.cost.memory import SHARE
    from nearstep.nets.fp8_layers import find_fp8

    room, sizes = room_of(options.memory), _sizes(options)
    setup = ClipSetup(
        sizes=sizes,
        dtype=options.dtype,
        vae_dtype=options.vae_dtype,
        vae_tile=options.vae_tile,
        guided=options.guided,
        fp8=find_fp8(options.fp8, None),
    )
    found = clip_memory(setup)
    rows = [("held", "GiB")]
    rows += [(f"{name}, weights", gib(size)) for name, size in found.weights.items()]
    rows += [(f"{name}, beside weights", gib(size)) for name, size in found.work.items()]
    print("\n".join(table(rows)))
    usable = room * SHARE
    rows = [("together, at most", "GiB", f"in {gib(usable)}", "how")]
    for name, size in found.arrangements.items():
        rows.append((name, gib(size), "fits" if size <= usable else "too much", HOW[name]))
    print("\n" + "\n".join(table(rows)))
    print(f"usable: {SHARE:.0%} of {options.memory}; the rest is CUDA's and the allocator's, unmeasured")


def _sizes(options: PlanClip) -> Sizes:
    """Shapes of what is made."""
    from nearstep.cost.clip_memory import with_chunks
    from nearstep.cost.sizes import Sizes, wan
    from nearstep.models.configs import Configs
    from nearstep.models.empty import empty_codec, empty_network
    from nearstep.stream.request import latent_shape

    if options.model is None:
        own = wan(options.size, options.size)
        configs = Configs(
            transformer=empty_network(own.student).config,
            vae=empty_codec({}).config,
            scheduler={"shift": 5.0},
            settings=Settings(),
        )
        chunk, text, encoder = 3, own.text_length, own.encoder
    else:
        configs = ModelConfigs.open(options.model)
        chunk, home = configs.transformer.get("chunk_frames"), configs.folder.path
        text = text_length_of(home / "tokenizer" / "tokenizer_config.json")
        encoder = read_json(home / "text_encoder" / CONFIG)
    shape = latent_shape(configs, **options.clip.pixels)
    sizes = Sizes(
        student=configs.transformer,
        teacher=configs.transformer,
        clip=(shape.frames, *shape.frame),
        text_length=text,
        codec=configs.vae,
        encoder=encoder,
    )
    window = configs.transformer.get("window_frames") if options.window_frames is None else options.window_frames
    return with_chunks(sizes, (chunk if options.chunk_frames is None else options.chunk_frames) or None, window)
