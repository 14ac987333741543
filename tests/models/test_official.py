"""Wan's official text encoder and codec: our tables against the official forward, and against diffusers' converter."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import AutoencoderKLWan
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers
from layouts import official_codec, official_text
from torch.nn.functional import linear, softmax
from transformers import UMT5Config, UMT5EncoderModel

from nearstep.errors import NearstepError
from nearstep.models.lora import Update
from nearstep.models.lora_files import Scaling, changes_in
from nearstep.models.official import codec_config, codec_name, text_config, text_name

HEADS, BUCKETS = 4, 32


def buckets(length: int) -> torch.Tensor:
    """T5's relative position buckets, key minus query: half for each sign, exact up to a quarter, then by logarithm."""
    table = torch.zeros(length, length, dtype=torch.long)
    exact = BUCKETS // 4
    for query in range(length):
        for key in range(length):
            distance = abs(key - query)
            near = distance < exact
            far = 0 if near else exact + int(math.log(distance / exact) / math.log(128 / exact) * exact)
            table[query, key] = (BUCKETS // 2) * (key > query) + (distance if near else min(far, BUCKETS // 2 - 1))
    return table


def official_forward(state: dict[str, torch.Tensor], ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """What the release's encoder computes (wan/modules/t5.py), written from its names."""

    def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)

    def gelu(x: torch.Tensor) -> torch.Tensor:
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    x, place, layer = state["token_embedding.weight"][ids], buckets(ids.shape[1]), 0
    while f"blocks.{layer}.norm1.weight" in state:
        w = {k.removeprefix(f"blocks.{layer}."): v for k, v in state.items() if k.startswith(f"blocks.{layer}.")}
        h = norm(x, w["norm1.weight"])
        q, k, v = (linear(h, w[f"attn.{part}.weight"]).unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in "qkv")
        bias = w["pos_embedding.embedding.weight"][place].permute(2, 0, 1)
        scores = (q @ k.mT + bias).masked_fill(mask[:, None, None] == 0, torch.finfo(x.dtype).min)
        x = x + linear((softmax(scores, -1) @ v).transpose(1, 2).flatten(2), w["attn.o.weight"])
        h = norm(x, w["norm2.weight"])
        x = x + linear(linear(h, w["ffn.fc1.weight"]) * gelu(linear(h, w["ffn.gate.0.weight"])), w["ffn.fc2.weight"])
        layer += 1
    return norm(x, state["norm.weight"])


@torch.no_grad()
def test_the_official_text_encoder_computes_what_ours_does() -> None:
    official = official_text(vocabulary=40, heads=HEADS)
    state = {text_name(name): value for name, value in official.items()}
    config = text_config({name: value.shape for name, value in state.items()})
    assert (config["num_heads"], config["d_kv"], config["d_ff"], config["num_layers"]) == (HEADS, 6, 20, 2)
    encoder = UMT5EncoderModel(UMT5Config.from_dict(config)).eval()
    missing, unexpected = encoder.load_state_dict(state, strict=False)
    assert missing in ([], ["encoder.embed_tokens.weight"]) and not unexpected
    ids, mask = torch.randint(0, 40, (2, 24)), torch.ones(2, 24, dtype=torch.long)
    mask[1, 9:] = 0
    ours = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
    kept = mask.bool()
    torch.testing.assert_close(ours[kept], official_forward(official, ids, mask)[kept], atol=2e-5, rtol=1e-5)


def test_codec_names_are_those_of_diffusers_converter() -> None:
    official = official_codec(base=4)
    theirs = convert_wan_vae_to_diffusers(dict(official))
    ours = {codec_name(name): value for name, value in official.items()}
    assert {name: value.data_ptr() for name, value in ours.items()} == {n: v.data_ptr() for n, v in theirs.items()}
    config = codec_config({name: value.shape for name, value in ours.items()})
    assert AutoencoderKLWan.from_config(config).state_dict().keys() == ours.keys()


def test_what_is_not_theirs_is_named() -> None:
    for rename in (text_name, codec_name):
        with pytest.raises(NearstepError, match=r"'blocks\.0\.cross\.q\.weight' is no part"):
            rename("blocks.0.cross.q.weight")
    with pytest.raises(NearstepError, match=r"shared\.weight is missing"):
        text_config({})
    with pytest.raises(NearstepError, match="48 latent channels is not Wan2.1's"):
        codec_config({"encoder.conv_in.weight": (4, 3, 3, 3, 3), "post_quant_conv.weight": (48, 48, 1, 1, 1)})


def test_a_lora_is_what_peft_makes_of_it() -> None:
    from peft import LoraConfig, get_peft_model
    from peft.utils import get_peft_model_state_dict

    net = torch.nn.ModuleDict({"proj_out": torch.nn.Linear(6, 5, bias=False)})
    plain = net["proj_out"].weight.detach().clone()
    tuned = get_peft_model(net, LoraConfig(r=3, lora_alpha=6, target_modules=["proj_out"]))
    for parameter in tuned.parameters():
        torch.nn.init.normal_(parameter.data) if parameter.requires_grad else None
    state = get_peft_model_state_dict(tuned)
    (update,) = changes_in(state, Scaling(alpha=6)).values()
    assert isinstance(update, Update)
    expected = tuned.merge_and_unload()["proj_out"].weight
    torch.testing.assert_close(update.merged(plain), expected, atol=1e-5, rtol=1e-5)
    halved = Update(down=update.down, up=update.up).merged(plain)
    torch.testing.assert_close(2 * (halved - plain), expected - plain, atol=1e-5, rtol=1e-5)


def test_a_lora_that_is_none_is_named() -> None:
    with pytest.raises(NearstepError, match=r"cannot use 'a\.weight': it is no part of a known kind"):
        changes_in({"a.weight": torch.zeros(1)})
    with pytest.raises(NearstepError, match=r"proj_out has down and no partner"):
        changes_in({"proj_out.lora_A.weight": torch.zeros(1, 2)})
    with pytest.raises(NearstepError, match="holds no LoRA"):
        changes_in({})
