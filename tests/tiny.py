"""A whole model in the on-disk format, tiny and untrained: causal student, bidirectional teacher, codec, text."""

from __future__ import annotations

from pathlib import Path

WORDS = "a small large red blue ball football slides bounces left right on the snow"
PROMPT = "a small red ball slides left"


def make_model(folder: Path) -> Path:
    """Write it to ``folder``, which is returned."""
    import torch
    from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler
    from transformers import UMT5Config, UMT5EncoderModel

    from nearstep.nets.text import build_tokenizer
    from nearstep.nets.transformer import VideoTransformer
    from nearstep.stream.pipeline import CausalVideoPipeline

    torch.manual_seed(0)
    tokenizer = build_tokenizer(WORDS.split(), length=12)
    text = UMT5Config(
        vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, dropout_rate=0.0
    )
    net = dict(num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, text_dim=16, freq_dim=16,
               ffn_dim=32, num_layers=2)  # fmt: skip
    vae = AutoencoderKLWan(
        base_dim=8, z_dim=4, dim_mult=[1, 1, 1], num_res_blocks=1, temperal_downsample=[True, True],
        in_channels=12, out_channels=12, patch_size=2, latents_mean=[0.1] * 4, latents_std=[0.8] * 4,
    )  # fmt: skip
    settings = dict(fps=12, num_frames=21, height=32, width=32, teacher_plan="3", guidance_scale=2.0, default_plan="2")
    pipe = CausalVideoPipeline(
        transformer=VideoTransformer(**net, chunk_frames=2),
        vae=vae,
        text_encoder=UMT5EncoderModel(text),
        tokenizer=tokenizer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
        nearstep=settings,
    )
    pipe.save_pretrained(folder)
    VideoTransformer(**net).save_pretrained(folder / "teacher")
    return folder
