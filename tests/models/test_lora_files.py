"""Adapter files as they are written elsewhere: every spelling and kind is its closed form, through every door."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from nearstep import CausalVideoPipeline, NearstepError, Student, VideoTransformer
from nearstep.cli.main import main
from nearstep.models.lora import Update
from nearstep.models.lora_choice import LoraFile, loras_of
from nearstep.models.lora_files import changes_in, open_lora, open_loras
from nearstep.models.wan import official_name

State = dict[str, Tensor]
RANK, WIDTH = 4, 32
LAYERS = [
    *(f"blocks.{i}.attn{a}.to_{p}" for i in range(2) for a in (1, 2) for p in ("q", "k", "v", "out.0")),
    *(f"blocks.{i}.ffn.net.{p}" for i in range(2) for p in ("0.proj", "2")),
]
Q = "blocks.1.attn1.to_q"


def draw(*shape: int, seed: int = 0) -> Tensor:
    return 0.2 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def plain(model_folder: Path) -> State:
    return load_file(model_folder / "transformer" / "diffusion_pytorch_model.safetensors")


def pairs() -> tuple[State, State]:
    down = {layer: draw(RANK, WIDTH, seed=i) for i, layer in enumerate(LAYERS)}
    return down, {layer: draw(WIDTH, RANK, seed=100 + i) for i, layer in enumerate(LAYERS)}


def official(layer: str) -> str:
    return official_name(f"{layer}.weight").removesuffix(".weight")


def spelled(name: Callable[[str], str], a: str, b: str, alpha: float | None = None) -> State:
    down, up = pairs()
    state = {f"{name(layer)}{a}": down[layer] for layer in LAYERS}
    state |= {f"{name(layer)}{b}": up[layer] for layer in LAYERS}
    return state | ({f"{name(layer)}.alpha": torch.tensor(alpha) for layer in LAYERS} if alpha else {})


PEFT, KOHYA = (".lora_A.weight", ".lora_B.weight"), (".lora_down.weight", ".lora_up.weight")


def flat(layer: str) -> str:
    return "lora_unet_" + official(layer).replace(".", "_")


SPELLINGS: dict[str, tuple[State, float]] = {
    "diffusers": (spelled(lambda n: f"transformer.{n}", *PEFT), 1),
    "ours, bare": (spelled(lambda n: n, *PEFT), 1),
    "official, bare, alpha": (spelled(official, *KOHYA, 8), 2),
    "peft": (spelled(lambda n: f"base_model.model.{official(n)}", *PEFT), 1),
    "peft around a wrapper": (spelled(lambda n: f"base_model.model.model.{official(n)}", *PEFT), 1),
    "an adapter's name": (spelled(lambda n: f"base_model.model.{n}", ".lora_A.mine.weight", ".lora_B.mine.weight"), 1),
    "adapter's name, no weight": (spelled(lambda n: n, ".lora_A.default", ".lora_B.default"), 1),
    "no weight": (spelled(official, ".lora_A", ".lora_B"), 1),
    "ComfyUI": (spelled(lambda n: f"diffusion_model.{official(n)}", *PEFT, 2), 0.5),
    "ComfyUI, ours inside": (spelled(lambda n: f"diffusion_model.{n}", *KOHYA, 2), 0.5),
    "two prefixes": (spelled(lambda n: f"model.diffusion_model.{official(n)}", *KOHYA), 1),
    "kohya": (spelled(flat, *KOHYA, 8), 2),
    "kohya, A and B": (spelled(flat, *PEFT, 8), 2),
    "kohya, ours": (spelled(lambda n: "lora_unet_" + n.replace(".", "_"), *KOHYA, 8), 2),
    "LyCORIS": (spelled(lambda n: "lycoris_" + official(n).replace(".", "_"), *KOHYA, 8), 2),
    "half renamed": (spelled(lambda n: "lora_unet_" + official(n).replace("blocks.", "blocks_"), *KOHYA, 8), 2),
    "DiffSynth": (spelled(lambda n: f"pipe.dit.{official(n)}", ".lora_A.default.weight", ".lora_B.default.weight"), 1),
    "old diffusers": (spelled(lambda n: f"transformer.{n.replace('to_out.0', 'to_out')}", "_lora.down.weight",
                              "_lora.up.weight"), 1),
    "FSDP": (spelled(lambda n: f"_fsdp_wrapped_module.{official(n)}", *PEFT), 1),
}  # fmt: skip


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling_is_the_same_update(name: str, plain: State) -> None:
    state, scale = SPELLINGS[name]
    changes, (down, up) = changes_in(state), pairs()
    assert changes.keys() == {f"{layer}.weight" for layer in LAYERS}
    for layer in LAYERS:
        expected = plain[f"{layer}.weight"] + scale * up[layer] @ down[layer]
        torch.testing.assert_close(
            changes[f"{layer}.weight"].merged(plain[f"{layer}.weight"]), expected, atol=1e-6, rtol=0
        )


@given(styles=st.lists(st.sampled_from([name for name in SPELLINGS]), min_size=len(LAYERS), max_size=len(LAYERS)))
def test_a_file_of_mixed_spellings_is_the_same_too(styles: list[str]) -> None:
    (down, _), state = pairs(), State()
    for layer, style in zip(LAYERS, styles, strict=True):
        own = [key for key, value in SPELLINGS[style][0].items() if value.ndim == 2 and torch.equal(value, down[layer])]
        stem = next(key for key in own)
        names = [*SPELLINGS[style][0]]
        keys = (stem, names[names.index(stem) + len(LAYERS)])
        state |= {key: SPELLINGS[style][0][key] for key in keys}
    assert changes_in(state).keys() == {f"{layer}.weight" for layer in LAYERS}


META = {"transformer.r": 4, "transformer.lora_alpha": 8}
NESTED = "lora_adapter_metadata"
SCALES: dict[str, tuple[dict[str, str] | None, dict | None, float]] = {
    "nothing stated": (None, None, 1),
    "diffusers": ({NESTED: json.dumps(META)}, None, 2),
    "diffusers, rslora": ({NESTED: json.dumps({**META, "transformer.use_rslora": True})}, None, 4),
    "diffusers, one layer's own": ({NESTED: json.dumps({**META, "transformer.alpha_pattern": {Q: 2}})}, None, 0.5),
    "diffusers, a pattern": ({NESTED: json.dumps({**META, "transformer.alpha_pattern": {"to_q": 2}})}, None, 0.5),
    "plain": ({"lora_alpha": "8", "rank": "4"}, None, 2),
    "kohya": ({"ss_network_alpha": "2.0", "ss_network_dim": "4"}, None, 0.5),
    "kohya, resized": ({"ss_network_alpha": "Dynamic", "ss_network_dim": "Dynamic"}, None, 1),
    "LyCORIS, rank-stabilised": ({"ss_network_alpha": "8", "ss_network_args": '{"rs_lora": "True"}'}, None, 4),
    "peft": (None, {"r": 4, "lora_alpha": 8}, 2),
    "peft, rslora": (None, {"r": 4, "lora_alpha": 8, "use_rslora": True}, 4),
    "peft, a pattern": (None, {"r": 4, "lora_alpha": 8, "alpha_pattern": {".*attn1.to_q": 4}}, 1),
    "metadata that says nothing of it": ({"format": "pt"}, {"r": 4, "lora_alpha": 8}, 2),
}


@pytest.mark.parametrize("name", SCALES)
def test_the_scale_is_the_one_that_the_file_states(name: str, plain: State, tmp_path: Path) -> None:
    metadata, config, scale = SCALES[name]
    a, b = draw(RANK, WIDTH), draw(WIDTH, RANK, seed=1)
    file = tmp_path / "adapter_model.safetensors"
    save_file({f"transformer.{Q}.lora_A.weight": a, f"transformer.{Q}.lora_B.weight": b}, file, metadata=metadata)
    if config:
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    weight = plain[f"{Q}.weight"]
    for strength, asked, expected in ((1, None, scale), (0.5, None, scale / 2)):
        change = open_lora(LoraFile(path=file, strength=strength, alpha=asked))[f"{Q}.weight"]
        torch.testing.assert_close(change.merged(weight), weight + expected * b @ a, atol=1e-6, rtol=0)
    root = "rslora" in name or "rank-stab" in name
    change = open_lora(LoraFile(path=file, alpha=12))[f"{Q}.weight"]
    torch.testing.assert_close(change.merged(weight), weight + 12 / (2 if root else 4) * b @ a, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("key", ["(", "*to_q", "^*", "[a-", "(?P<n>a)(?P<n>b)"])
def test_a_pattern_that_is_no_expression_is_named(key: str, tmp_path: Path) -> None:
    file = tmp_path / "adapter_model.safetensors"
    save_file({f"transformer.{Q}.lora_A.weight": A, f"transformer.{Q}.lora_B.weight": B}, file)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 8, "alpha_pattern": {key: 4}}))
    with pytest.raises(NearstepError, match=r"adapter_model\.safetensors: .* in its alpha_pattern is no expression"):
        open_lora(LoraFile(path=file))


def test_an_alpha_that_wins_says_so(model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    save_file(SPELLINGS["kohya"][0], tmp_path / "a.safetensors")
    arguments = ["convert", str(model_folder), str(tmp_path / "m"), "--lora", str(tmp_path / "a.safetensors")]
    assert main([*arguments, "--lora-alpha", "12"]) == 0
    assert "--lora-alpha 12 in place of 8, which" in capsys.readouterr().err


# --- kinds ----------------------------------------------------------------------------------------------------------


def dora(weight: Tensor, change: Tensor, magnitude: Tensor, dim: int) -> Tensor:
    changed = weight + change
    return magnitude * changed / changed.norm(dim=dim, keepdim=True)


A, B = draw(RANK, WIDTH), draw(WIDTH, RANK, seed=1)
PAIR = {f"{Q}.lora_A.weight": A, f"{Q}.lora_B.weight": B}
FACTORS = {f"{Q}.hada_w{i}_{side}": draw(*shape, seed=i) for i in (1, 2)
           for side, shape in (("a", (WIDTH, 3)), ("b", (3, WIDTH)))}  # fmt: skip
ROWS, COLUMNS = 1 + draw(WIDTH, 1).abs(), 1 + draw(1, WIDTH).abs()
W = f"{Q}.weight"
KINDS: dict[str, tuple[State, str, Callable[[Tensor], Tensor]]] = {
    "a bias of B": ({**PAIR, f"{Q}.lora_B.bias": torch.ones(WIDTH), f"{Q}.alpha": torch.tensor(8.0)}, f"{Q}.bias",
                    lambda w: w + 2),
    "diff_b": ({**PAIR, f"{Q}.diff_b": torch.ones(WIDTH)}, f"{Q}.bias", lambda w: w + 1),
    "diff": ({f"{Q}.diff": A.T @ A}, W, lambda w: w + A.T @ A),
    "diff beside a pair": ({**PAIR, f"{Q}.diff": torch.ones(WIDTH, WIDTH)}, W, lambda w: w + B @ A + 1),
    "diff of a norm": ({f"{Q[:-5]}.norm_q.diff": torch.ones(WIDTH)}, "blocks.1.attn1.norm_q.weight", lambda w: w + 1),
    "w_norm": ({f"{Q[:-5]}.norm_q.w_norm": torch.ones(WIDTH)}, "blocks.1.attn1.norm_q.weight", lambda w: w + 1),
    "modulation": ({"blocks.1.diff_m": torch.ones(1, 6, WIDTH)}, "blocks.1.scale_shift_table", lambda w: w + 1),
    "head": ({"head.modulation.diff": torch.ones(1, 2, WIDTH)}, "scale_shift_table", lambda w: w + 1),
    "a convolution": ({"patch_embedding.lora_A.weight": draw(3, 4, 1, 2, 2),
                       "patch_embedding.lora_B.weight": draw(WIDTH, 3, 1, 1, 1)}, "patch_embedding.weight",
                      lambda w: w + torch.einsum("or,rcthw->octhw", draw(WIDTH, 3, 1, 1, 1)[..., 0, 0, 0],
                                                 draw(3, 4, 1, 2, 2))),
    "DoRA": ({**PAIR, f"{Q}.lora_magnitude_vector": ROWS[:, 0].clone()}, W, lambda w: dora(w, B @ A, ROWS, 1)),
    "DoRA, kohya's rows": ({**PAIR, f"{Q}.dora_scale": ROWS}, W, lambda w: dora(w, B @ A, ROWS, 1)),
    "DoRA, kohya's columns": ({**PAIR, f"{Q}.dora_scale": COLUMNS}, W, lambda w: dora(w, B @ A, COLUMNS, 0)),
    "LoHa": ({**FACTORS, f"{Q}.alpha": torch.tensor(6.0)}, W,
             lambda w: w + 2 * (FACTORS[f"{Q}.hada_w1_a"] @ FACTORS[f"{Q}.hada_w1_b"])
             * (FACTORS[f"{Q}.hada_w2_a"] @ FACTORS[f"{Q}.hada_w2_b"])),
    "LoKr": ({f"{Q}.lokr_w1": draw(2, 4), f"{Q}.lokr_w2": draw(16, 8), f"{Q}.alpha": torch.tensor(9.0)}, W,
             lambda w: w + torch.kron(draw(2, 4), draw(16, 8))),
    "LoKr, low-rank": ({f"{Q}.lokr_w1": draw(2, 4), f"{Q}.lokr_w2_a": draw(16, 2), f"{Q}.lokr_w2_b": draw(2, 8),
                        f"{Q}.alpha": torch.tensor(4.0)}, W,
                       lambda w: w + 2 * torch.kron(draw(2, 4), draw(16, 2) @ draw(2, 8))),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_its_closed_form(kind: str, plain: State) -> None:
    state, name, expected = KINDS[kind]
    change = changes_in(state)[name]
    assert change.fits(plain[name].shape)
    torch.testing.assert_close(change.merged(plain[name]), expected(plain[name]), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", ["DoRA", "DoRA, kohya's columns", "LoKr", "LoHa"])
def test_half_a_strength_is_half_of_what_it_adds(kind: str, plain: State, tmp_path: Path) -> None:
    state, name, expected = KINDS[kind]
    save_file({key: value.clone() for key, value in state.items()}, tmp_path / "a.safetensors")
    half = open_lora(LoraFile.of(f"{tmp_path / 'a.safetensors'}:0.5"))[name].merged(plain[name])
    torch.testing.assert_close(half, (plain[name] + expected(plain[name])) / 2, atol=1e-6, rtol=1e-6)


REFUSED: dict[str, tuple[State, str]] = {
    "picture input": ({**PAIR, "blocks.0.cross_attn.k_img.lora_down.weight": A}, "picture input of an image-to-video"),
    "picture input, ours": ({"blocks.0.attn2.add_k_proj.lora_A.weight": A}, "picture input of an image-to-video"),
    "text encoder": ({**PAIR, "lora_te_text_model_x.lora_down.weight": A}, "changes the text encoder"),
    "second network": ({f"transformer_2.{Q}.lora_A.weight": A}, "second network, as Wan2.2 has"),
    "another model's": (
        {"double_blocks.0.img_attn.qkv.lora_A.weight": A},
        "no layer of a Wan2.1 text-to-video network",
    ),
    "OFT": ({f"{Q}.oft_blocks": A}, r"OFT \(orthogonal\)"),
    "Tucker": ({f"{Q}.lokr_t2": A}, "Tucker"),
    "IA3": ({f"{Q}.ia3_l": A}, "IA3"),
    "half a pair": ({f"{Q}.lora_A.weight": A}, f"{Q} has down and no partner"),
    "half a LoHa": ({f"{Q}.hada_w1_a": A}, "hada_w1_a of a LoHa and no partner"),
    "half a LoKr": ({f"{Q}.lokr_w1": A}, "lokr_w1 of a LoKr and no partner"),
    "alpha alone": ({f"{Q}.alpha": torch.tensor(1.0)}, "has an alpha and no partner"),
    "magnitude alone": ({f"{Q}.dora_scale": A}, "magnitude and no partner"),
    "whole weights": ({**PAIR, "proj_out.modules_to_save.weight": A}, "whole weights beside the LoRA"),
    "two adapters": ({**PAIR, f"transformer.{Q}.lora_A.b.weight": A}, "twice"),
    "no product": ({f"{Q}.lora_A.weight": A, f"{Q}.lora_B.weight": A}, "which have no product"),
    "no rank": ({f"{Q}.lora_A.weight": torch.ones(0, 32), f"{Q}.lora_B.weight": torch.ones(32, 0)}, "no product"),
    "flat pair": ({f"{Q}.lora_A.weight": torch.ones(4), f"{Q}.lora_B.weight": torch.ones(32, 4)}, "no product"),
    "alphas": ({**PAIR, f"{Q}.alpha": torch.ones(3)}, r"an alpha of \[3\]; it is one number"),
    "flat LoKr": ({f"{Q}.lokr_w1": torch.ones(3), f"{Q}.lokr_w2": A}, r"factors of \[3\] and .*; matrices are needed"),
    "LoHa of two sizes": ({**FACTORS, f"{Q}.hada_w2_a": FACTORS[f"{Q}.hada_w2_a"][:1]}, "which are not alike"),
    "LoHa": ({**FACTORS, f"{Q}.hada_w1_b": torch.ones(5, 32)}, "which have no product"),
    "quantised": ({f"{Q}.lora_A.weight": A.to(torch.int8), f"{Q}.lora_B.weight": B}, "quantised"),
    "NaN": ({f"{Q}.lora_A.weight": A * float("nan"), f"{Q}.lora_B.weight": B}, "NaN or inf"),
    "a network": ({W: A}, r"no part of a known kind"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_applied_is_named(name: str) -> None:
    state, message = REFUSED[name]
    with pytest.raises(NearstepError, match=message):
        changes_in(state)


@pytest.mark.parametrize("size", [(), (5,), (5, 1), (1, 5), (WIDTH, WIDTH)])
def test_a_magnitude_of_another_size_is_named(size: tuple[int, ...], tmp_path: Path, plain: State) -> None:
    save_file({**PAIR, f"{Q}.dora_scale": torch.ones(size)}, tmp_path / "a.safetensors")
    with pytest.raises(NearstepError, match=r"does not fit: it changes blocks\.1\.attn1\.to_q\.weight"):
        open_loras(loras_of(tmp_path), {name: value.shape for name, value in plain.items()})


def test_an_adapter_of_another_size_is_named(plain: State, tmp_path: Path) -> None:
    shapes: Mapping = {name: value.shape for name, value in plain.items()}
    wide = {f"{Q}.lora_A.weight": draw(4, 40), f"{Q}.lora_B.weight": draw(40, 4)}
    deep = {key.replace("blocks.1", "blocks.7"): value for key, value in PAIR.items()}
    for state, message in ((wide, r"changes blocks\.1\.attn1\.to_q\.weight of \[40, 40\], here it is \[32, 32\]"),
                           (deep, r"changes blocks\.7\.attn1\.to_q\.weight, and this network has none")):  # fmt: skip
        save_file(state, tmp_path / "a.safetensors")
        with pytest.raises(NearstepError, match=message):
            open_loras(loras_of(tmp_path), shapes)


# --- files and doors ------------------------------------------------------------------------------------------------


def test_files_folders_and_strengths_are_found(tmp_path: Path) -> None:
    file = tmp_path / "pytorch_lora_weights.safetensors"
    save_file(PAIR, file)
    save_file(PAIR, tmp_path / "other.safetensors")
    assert LoraFile.of(tmp_path) == LoraFile.of(file) == LoraFile(path=file)
    assert LoraFile.of(f"{file}:0.8") == LoraFile(path=file, strength=0.8)
    assert LoraFile.of(f"{tmp_path}:-1") == LoraFile(path=file, strength=-1)
    file.rename(tmp_path / "odd:2")
    assert LoraFile.of(str(tmp_path / "odd:2")).strength == 1  # a file's own name
    save_file(PAIR, tmp_path / "third.safetensors")
    for given_, message in (
        (tmp_path, "2 weights files"),
        (tmp_path / "no.pt", r"no adapter .*no\.pt"),
        (f"{file}:x", "no ad"),
    ):
        with pytest.raises(NearstepError, match=message):
            LoraFile.of(given_)
    for strength in ("nan", "inf"):
        with pytest.raises(NearstepError, match="finite number"):
            LoraFile.of(f"{tmp_path / 'third.safetensors'}:{strength}")


@pytest.mark.parametrize("role", ["generator_lora", "lora", "state_dict"])
def test_pickles_nest_it(role: str, tmp_path: Path) -> None:
    torch.save({role: PAIR, "critic_lora": {}, "step": 1}, tmp_path / "lora.pt")
    assert open_lora(LoraFile.of(tmp_path / "lora.pt")).keys() == {W}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two adapters that state their scales in different ways: 2 and 1/2."""
    folder = tmp_path_factory.mktemp("files")
    save_file(SPELLINGS["kohya"][0], folder / "a.safetensors")
    metadata = {NESTED: json.dumps({"transformer.lora_alpha": 2, "transformer.r": 4})}
    save_file(SPELLINGS["diffusers"][0], folder / "b.safetensors", metadata=metadata)
    return folder / "a.safetensors", folder / "b.safetensors"


def expected(plain: State, scale: float) -> State:
    down, up = pairs()
    return plain | {f"{n}.weight": plain[f"{n}.weight"] + scale * up[n] @ down[n] for n in LAYERS}


def same(network: VideoTransformer | State, wanted: State) -> None:
    state = network if isinstance(network, dict) else network.state_dict()
    assert state.keys() == wanted.keys()
    for name, value in state.items():
        torch.testing.assert_close(value, wanted[name], atol=1e-6, rtol=1e-6)


def test_every_door_merges_the_closed_form(
    model_folder: Path, files: tuple[Path, Path], plain: State, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    from nearstep.train.adapters import LoraFields, adapt, base, merged, start_from

    a, b = files
    assert main(["convert", str(model_folder), str(tmp_path / "m"), "--lora", f"{a}:0.8", str(b)]) == 0
    wanted = expected(plain, 0.8 * 2 + 0.5)
    same(load_file(tmp_path / "m" / "transformer" / "diffusion_pytorch_model.safetensors"), wanted)
    same(CausalVideoPipeline.from_pretrained(model_folder, lora=[f"{a}:0.8", b]).transformer, wanted)
    student = model_folder / "transformer" / "diffusion_pytorch_model.safetensors"
    options = {"student": Student(path=student), "lora": (f"{a}:0.8", str(b))}
    same(CausalVideoPipeline.from_pretrained(model_folder, **options).transformer, wanted)
    for file, scale in ((a, 2), (b, 0.5)):
        pipe = CausalVideoPipeline.from_pretrained(model_folder)
        pipe.load_lora_weights(file.parent, weight_name=file.name)
        pipe.fuse_lora()
        pipe.unload_lora_weights()
        same(pipe.transformer, expected(plain, scale))
        fields = LoraFields(lora_rank=RANK, lora_alpha=3, lora_start=file)
        net = base(VideoTransformer.from_pretrained(model_folder / "transformer"), torch.float32)
        same(merged(start_from(adapt(net, fields, "test"), fields).state_dict(), fields), expected(plain, scale))


def test_a_clip_says_which_adapters_made_it(model_folder: Path, files: tuple[Path, Path], tmp_path: Path) -> None:
    from nearstep.models.configs import ModelConfigs

    loras = loras_of([f"{files[0]}:0.8"])
    assert ModelConfigs.open(model_folder, loras=loras).origin["loras"] == [
        {"path": str(files[0]), "strength": 0.8, "alpha": None}
    ]
    assert main(["generate", "a ball", "--dry-run", "--model", str(model_folder), "--lora", str(tmp_path / "no.pt"),
                 "-o", str(tmp_path / "a.mp4")]) == 2  # fmt: skip


@pytest.mark.parametrize("kind", ["diff", "LoKr", "LoHa", "DoRA", "diff_b"])
def test_what_cannot_come_off_again_is_refused_by_its_kind(kind: str, model_folder: Path, tmp_path: Path) -> None:
    from nearstep.models.lora_peft import peft_adapter

    save_file({key: value.clone() for key, value in KINDS[kind][0].items()}, tmp_path / "a.safetensors")
    word = {"diff_b": "difference", "diff": "difference"}.get(kind, kind)
    with pytest.raises(NearstepError, match=rf"changed by a? ?{word}.*merge this one"):
        peft_adapter(tmp_path / "a.safetensors", {})


def test_ranks_may_differ_between_layers(model_folder: Path, plain: State, tmp_path: Path) -> None:
    other = "blocks.0.ffn.net.2"
    state = {**PAIR, f"{other}.lora_A.weight": draw(7, WIDTH), f"{other}.lora_B.weight": draw(WIDTH, 7)}
    save_file(state, tmp_path / "a.safetensors")
    pipe = CausalVideoPipeline.from_pretrained(model_folder)
    pipe.load_lora_weights(tmp_path / "a.safetensors")
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    both = {W: plain[W] + B @ A, f"{other}.weight": plain[f"{other}.weight"] + draw(WIDTH, 7) @ draw(7, WIDTH)}
    same(pipe.transformer, plain | both)


def test_finite_factors_whose_product_is_not_are_refused_by_the_weights_name(tmp_path: Path) -> None:
    change = Update(down=torch.full((2, 4), 1e30), up=torch.full((4, 2), 1e30))
    with pytest.raises(NearstepError, match="blocks.0.q with its LoRA holds NaN or infinity in float32"):
        change.merged_into("blocks.0.q", torch.zeros(4, 4))
    half = Update(down=torch.full((2, 4), 300.0), up=torch.full((4, 2), 300.0))
    assert half.merged_into("blocks.0.q", torch.zeros(4, 4)).isfinite().all()
    with pytest.raises(NearstepError, match="in float16"):
        half.merged_into("blocks.0.q", torch.zeros(4, 4), torch.float16)
