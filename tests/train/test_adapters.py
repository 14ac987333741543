"""Adapters and the weights they stand on: what is computed, what trains, what is shared, what a file holds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nearstep.errors import NearstepError
from nearstep.models.lora_files import changes_in
from nearstep.nets.transformer import VideoTransformer, linear_layers
from nearstep.train import adapters as lora
from nearstep.train.adapters import LoraFields, adapt, adapted_layers, base, merged, start_from, write_adapter
from nearstep.train.ema import Ema
from nearstep.train.frozen import Trained, twin, view
from nearstep.train.optim import OptimConfig, Optimizer

SIZES = dict(num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, text_dim=16, freq_dim=16,
             ffn_dim=48, num_layers=2)  # fmt: skip
RANK = 3
FIELDS = LoraFields(lora_rank=RANK, lora_alpha=6)


def network(seed: int = 0) -> VideoTransformer:
    torch.manual_seed(seed)
    return VideoTransformer(**SIZES).eval()


def call(net: VideoTransformer) -> torch.Tensor:
    draw = torch.Generator().manual_seed(5)
    x, text = torch.randn(2, 3, 4, 4, 4, generator=draw), torch.randn(2, 6, 16, generator=draw)
    return net(x, torch.tensor([0.9, 0.3]), text)


def trained(net: VideoTransformer) -> VideoTransformer:
    """After some steps of an optimizer."""
    optimizer = Optimizer([net], OptimConfig(lr=0.02, warmup=1, decay=0.0), 100)
    for index in range(5):
        optimizer.step(call(net).square().mean(), index)
    return net


def plain(state: dict[str, torch.Tensor]) -> VideoTransformer:
    net = VideoTransformer(**SIZES).eval()
    net.load_state_dict(state)
    return net


def test_a_new_adapter_changes_no_bit():
    expected = call(network())
    assert torch.equal(call(adapt(base(network(), torch.float32), FIELDS, "test")), expected)


def test_the_draw_is_named():
    one, same, other = (adapt(base(network(), torch.float32), FIELDS, name) for name in ("a", "a", "b"))
    first, second, third = (net.blocks[0].attn1.to_q.lora_A["default"].weight for net in (one, same, other))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
    assert first.abs().max() <= 32**-0.5


def test_adapters_alone_train_on_every_linear_layer_of_every_block():
    net = adapt(base(network(), torch.float32), FIELDS, "test")
    before = {name: value.clone() for name, value in net.state_dict().items()}
    trained(net)
    moved = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    linear = {name for name, layer in network().named_modules() if isinstance(layer, torch.nn.Linear)}
    blocks = {name for name in linear if name.startswith("blocks.")}
    assert len(blocks) == 2 * 10
    assert moved == {f"{name}.lora_{part}.default.weight" for name in blocks for part in "AB"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merged_is_what_the_adapted_network_computes(dtype: torch.dtype):
    net = trained(adapt(base(network(), dtype), FIELDS, "test"))
    state = merged(net.state_dict(), FIELDS)
    assert {value.dtype for value in state.values()} == {torch.float32}
    assert (call(net) - call(network())).abs().max() > 1e-2
    torch.testing.assert_close(call(plain(state)), call(net), atol=1e-5, rtol=1e-5)


def test_at_full_rank_an_adapter_is_any_other_network(tmp_path: Path):
    """Nothing is lost but rank: A = I, B = W' - W takes one network's blocks to another's."""
    one, other = network(), network(1)
    layers, state = linear_layers(one), {}
    with torch.no_grad():
        for name, value in other.state_dict().items():  # but for the layers they are the same
            if name.removesuffix(".weight") not in layers:
                one.state_dict()[name].copy_(value)
        for name in layers:
            delta = other.get_submodule(name).weight - one.get_submodule(name).weight
            rows = min(48, delta.shape[1])
            state[f"{name}.lora_A.weight"] = torch.eye(48)[:, : delta.shape[1]].contiguous()
            state[f"{name}.lora_B.weight"] = torch.zeros(delta.shape[0], 48)
            state[f"{name}.lora_B.weight"][:, :rows] = delta
    save_file(state, tmp_path / lora.FILE)
    fields = LoraFields(lora_rank=48, lora_alpha=24, lora_start=tmp_path)
    net = start_from(adapt(base(one, torch.float32), fields, "test"), fields)
    torch.testing.assert_close(call(net), call(other), atol=1e-5, rtol=1e-5)


def test_a_narrow_base_computes_in_float32_and_under_autocast():
    held, rounded = base(network(), torch.bfloat16), network()
    for name in linear_layers(rounded):
        layer = rounded.get_submodule(name)
        layer.weight.data = layer.weight.data.bfloat16().float()
        assert held.get_submodule(name).weight.dtype == torch.bfloat16
    with torch.no_grad():
        assert torch.equal(call(held), call(rounded))
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(call(held), call(rounded))


def test_a_twin_shares_what_is_frozen_and_learns_alone():
    teacher = base(network(), torch.float32)
    assistant = adapt(twin(teacher), FIELDS, "assistant")
    student = adapt(twin(teacher), FIELDS, "student")
    where = {p.data_ptr() for p in teacher.parameters()}
    for net in (assistant, student):
        assert {p.data_ptr() for p in net.parameters() if not p.requires_grad} == where
    before, expected = call(student), call(teacher)
    trained(assistant)
    assert torch.equal(call(teacher), expected)
    assert torch.equal(call(student), before)
    assert not torch.equal(call(assistant), expected)


def test_an_average_copies_adapters_alone_and_saves_them_alone():
    net = adapt(base(network(), torch.float32), FIELDS, "test")
    ema, layers = Ema(net, 0.5), set(linear_layers(network()))
    own = {p.data_ptr() for p in ema.module.parameters()} - {p.data_ptr() for p in net.parameters()}
    assert len(own) == 2 * len(layers)
    start = {name: value.clone() for name, value in ema.state_dict()["module"].items()}
    assert start.keys() == Trained(net).state_dict().keys()
    assert all(".lora_" in name for name in start)
    trained(net)
    ema.update(net)
    for name, value in ema.state_dict()["module"].items():  # the first decay is a tenth
        torch.testing.assert_close(value, 0.1 * start[name] + 0.9 * net.state_dict()[name])
    again = Ema(adapt(base(network(), torch.float32), FIELDS, "test"), 0.5)
    again.load_state_dict(ema.state_dict())
    assert torch.equal(call(again.module), call(ema.module))
    assert again.updates == 1


def test_a_view_holds_no_second_copy():
    net = network()
    seen = view(net)
    assert {p.data_ptr() for p in seen.parameters()} == {p.data_ptr() for p in net.parameters()}
    assert not any(p.requires_grad for p in seen.parameters())
    assert all(p.requires_grad for p in net.parameters())


def test_bytes_that_training_adds():
    """float32 weight, gradient and two moments: 16 bytes for each of r (inputs + outputs) numbers a layer."""
    net = adapt(base(network(), torch.bfloat16), FIELDS, "test")
    optimizer = Optimizer([net], OptimConfig(lr=1e-3), 10)
    call(net).sum().backward()
    tensors = [*optimizer.parameters, *(p.grad for p in optimizer.parameters)]
    tensors += [value for state in optimizer.state_dict().values() for value in state.values() if value.ndim]
    layers = [network().get_submodule(name) for name in linear_layers(network())]
    expected = 16 * RANK * sum(layer.in_features + layer.out_features for layer in layers)
    assert sum(tensor.numel() * tensor.element_size() for tensor in tensors) == expected


def test_a_file_goes_there_and_back_and_needs_no_alpha(tmp_path: Path):
    net = trained(adapt(base(network(), torch.float32), FIELDS, "test"))
    write_adapter(net.state_dict(), FIELDS, tmp_path)
    stored = load_file(tmp_path / lora.FILE)
    assert set(stored) == {
        f"transformer.{layer}.lora_{part}.weight" for layer in adapted_layers(net.state_dict()) for part in "AB"
    }
    updates, state = changes_in(stored), network().state_dict()
    state = {name: updates[name].merged(value) if name in updates else value for name, value in state.items()}
    torch.testing.assert_close(call(plain(state)), call(net), atol=1e-5, rtol=1e-5)
    fields = LoraFields(lora_rank=RANK, lora_alpha=1, lora_start=tmp_path / lora.FILE)
    again = start_from(adapt(base(network(), torch.float32), fields, "other"), fields)
    torch.testing.assert_close(call(again), call(net), atol=1e-5, rtol=1e-5)


def test_diffusers_loads_it_by_itself(tmp_path: Path):
    net = trained(adapt(base(network(), torch.float32), FIELDS, "test"))
    write_adapter(net.state_dict(), FIELDS, tmp_path)
    theirs = network()
    theirs.load_lora_adapter(tmp_path, weight_name=lora.FILE)
    torch.testing.assert_close(call(theirs), call(net), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lora_alpha": 8.0}, "belong to an adapter"),
        ({"lora_start": Path("x")}, "belong to an adapter"),
        ({"lora_rank": 0}, "lora_rank=0; give at least 1"),
        ({"lora_rank": 4, "lora_alpha": -1.0}, "lora_alpha=-1.0; give a number above 0"),
        ({"lora_rank": 4, "lora_start": Path("nowhere")}, "no adapter nowhere/pytorch_lora_weights.safetensors"),
    ],
)
def test_wrong_fields_are_named(given: dict, message: str):
    with pytest.raises(NearstepError, match=message):
        LoraFields(**given)


def test_a_missing_peft_is_named_before_anything_is_read(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lora, "find_spec", lambda _: None)
    with pytest.raises(NearstepError, match=r"pip install 'nearstep\[lora\]'"):
        LoraFields(lora_rank=4)


def test_an_adapter_of_another_rank_is_named_from_its_header(tmp_path: Path):
    write_adapter(adapt(base(network(), torch.float32), FIELDS, "test").state_dict(), FIELDS, tmp_path)
    with pytest.raises(NearstepError, match=r"is of rank 3; lora_rank=5 goes on from its own rank only"):
        LoraFields(lora_rank=5, lora_start=tmp_path)
    save_file({"conv.weight": torch.zeros(1)}, tmp_path / lora.FILE)
    with pytest.raises(NearstepError, match=r"cannot use 'conv\.weight': it is no part of a known kind"):
        LoraFields(lora_rank=5, lora_start=tmp_path)
    (tmp_path / lora.FILE).write_bytes(b"x")
    with pytest.raises(NearstepError, match="no whole safetensors file"):
        LoraFields(lora_rank=5, lora_start=tmp_path)


def test_an_adapter_of_another_network_is_named(tmp_path: Path):
    write_adapter(adapt(base(network(), torch.float32), FIELDS, "test").state_dict(), FIELDS, tmp_path)
    stored = load_file(tmp_path / lora.FILE)
    fields = LoraFields(lora_rank=RANK, lora_start=tmp_path)
    for changed, message in (
        ({name: value for name, value in stored.items() if "ffn" not in name}, r"they differ in blocks\.0\.ffn"),
        ({name: value[..., :8].contiguous() for name, value in stored.items()}, "has another shape here"),
    ):
        save_file(changed, tmp_path / lora.FILE)
        with pytest.raises(NearstepError, match=message):
            start_from(adapt(base(network(), torch.float32), fields, "test"), fields)
