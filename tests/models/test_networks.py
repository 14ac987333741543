"""Networks inside files: nested, prefixed, bundled, quantised; each is the network it was made from, or one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from layouts import fsdp, other, prefixed
from safetensors.torch import save_file
from torch import Tensor

from nearstep import NearstepError, VideoTransformer
from nearstep.models.networks import open_network
from nearstep.models.wan import from_official, to_official

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def official() -> State:
    torch.manual_seed(0)
    net = VideoTransformer(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, text_dim=16, freq_dim=16,
        ffn_dim=32, num_layers=2,
    )  # fmt: skip
    return {name: value.contiguous() for name, value in to_official(net.state_dict()).items()}


def same(path: Path, official: State, role: str | None = None) -> None:
    opened, wanted = open_network(path, role), from_official(official)
    assert opened.keys() == wanted.keys()
    assert all(torch.equal(opened[name], value) for name, value in wanted.items())


NESTED: dict[str, tuple[Callable[[State], object], str | None]] = {
    "an average never taken": (lambda s: {"generator_ema": {}, "generator": prefixed(s)}, None),
    "an average that is None": (lambda s: {"generator_ema": None, "generator": s}, None),
    "an average beside": (lambda s: {"generator": other(s), "ema": s}, "ema"),
    "state_dict": (lambda s: {"state_dict": s, "epoch": 3}, None),
    "model_state_dict": (lambda s: {"model_state_dict": s, "optimizer": {"state": {0: {"step": 1}}}}, None),
    "module": (lambda s: {"module": prefixed(s, "module.")}, None),
    "generator > model": (lambda s: {"generator": {"model": s}}, None),
    "model > state_dict": (lambda s: {"model": {"state_dict": s}, "critic": {"state_dict": other(s)}}, None),
    "generator > state_dict > model": (lambda s: {"generator": {"state_dict": {"model": fsdp(s)}}}, None),
    "asked for, two levels": (lambda s: {"critic": {"model": s}, "generator": other(s)}, "critic"),
    "an empty one inside": (lambda s: {"generator": {"ema": {}, "model": s}}, None),
    "rotary tables": (lambda s: {**s, "freqs": torch.ones(8, 12), "rope.freqs_cos": torch.ones(3)}, None),
    "numpy's numbers": (lambda s: {"generator": s, "loss": np.float64(1), "curve": np.arange(3.0)}, None),
}


@pytest.mark.parametrize("name", NESTED)
def test_what_is_nested_is_found(name: str, official: State, tmp_path: Path) -> None:
    make, role = NESTED[name]
    torch.save(make(official), tmp_path / "a.pt")
    same(tmp_path / "a.pt", official, role)


PREFIXED: dict[str, tuple[Callable[[State], State], str | None]] = {
    "ComfyUI": (lambda s: prefixed(s, "model.diffusion_model."), None),
    "ComfyUI, bundled": (
        lambda s: {**prefixed(s, "model.diffusion_model."), "vae.conv1.weight": s["head.head.bias"].clone()}
        if "head.head.bias" in s
        else {**prefixed(s, "model.diffusion_model."), "text_encoders.x": torch.ones(2)},
        None,
    ),
    "diffusion_model": (lambda s: prefixed(s, "diffusion_model."), None),
    "generator.model": (lambda s: prefixed(s, "generator.model."), None),
    "transformer": (lambda s: prefixed(s, "transformer."), None),
    "any word": (lambda s: prefixed(s, "net.dit."), None),
    "wrapped": (lambda s: fsdp(s, "generator.model._fsdp_wrapped_module."), None),
    "beside a critic": (lambda s: {**prefixed(other(s), "critic.model."), **prefixed(s, "generator.model.")}, None),
    "beside an average": (lambda s: {**prefixed(other(s), "generator."), **prefixed(s, "generator_ema.")}, None),
    "not the average": (lambda s: {**prefixed(s, "generator."), **prefixed(other(s), "generator_ema.")}, "generator"),
}  # fmt: skip


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("name", PREFIXED)
def test_what_is_prefixed_is_found(name: str, suffix: str, official: State, tmp_path: Path) -> None:
    make, role = PREFIXED[name]
    (save_file if suffix == ".safetensors" else torch.save)(make(official), tmp_path / f"a{suffix}")
    same(tmp_path / f"a{suffix}", official, role)
    ours = {key: value for key, value in make(from_official(official)).items()}
    (save_file if suffix == ".safetensors" else torch.save)(ours, tmp_path / f"b{suffix}")
    same(tmp_path / f"b{suffix}", official, role)


def test_two_networks_of_unknown_names_are_not_guessed_at(official: State, tmp_path: Path) -> None:
    save_file({**prefixed(other(official), "one."), **prefixed(official, "two.")}, tmp_path / "a.safetensors")
    with pytest.raises(NearstepError, match=r"holds 2 networks \(one\., two\.\): name one with --role"):
        open_network(tmp_path / "a.safetensors")
    same(tmp_path / "a.safetensors", official, "two")


# --- quantised ------------------------------------------------------------------------------------------------------

F8, E5, I8 = torch.float8_e4m3fn, torch.float8_e5m2, torch.int8
TOP = {F8: 448.0, E5: 57344.0, I8: 127.0}


def matrices(state: State) -> list[str]:
    return [name for name, value in state.items() if value.ndim == 2 and name.endswith("weight")]


def coded(state: State, dtype: torch.dtype, scale: str, over: Callable[[Tensor], Tensor]) -> tuple[State, State]:
    """A quantised file, and what its numbers are."""
    file, numbers = dict(state), dict(state)
    for name in matrices(state):
        s = over(state[name].abs()) / TOP[dtype]
        q = state[name] / s
        q = q.round().to(dtype) if dtype == I8 else q.to(dtype)
        file |= {name: q, name.removesuffix("weight") + scale: s}
        numbers[name] = q.float() * s
    return file, numbers


def whole(x: Tensor) -> Tensor:
    return x.max().reshape(1)


def rows(x: Tensor) -> Tensor:
    return x.amax(1, keepdim=True)


CODED: dict[str, tuple[torch.dtype, str, Callable[[Tensor], Tensor], State]] = {
    "ComfyUI": (F8, "scale_weight", whole, {"scaled_fp8": torch.zeros(2).to(F8)}),
    "LightX2V": (F8, "weight_scale", whole, {}),
    "a number": (F8, "weight_scale", lambda x: x.max(), {}),
    "rows": (F8, "weight_scale", rows, {}),
    "int8, rows": (I8, "weight_scale", rows, {}),
    "int8, flat rows": (I8, "weight_scale", rows, {}),
    "columns": (F8, "weight_scale", lambda x: x.amax(0, keepdim=True), {}),
    "e5m2": (E5, "scale_weight", whole, {}),
    "activations' scales too": (F8, "weight_scale", whole, {"blocks.0.ffn.0.input_scale": torch.ones(1)}),
    "plain scale": (I8, "scale", whole, {}),
    "quanto": (I8, "weight._scale", rows, {}),
    "blocks": (F8, "weight_scale_inv", lambda x: x.max().reshape(1, 1), {}),
}


@pytest.mark.parametrize("name", CODED)
def test_quantised_weights_are_their_numbers(name: str, official: State, tmp_path: Path) -> None:
    dtype, scale, over, more = CODED[name]
    file, numbers = coded(official, dtype, scale, over)
    save_file({**file, **more}, tmp_path / "a.safetensors")
    same(tmp_path / "a.safetensors", numbers)
    torch.save({"generator": prefixed({**file, **more})}, tmp_path / "a.pt")
    opened = open_network(tmp_path / "a.pt") if not more else None
    assert opened is None or set(opened.types.values()) == {"float32"}


def test_blocks_of_128_have_a_scale_each(tmp_path: Path) -> None:
    from nearstep.models.quantised import dequantised
    from nearstep.models.weights import open_weights

    q, s = torch.randn(130, 200).to(F8), torch.rand(2, 2)
    save_file({"x.weight": q, "x.weight_scale_inv": s}, tmp_path / "a.safetensors")
    value = dequantised(open_weights(tmp_path / "a.safetensors"))["x.weight"].float()
    for i, j in ((0, 0), (127, 127), (128, 0), (129, 199), (5, 128)):
        torch.testing.assert_close(value[i, j], q[i, j].float() * s[i // 128, j // 128], rtol=4e-3, atol=0)  # bfloat16


def test_narrow_floats_without_scales_are_numbers_as_they_stand(official: State, tmp_path: Path) -> None:
    narrow = {name: value.to(F8) if value.ndim == 2 else value for name, value in official.items()}
    save_file(narrow, tmp_path / "a.safetensors")
    same(tmp_path / "a.safetensors", {name: value.float() for name, value in narrow.items()})


Q = "blocks.0.self_attn.q.weight"
NOT_READ: dict[str, tuple[Callable[[State], State], str]] = {
    "int8 alone": (lambda s: {**s, Q: s[Q].to(I8)}, r"q\.weight is of int8, and its scale is not in the file"),
    "uint8": (lambda s: {**s, Q: s[Q].to(torch.uint8)}, r"q\.weight is of uint8"),
    "a scale missing": (lambda s: less(coded(s, F8, "weight_scale", whole)[0]), r"q\.weight has no scale"),
    "odd blocks": (lambda s: {**s, Q: s[Q].to(I8), Q + "_scale": torch.ones(5, 7)}, r"is \[5, 7\] for a weight of"),
    "bitsandbytes": (lambda s: {**s, Q + ".absmax": torch.ones(3)}, "belongs to bitsandbytes"),
    "GPTQ": (lambda s: {**s, "blocks.0.ffn.0.qweight": torch.ones(3)}, "belongs to GPTQ"),
    "nvfp4": (lambda s: {**s, Q + "_scale_2": torch.ones(3)}, "belongs to a packed"),
}  # fmt: skip


def less(state: State) -> State:
    return {name: value for name, value in state.items() if name != Q + "_scale"}


@pytest.mark.parametrize("name", NOT_READ)
def test_other_quantised_weights_are_refused_under_that_name(name: str, official: State, tmp_path: Path) -> None:
    make, message = NOT_READ[name]
    save_file(make(official), tmp_path / "a.safetensors")
    with pytest.raises(NearstepError, match=rf"a\.safetensors is quantised in a way that is not read: .*{message}"):
        open_network(tmp_path / "a.safetensors")


def test_gguf_is_refused_under_its_name(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(NearstepError, match=r"a\.gguf is quantised, as GGUF"):
        open_network(tmp_path / "a.gguf")
