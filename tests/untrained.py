"""An untrained model of a world at the smallest size of every class, as the training stages make and read it."""

from __future__ import annotations

from pathlib import Path

import torch

from nearstep.models.folder import Settings
from nearstep.nets.codec import VideoCodec
from nearstep.nets.transformer import VideoTransformer
from nearstep.protocols import World
from nearstep.train.export import export_model
from nearstep.train.stages.codec import CodecSize
from nearstep.train.stages.teacher import NetworkSize
from nearstep.train.stages.text import TextSize

NETWORK = NetworkSize(num_attention_heads=2, attention_head_dim=16, ffn_dim=32, num_layers=2)
TEXT = TextSize(d_model=16, d_kv=8, d_ff=16, num_heads=2, num_layers=1, length=32)
CODEC = CodecSize(
    base_dim=8, decoder_base_dim=8, z_dim=4, dim_mult=(1, 1, 1), num_res_blocks=1,
    temperal_downsample=(True, True), patch_size=2,
)  # fmt: skip


def write_untrained(folder: Path, world: World) -> Path:
    """Write a causal network, a teacher, codec and text encoder to ``folder``, which is returned."""
    torch.manual_seed(0)
    codec = VideoCodec(CODEC.build()).eval().requires_grad_(False)
    sizes = {**vars(NETWORK), "in_channels": codec.channels, "out_channels": codec.channels, "text_dim": TEXT.d_model}
    networks = {"transformer": VideoTransformer(**sizes, chunk_frames=3), "teacher": VideoTransformer(**sizes)}
    settings = Settings(num_frames=world.frames, height=world.size, width=world.size)
    text = TEXT.build(world.vocabulary())
    export_model(folder, networks=networks, text=text, codec=codec, shift=3.0, settings=settings)
    return folder
