"""Wan2.1's weights in every published layout, tiny and made here."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

State = dict[str, Tensor]


RELEASE_SIZES = {
    "num_attention_heads": 2, "attention_head_dim": 24, "text_dim": 24, "freq_dim": 32, "ffn_dim": 40, "num_layers": 2
}  # fmt: skip


def official_text(*, vocabulary: int, heads: int, width: int = 24, hidden: int = 20, layers: int = 2) -> State:
    """The release's text encoder (wan/modules/t5.py) with random weights."""

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape) / shape[-1] ** 0.5

    state = {"token_embedding.weight": torch.randn(vocabulary, width), "norm.weight": 1 + 0.1 * torch.randn(width)}
    for layer in range(layers):
        block = {f"attn.{part}.weight": draw(width, width) for part in "qkvo"}
        block |= {f"norm{i}.weight": 1 + 0.1 * torch.randn(width) for i in (1, 2)}
        block |= {"pos_embedding.embedding.weight": torch.randn(32, heads)}
        block |= {"ffn.gate.0.weight": draw(hidden, width), "ffn.fc1.weight": draw(hidden, width)}
        block |= {"ffn.fc2.weight": draw(width, hidden)}
        state |= {f"blocks.{layer}.{name}": value for name, value in block.items()}
    return state


def official_codec(*, base: int) -> State:
    """The release's codec (wan/modules/vae.py): 4 levels of 2 blocks, 3 on the way up, 16 channels."""
    state: State = {}

    def conv(name: str, out: int, source: int, *kernel: int) -> None:
        state[f"{name}.weight"] = torch.randn(out, source, *kernel) / (source * 9) ** 0.5
        state[f"{name}.bias"] = torch.zeros(out)

    def block(name: str, source: int, out: int) -> None:
        for index, width in ((0, source), (3, out)):
            state[f"{name}.residual.{index}.gamma"] = torch.ones(width, 1, 1, 1)
        conv(f"{name}.residual.2", out, source, 3, 3, 3)
        conv(f"{name}.residual.6", out, out, 3, 3, 3)
        if source != out:
            conv(f"{name}.shortcut", out, source, 1, 1, 1)

    def ends(side: str, first: int, last: int, source: int, out: int, widest: int) -> None:
        conv(f"{side}.conv1", first, source, 3, 3, 3)
        block(f"{side}.middle.0", widest, widest)
        state[f"{side}.middle.1.norm.gamma"] = torch.ones(widest, 1, 1)
        conv(f"{side}.middle.1.to_qkv", 3 * widest, widest, 1, 1)
        conv(f"{side}.middle.1.proj", widest, widest, 1, 1)
        block(f"{side}.middle.2", widest, widest)
        state[f"{side}.head.0.gamma"] = torch.ones(last, 1, 1, 1)
        conv(f"{side}.head.2", out, last, 3, 3, 3)

    widths = [base, base, 2 * base, 4 * base, 4 * base]
    ends("encoder", base, 4 * base, 3, 32, 4 * base)
    index = 0
    for level in range(4):
        for source in (widths[level], widths[level + 1]):
            block(f"encoder.downsamples.{index}", source, widths[level + 1])
            index += 1
        if level < 3:
            conv(f"encoder.downsamples.{index}.resample.1", widths[level + 1], widths[level + 1], 3, 3)
            if level > 0:
                conv(f"encoder.downsamples.{index}.time_conv", widths[level + 1], widths[level + 1], 3, 1, 1)
            index += 1
    conv("conv1", 32, 32, 1, 1, 1)
    conv("conv2", 16, 16, 1, 1, 1)
    ends("decoder", 4 * base, base, 16, 3, 4 * base)
    widths, index = [4 * base, 4 * base, 4 * base, 2 * base, base], 0
    for level in range(4):
        out, source = widths[level + 1], widths[level] // (2 if level else 1)
        for first in (source, out, out):
            block(f"decoder.upsamples.{index}", first, out)
            index += 1
        if level < 3:
            conv(f"decoder.upsamples.{index}.resample.1", out // 2, out, 3, 3)
            if level < 2:
                conv(f"decoder.upsamples.{index}.time_conv", 2 * out, out, 3, 1, 1)
            index += 1
    return state


def small_release(folder: Path) -> Path:
    """Wan2.1's release, small: config.json and weights under official names, pickled text encoder and codec."""
    from nearstep import VideoTransformer
    from nearstep.models.wan import to_official
    from nearstep.nets.text import build_tokenizer

    torch.manual_seed(0)
    text = official_text(vocabulary=11, heads=4)
    tokenizer = build_tokenizer("a small red ball slides left on snow".split(), length=12)
    text["token_embedding.weight"] = torch.randn(len(tokenizer), 24)
    save_file(
        to_official(VideoTransformer(**RELEASE_SIZES).state_dict()), folder / "diffusion_pytorch_model.safetensors"
    )
    stated = {"_class_name": "WanModel", "model_type": "t2v", "dim": 48, "num_heads": 2, "eps": 1e-6}
    (folder / "config.json").write_text(json.dumps(stated))
    torch.save({k: v.bfloat16() for k, v in text.items()}, folder / "models_t5_umt5-xxl-enc-bf16.pth")
    torch.save(official_codec(base=4), folder / "Wan2.1_VAE.pth")
    tokenizer.save_pretrained(folder / "google" / "umt5-xxl")
    return folder


def fsdp(state: State, outer: str = "model._fsdp_wrapped_module.") -> State:
    """Names as a sharded run saves them: a wrapper outside and one in every block."""
    return {outer + _wrapped(name): value for name, value in state.items()}


def _wrapped(name: str) -> str:
    block, *rest = name.split(".")
    return ".".join([block, rest[0], "_fsdp_wrapped_module", *rest[1:]]) if block == "blocks" else name


def other(state: State) -> State:
    """A network of the same shapes that must not be taken for the right one."""
    return {name: torch.zeros_like(value) for name, value in state.items()}


def prefixed(state: State, prefix: str = "model.") -> State:
    return {prefix + name: value for name, value in state.items()}


def _safetensors(state: State, folder: Path) -> Path:
    save_file(state, folder / "network.safetensors")
    return folder / "network.safetensors"


def _shards(state: State, folder: Path) -> Path:
    names = sorted(state)
    halves = {"a-00001-of-00002.safetensors": names[::2], "a-00002-of-00002.safetensors": names[1::2]}
    for file, inside in halves.items():
        save_file({name: state[name] for name in inside}, folder / file)
    homes = {name: file for file, inside in halves.items() for name in inside}
    (folder / "a.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": homes}))
    return folder


def _saved(make: Callable[[State], object], suffix: str = ".pt", **options: bool) -> Callable[[State, Path], Path]:
    def save(state: State, folder: Path) -> Path:
        torch.save(make(state), folder / f"file{suffix}", **options)
        return folder / f"file{suffix}"

    return save


LAYOUTS: dict[str, tuple[Callable[[State, Path], Path], str | None]] = {
    "safetensors": (_safetensors, None),
    "sharded": (_shards, None),
    "bare .pth": (_saved(dict, ".pth"), None),
    "before zip": (_saved(dict, ".bin", _use_new_zipfile_serialization=False), None),
    "Self-Forcing, EMA": (
        _saved(lambda s: {"generator": other(prefixed(s)), "generator_ema": prefixed(s), "critic": other(prefixed(s))}),
        None,
    ),
    "Self-Forcing, not EMA": (
        _saved(lambda s: {"generator": prefixed(s), "generator_ema": other(prefixed(s))}),
        "generator",
    ),
    "CausVid": (_saved(lambda s: {"generator": fsdp(s), "critic": other(prefixed(s))}), None),
    "Causal-Forcing": (_saved(lambda s: {"generator_ema": fsdp(s), "generator": other(fsdp(s))}), "generator_ema"),
    "One-Forcing": (_saved(lambda s: {"generator": fsdp(s), "step": 200, "generator_ema": other(s)}), "generator"),
    "LongLive": (_saved(lambda s: {"model": prefixed(s), "iteration": 3}), "model"),
    "compiled": (_saved(lambda s: {"generator": prefixed(s, "_orig_mod.model.")}), None),
}
"""Name -> how it is saved, and the role to ask for."""
