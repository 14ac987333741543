"""Eight-bit linear layers: their numbers, what is multiplied with them, and that nothing else changes them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from nearstep import CausalVideoPipeline, NearstepError, VideoTransformer
from nearstep.cli.main import main
from nearstep.models.folder import read_json
from nearstep.models.loading import load_student
from nearstep.models.student import Student
from nearstep.nets.cache import KVCache
from nearstep.nets.fp8 import FACTOR, FP8, by_rows, packed, product, unpacked
from nearstep.nets.fp8_layers import Fp8, Fp8Linear, InLayers, find_fp8, to_fp8
from nearstep.nets.transformer import linear_layers
from nearstep.reach import Reach

HOW: tuple[InLayers, ...] = ("weights", "products")
SIZES = dict(
    patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, text_dim=16,
    freq_dim=16, ffn_dim=48, num_layers=2,
)  # fmt: skip


def network() -> VideoTransformer:
    return VideoTransformer(**SIZES).eval().requires_grad_(False)


def wide(layer: Fp8Linear) -> Tensor:
    return layer.weight.float() * layer.scale


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(2, 3, 4, 4, 4), torch.rand(2, 3), torch.randn(2, 5, 16)


# --- numbers --------------------------------------------------------------------------------------------------------


@given(power=st.integers(-30, 30), rows=st.integers(1, 5), columns=st.integers(1, 40))
def test_a_row_keeps_three_bits_of_its_large_numbers(power: int, rows: int, columns: int) -> None:
    x = torch.randn(rows, columns) * 2.0 ** (power + torch.arange(rows)[:, None])
    q, s = by_rows(x)
    assert (q.dtype, q.shape, s.shape) == (FP8, x.shape, (rows, 1))
    assert (q.float().abs().amax(1) == 448).all()
    error = (q.float() * s - x).abs()
    assert (error <= x.abs() * 2**-4 * (1 + 1e-5) + s * 2**-10).all()  # half a last place; under 2^-6 s a fixed one


def test_nothing_stays_nothing_and_what_is_not_finite_shows() -> None:
    q, s = by_rows(torch.tensor([[0.0, -0.0], [1e-44, 0.0], [1.0, float("nan")], [float("inf"), 1.0]]))
    assert not (q.float() * s)[:2].any()
    assert (q.float() * s)[2:].isnan().any(1).all()


def test_a_product_is_that_of_its_rounded_factors() -> None:
    x, weight = by_rows(torch.randn(33, 64)), by_rows(torch.randn(48, 64))
    wanted = (x[0].double() * x[1]) @ (weight[0].double() * weight[1]).t()
    made = product(x, weight)
    assert made.dtype == torch.bfloat16
    torch.testing.assert_close(made.double(), wanted, rtol=2**-8, atol=2**-8 * float(wanted.std()))


def test_the_error_of_a_layer_on_normal_numbers() -> None:
    layer, x = nn.Linear(512, 512, bias=False), torch.randn(256, 512)
    nn.init.normal_(layer.weight)
    exact = layer(x).detach()
    errors = [float((Fp8Linear(layer, how)(x).detach() - exact).norm() / exact.norm()) for how in HOW]
    assert errors == pytest.approx([0.026, 0.037], abs=0.001)


# --- networks -------------------------------------------------------------------------------------------------------


def test_the_layers_are_those_of_the_blocks() -> None:
    net = network()
    names = linear_layers(net)
    assert len(names) == 2 * (4 + 4 + 2) and all(name.startswith("blocks.") for name in names)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    to_fp8(net, "weights")
    assert linear_layers(net) == names
    for name, value in net.state_dict().items():
        if name.removesuffix(".weight").removesuffix(".scale") not in names:
            assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_in_eight_bits_compute_what_their_numbers_do(dtype: torch.dtype) -> None:
    net = network()
    narrow, other = to_fp8(copy.deepcopy(net), "weights").to(dtype), net
    for name in linear_layers(narrow):
        layer = narrow.get_submodule(name)
        assert isinstance(layer, Fp8Linear)
        other.get_submodule(name).weight.copy_(wide(layer))
    other.to(dtype)
    x, t, text = (part.to(dtype) for part in inputs())
    assert torch.equal(narrow(x, t, text), other(x, t, text))


def test_products_in_eight_bits_round_their_inputs_too() -> None:
    layer = nn.Linear(32, 48)
    narrow, x = Fp8Linear(layer, "products"), torch.randn(2, 3, 32)
    q, s = by_rows(x.flatten(0, 1))
    wanted = (q.float() * s @ wide(narrow).t()).unflatten(0, (2, 3)) + layer.bias
    torch.testing.assert_close(narrow(x), wanted, rtol=2**-7, atol=2**-7)
    net, (x, t, text) = network(), inputs()
    exact, rounded = net(x, t, text), to_fp8(net, "products")(x, t, text)
    assert 1e-3 < (exact - rounded).norm() / exact.norm() < 0.1


MOVES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "to half": lambda net: net.half(),
    "to bfloat16": lambda net: net.to(torch.bfloat16),
    "to float64": lambda net: net.double(),
    "there and back": lambda net: net.to(torch.bfloat16).float(),
    "copied": copy.deepcopy,
    "on the CPU": lambda net: net.to("cpu"),
    "on the CPU in half": lambda net: net.to("cpu", torch.float16),
}


@pytest.mark.parametrize("move", MOVES)
def test_no_move_changes_the_numbers(move: str) -> None:
    narrow = to_fp8(network(), "weights")
    held = {name: value.clone() for name, value in narrow.state_dict().items()}
    moved = MOVES[move](narrow)
    for name in linear_layers(moved):
        layer = moved.get_submodule(name)
        assert layer.weight.dtype == FP8 and layer.scale.dtype == torch.float32
        assert torch.equal(layer.weight.float(), held[f"{name}.weight"].float())
        assert torch.equal(layer.scale, held[f"{name}.scale"])
    assert to_fp8(network(), "weights").to("meta").blocks[0].attn1.to_q.weight.dtype == FP8


# --- the cache ------------------------------------------------------------------------------------------------------


@given(
    rows=st.integers(1, 6), columns=st.sampled_from([4, 8, 128]), dtype=st.sampled_from([torch.float32, torch.bfloat16])
)
def test_packed_rows_are_their_numbers_and_their_factor(rows: int, columns: int, dtype: torch.dtype) -> None:
    x = torch.randn(2, rows, 3, columns).to(dtype)
    held = packed(x)
    assert (held.dtype, held.shape) == (torch.uint8, (*x.shape[:-1], columns + FACTOR))
    q, s = by_rows(x)
    for part in (held, held[:, ::2], held.transpose(1, 2).contiguous().transpose(1, 2)):
        wanted = (q.float() * s).to(dtype)[:, :: 2 if part.shape[1] < rows else 1]
        assert torch.equal(unpacked(part, dtype), wanted)
    assert torch.equal(packed(unpacked(held, torch.float32)), held)  # what was rounded is not rounded again


@pytest.mark.parametrize("reach", [Reach(), Reach(window=4), Reach(window=4, sink=1)])
def test_an_eight_bit_cache_holds_what_a_wide_one_holds_of_rounded_numbers(reach: Reach) -> None:
    sizes = dict(layers=2, batch=2, capacity_frames=12, tokens_per_frame=3, heads=2, head_dim=8, reach=reach)
    narrow, wide = KVCache(**sizes, fp8=True), KVCache(**sizes)
    for start in range(0, 12, 2):
        layers = [(torch.randn(2, 6, 2, 8), torch.randn(2, 6, 2, 8)) for _ in range(2)]
        if start == 6:
            narrow, wide = narrow.branch(), wide.branch()
        narrow.commit(start, layers)
        wide.commit(start, [tuple(unpacked(packed(part), torch.float32) for part in layer) for layer in layers])
        assert narrow.positions == wide.positions
        slots = wide.find(wide.positions)
        for layer in range(2):
            ours, theirs = narrow.read(layer, slots, frames=1), wide.read(layer, slots, frames=13)
            assert torch.equal(ours.keys, theirs.keys) and torch.equal(ours.values, theirs.values)
            assert not ours.room
    size = sum(buffer.nbytes for buffer in (*narrow.keys, *narrow.values))
    assert size * 8 * 4 == sum(buffer.nbytes for buffer in (*wide.keys, *wide.values)) * (8 + FACTOR)


def test_a_sink_that_moves_is_rounded_once_from_what_was_committed() -> None:
    reach = Reach(window=4, sink=1, relative_sink=True)
    sizes = dict(layers=1, batch=1, capacity_frames=8, tokens_per_frame=3, heads=2, head_dim=8, reach=reach)
    narrow, wide = KVCache(**sizes, fp8=True), KVCache(**sizes)
    for start in range(0, 20, 2):
        layers = [(torch.randn(1, 6, 2, 8), torch.randn(1, 6, 2, 8))]
        narrow.commit(start, layers)
        wide.commit(start, layers)
    assert narrow.sink_shift == wide.sink_shift > 0
    slots = wide.find(wide.positions)
    ours, theirs = narrow.read(0, slots, frames=1).keys, wide.read(0, slots, frames=1).keys
    sink = slice(0, 3)
    assert (ours[:, sink] - theirs[:, sink]).norm() < 0.05 * theirs[:, sink].norm()


def test_a_network_reads_an_eight_bit_cache_in_its_own_type(model_folder: Path) -> None:
    pipes = {
        fp8: CausalVideoPipeline.from_pretrained(model_folder, fp8=fp8) for fp8 in (None, "cache", ("weights", "cache"))
    }
    clips = {fp8: pipe("a small red ball", seed=3, output_type="pt").frames for fp8, pipe in pipes.items()}
    usual, rounded = clips[None], clips["cache"]
    chunk = pipes[None].configs.transformer["chunk_frames"]
    first = 1 + 4 * (chunk - 1)
    assert torch.equal(usual[:, :first], rounded[:, :first])  # the first chunk reads no cache
    assert not torch.equal(usual, rounded)
    assert (usual - rounded).abs().mean() < 0.02
    network = pipes["cache"].transformer
    assert network.new_cache(1, 4, 4, 4).fp8 and not network.new_cache(1, 4, 4, 4, append_only=True).fp8
    assert isinstance(pipes["weights", "cache"].transformer.blocks[0].attn1.to_q, Fp8Linear)
    with pipes["cache"].open("a small red ball", seed=3, window=4) as session:
        assert [chunk.video.isfinite().all() for chunk, _ in zip(session, range(6), strict=False)]


# --- files ----------------------------------------------------------------------------------------------------------


def coded(state: dict[str, Tensor], scale: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    file = dict(state)
    for name, value in state.items():
        if value.ndim == 2 and name.startswith("blocks."):
            s = scale(value.abs())
            file |= {name: (value / s).to(FP8), f"{name.removesuffix('weight')}weight_scale": s}
    return file


SCALES: dict[str, Callable[[Tensor], Tensor]] = {
    "one": lambda x: (x.max() / 448).reshape(1),
    "not at its largest": lambda x: (x.max() / 100).reshape(()),
    "rows": lambda x: x.amax(1, keepdim=True) / 448,
}


@pytest.mark.parametrize("scale", SCALES)
def test_a_file_in_eight_bits_is_loaded_as_it_is(scale: str, model_folder: Path, tmp_path: Path) -> None:
    net = VideoTransformer.from_pretrained(model_folder / "transformer")
    file = coded(net.state_dict(), SCALES[scale])
    save_file(file, tmp_path / "a.safetensors")
    config = read_json(model_folder / "transformer" / "config.json")
    loaded = load_student(Student(path=tmp_path / "a.safetensors"), config, fp8=Fp8(layers="weights"))
    for name in linear_layers(loaded):
        layer = loaded.get_submodule(name)
        assert isinstance(layer, Fp8Linear)
        assert torch.equal(layer.weight.view(torch.uint8), file[f"{name}.weight"].view(torch.uint8))
        assert torch.equal(layer.scale, file[f"{name}.weight_scale"].reshape(-1, 1).expand_as(layer.scale))
    numbers = load_student(Student(path=tmp_path / "a.safetensors"), config)
    x, t, text = inputs()
    torch.testing.assert_close(loaded(x, t, text), numbers(x, t, text))


@pytest.mark.parametrize("how", HOW)
def test_every_door_puts_a_network_into_eight_bits(how: InLayers, model_folder: Path) -> None:
    student = Student(path=model_folder / "transformer" / "diffusion_pytorch_model.safetensors")
    wanted = to_fp8(VideoTransformer.from_pretrained(model_folder / "transformer"), how).state_dict()
    for options in ({}, {"student": student}):
        pipe = CausalVideoPipeline.from_pretrained(model_folder, fp8=how, **options)
        state = pipe.transformer.state_dict()
        assert state.keys() == wanted.keys()
        assert all(torch.equal(state[name].float(), wanted[name].float()) for name in wanted)
        clip = pipe("a small red ball slides left", seed=3, output_type="pt").frames
        assert clip.isfinite().all()


def test_the_command_line_takes_it(model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    command = ["generate", "a small ball", "--model", str(model_folder), "--output", str(tmp_path / "a.mp4")]
    assert main([*command, "--fp8", "weights", "cache"]) == 0
    assert "network in float32, its layers' weights in fp8, its cache in fp8, decoder" in capsys.readouterr().err
    assert (tmp_path / "a.mp4").exists()
    assert main([*command, "--fp8", "cache", "weights"]) == 0  # the same clip, which is there
    for other in ([], ["--fp8", "cache"]):
        assert main([*command, *other]) == 2
        assert "shows something else (fp8 " in capsys.readouterr().err
    assert main([*command, "--fp8", "int4"]) == 2
    assert "--fp8" in capsys.readouterr().err


# --- refusals -------------------------------------------------------------------------------------------------------


def test_what_cannot_be_is_refused_before_anything_is_loaded(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for asked in ("int8", ["cache", "int8"]):
        with pytest.raises(NearstepError, match=r"fp8='int8'; use 'weights', 'products', 'cache', or leave it out"):
            CausalVideoPipeline.from_pretrained(tmp_path / "nothing here", fp8=asked)
    assert find_fp8(None, None) is find_fp8((), torch.device("mps")) is None
    assert find_fp8(["cache", "products", "weights"], None) == Fp8(layers="products", cache=True)
    with pytest.raises(NearstepError, match=r"runs on CUDA and on CPUs, and not on mps"):
        find_fp8("weights", torch.device("mps"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 6))
    assert find_fp8("weights", torch.device("cuda")) == Fp8(layers="weights")
    assert find_fp8("cache", torch.device("cuda")) == Fp8(cache=True)
    with pytest.raises(NearstepError, match=r"needs a card of compute capability 8\.9 .* cuda is of 8\.6; use fp8='w"):
        find_fp8("products", torch.device("cuda"))
    narrow = VideoTransformer(**{**SIZES, "attention_head_dim": 12})
    with pytest.raises(NearstepError, match=r"multiples of 16, and blocks\.0\.attn1\.to_q is 24 -> 24; use fp8='w"):
        to_fp8(narrow, "products")
    assert isinstance(to_fp8(narrow, "weights").blocks[0].attn1.to_q, Fp8Linear)


def test_what_needs_wide_numbers_is_refused(model_folder: Path, tmp_path: Path) -> None:
    pipe = CausalVideoPipeline.from_pretrained(model_folder, fp8="weights")
    with pytest.raises(NearstepError, match=r"in eight bits cannot be saved; load it without fp8"):
        pipe.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    with pytest.raises(NearstepError, match=r"cannot be given adapters that come off; lora= merges them"):
        pipe.load_lora_weights(tmp_path)


def test_damaged_numbers_are_found(model_folder: Path, tmp_path: Path) -> None:
    state = VideoTransformer.from_pretrained(model_folder / "transformer").state_dict()
    state["blocks.1.ffn.net.2.weight"][3, 4] = float("nan")
    save_file(state, tmp_path / "a.safetensors")
    with pytest.raises(NearstepError, match=r"blocks\.1\.ffn\.net\.2\.\w+ holds NaN"):
        CausalVideoPipeline.from_pretrained(model_folder, student=tmp_path / "a.safetensors", fp8="weights")


def test_layers_are_offloaded_as_they_are(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = CausalVideoPipeline.from_pretrained(model_folder, fp8="weights")
    usual = pipe("a ball", seed=1, output_type="pt").frames
    accelerate = pytest.importorskip("accelerate")
    accelerate.cpu_offload(pipe.transformer, execution_device=torch.device("cpu"))
    assert torch.equal(pipe("a ball", seed=1, output_type="pt").frames, usual)
