"""Other systems' pipelines in the libraries' own format, tiny and untrained: each built and written by diffusers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tiny import WORDS


def _text(width: int, *, t5: bool = False) -> dict[str, Any]:
    """A tokenizer of our words and a text encoder."""
    from transformers import T5Config, T5EncoderModel, UMT5Config, UMT5EncoderModel

    from nearstep.nets.text import build_tokenizer

    tokenizer = build_tokenizer(WORDS.split(), length=12)
    sizes = dict(vocab_size=len(tokenizer), d_model=width, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    encoder = T5EncoderModel(T5Config(**sizes)) if t5 else UMT5EncoderModel(UMT5Config(**sizes))
    return {"tokenizer": tokenizer, "text_encoder": encoder.eval()}


def _wan_vae() -> Any:
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan(
        base_dim=8, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True],
        latents_mean=[0.1] * 4, latents_std=[0.8] * 4,
    )  # fmt: skip


_NET = dict(
    patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=16,
    freq_dim=16, ffn_dim=32, num_layers=2, cross_attn_norm=True, rope_max_seq_len=64,
)  # fmt: skip


def make_wan(folder: Path) -> Path:
    """Wan2.1's pipeline; a request is of 16-pixel steps."""
    from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel

    scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    pipe = WanPipeline(
        transformer=WanTransformer3DModel(**_NET, qk_norm="rms_norm_across_heads"), vae=_wan_vae(), scheduler=scheduler,
        **_text(16),
    )  # fmt: skip
    pipe.save_pretrained(folder)
    return folder


def make_skyreels(folder: Path) -> Path:
    """SkyReels-V2's diffusion forcing."""
    from diffusers import (
        SkyReelsV2DiffusionForcingPipeline,
        SkyReelsV2Transformer3DModel,
        UniPCMultistepScheduler,
    )

    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=8.0)
    pipe = SkyReelsV2DiffusionForcingPipeline(
        transformer=SkyReelsV2Transformer3DModel(**_NET, qk_norm="rms_norm_across_heads"),
        vae=_wan_vae(), scheduler=scheduler, **_text(16),
    )  # fmt: skip
    pipe.save_pretrained(folder)
    return folder


def make_anyflow(folder: Path) -> Path:
    """AnyFlow's causal pipeline, whose chunks are 1 and 2 latent frames here."""
    from diffusers import AnyFlowFARPipeline, AnyFlowFARTransformer3DModel, FlowMapEulerDiscreteScheduler

    net = AnyFlowFARTransformer3DModel(**_NET | {"attention_head_dim": 16}, chunk_partition=(1, 2), full_chunk_limit=2)
    pipe = AnyFlowFARPipeline(
        transformer=net, vae=_wan_vae(), scheduler=FlowMapEulerDiscreteScheduler(shift=5.0), **_text(16)
    )
    pipe.save_pretrained(folder)
    return folder


def make_ltx(folder: Path) -> Path:
    """LTX-Video's pipeline; a request is of 32-pixel steps and 8n + 1 frames."""
    from diffusers import (
        AutoencoderKLLTXVideo,
        FlowMatchEulerDiscreteScheduler,
        LTXPipeline,
        LTXVideoTransformer3DModel,
    )

    vae = AutoencoderKLLTXVideo(
        latent_channels=8, block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1), decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False), decoder_spatio_temporal_scaling=(True, True, False, False),
        decoder_inject_noise=(False,) * 5, upsample_residual=(False,) * 4, upsample_factor=(1,) * 4,
        timestep_conditioning=False, patch_size=1, patch_size_t=1,
    )  # fmt: skip
    net = LTXVideoTransformer3DModel(
        in_channels=8, out_channels=8, num_attention_heads=4, attention_head_dim=8, cross_attention_dim=32,
        num_layers=1, caption_channels=32,
    )  # fmt: skip
    pipe = LTXPipeline(scheduler=FlowMatchEulerDiscreteScheduler(), vae=vae, transformer=net, **_text(32, t5=True))
    pipe.save_pretrained(folder)
    return folder


MAKERS: dict[str, Callable[[Path], Path]] = {
    "wan": make_wan,
    "skyreels": make_skyreels,
    "anyflow": make_anyflow,
    "ltx": make_ltx,
}
"""System -> what writes its pipeline."""
