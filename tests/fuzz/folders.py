"""Files of a model folder, and weights that go into one, gone wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

from tests.fuzz.cases import Case, command
from tests.fuzz.damage import (
    Damage,
    bytes_gone_wrong,
    header_gone_wrong,
    json_gone_wrong,
    numbers_gone_wrong,
    payload,
)
from tests.fuzz.kit import Kit, put
from tests.tiny import PROMPT

CONFIGS = {
    "model index": "model_index.json",
    "transformer config": "transformer/config.json",
    "codec config": "vae/config.json",
    "text config": "text_encoder/config.json",
    "scheduler config": "scheduler/scheduler_config.json",
    "tokenizer": "tokenizer/tokenizer.json",
    "tokenizer config": "tokenizer/tokenizer_config.json",
}
WEIGHTS = (
    *("transformer/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors"),
    "text_encoder/model.safetensors",
)


def config(name: str) -> Callable[[Random, Kit, Path], Case]:
    """Cases of one of the JSON files of a model folder."""

    def case(draw: Random, kit: Kit, folder: Path) -> Case:
        model, file = kit.copy_of(kit.model, folder, *CONFIGS[name].split("/"))
        damage = json_gone_wrong(draw, file.read_bytes())
        put(file, damage)
        if draw.random() < 0.25:
            other = draw.choice(
                (["info", model], ["convert", model, "out"], ["convert", model, "o", "--to", "official"])
            )
            return Case(what=f"{other[0]}: {damage.what}", act=lambda: command(*other))
        return _same_picture(kit, damage, lambda: kit.generate(folder, model=model))

    return case


def _same_picture(kit: Kit, damage: Damage, act: Callable[[], bytes], whole: bytes | None = None) -> Case:
    return Case(
        what=damage.what,
        act=act,
        judge=lambda made: "another picture came of it" if damage.never and made != (whole or kit.picture) else None,
    )


def header(draw: Random, kit: Kit, folder: Path) -> Case:
    """The header of a weights file, or the file as a whole."""
    model, file = kit.copy_of(kit.model, folder, *draw.choice(WEIGHTS).split("/"))
    whole = file.read_bytes()
    length = 8 + int.from_bytes(whole[:8], "little")
    if draw.random() < 0.6:
        damage = header_gone_wrong(draw, whole)
    else:  # among the numbers, bits may be anything
        wrong = bytes_gone_wrong(draw, whole[:length] if draw.random() < 0.5 else whole)
        grown = wrong.data + whole[length:] if len(wrong.data) <= length else wrong.data
        damage = Damage(wrong.what, grown, never=len(grown) != len(whole))
    put(file, damage)
    if draw.random() < 0.3:
        return Case(what=f"convert: {damage.what}", act=lambda: command("convert", model, "out"))
    return _same_picture(kit, damage, lambda: kit.generate(folder, model=model))


def numbers(draw: Random, kit: Kit, folder: Path) -> Case:
    """Weights that are not finite, through every command that uses them."""
    name = draw.choice(WEIGHTS)
    model, file = kit.copy_of(kit.model, folder, *name.split("/"))
    damage = numbers_gone_wrong(draw, file)
    put(file, damage)
    lines: dict[str, list[object]] = {
        "generate": ["generate", PROMPT, "--model", model, "--plan", 1, "--frames", 5, "-o", "x.png"],
        "stream": ["stream", PROMPT, "--model", model, "--plan", 1, "--chunks", 1, "-o", "x.mp4"],
        "convert": ["convert", model, "out"],
        "calibrate": ["calibrate", model, "--prompts-file", kit.videos / "0.txt", "--captions", 1, "--chunks", 1],
        "train": [*kit.training(folder / "run", steps=1), "--model", model],
    }
    if name.startswith("vae"):
        lines["prepare"] = ["prepare", kit.videos, "lat", "--model", model, "--workers", 0]
    chosen = draw.choice([*lines])

    def judge(_: str) -> str | None:
        # A number that nothing of what was made went through does no harm: an embedding of another word, an encoder.
        harmless = chosen == "calibrate" or not (name.startswith("transformer") or chosen == "convert")
        return None if harmless else "weights that are not finite went through"

    return Case(what=f"{chosen}: {file.parent.name} {damage.what}", act=lambda: command(*lines[chosen]), judge=judge)


def shard_index(draw: Random, kit: Kit, folder: Path) -> Case:
    """An index of shards that names what is not there, or elsewhere."""
    model, file = kit.copy_of(kit.model, folder, "transformer", "diffusion_pytorch_model.safetensors")
    from safetensors.torch import load_file, save_file

    state, names = load_file(file), ("d-00001-of-00002.safetensors", "d-00002-of-00002.safetensors")
    halves = [dict(list(state.items())[part::2]) for part in (0, 1)]
    for name, half in zip(names, halves, strict=True):
        save_file(half, file.with_name(name), {"format": "pt"})
    homes = {weight: name for name, half in zip(names, halves, strict=True) for weight in half}
    file.rename(file.with_name("unused"))
    index = file.with_name("diffusion_pytorch_model.safetensors.index.json")
    whole = json.dumps({"metadata": {"total_size": 1}, "weight_map": homes}).encode()
    way = draw.choice(("json", "json", "outside", "swapped", "missing file", "both"))
    damage = json_gone_wrong(draw, whole)
    if way == "outside":
        (folder / "x.safetensors").write_bytes(file.with_name(names[0]).read_bytes())
        place = draw.choice(("../../x.safetensors", str(folder / "x.safetensors"), "../transformer/" + names[0]))
        damage = Damage(f"names {place}", whole.replace(names[0].encode(), place.encode()), never=True)
    elif way == "swapped":
        homes[draw.choice([*homes])] = draw.choice(names)
        damage = Damage("a weight in the other file", json.dumps({"weight_map": homes}).encode(), never=True)
    elif way == "missing file":
        file.with_name(draw.choice(names)).unlink()
        damage = Damage("a shard is not there", whole, never=True)
    elif way == "both":
        shutil.copy(file.with_name("unused"), file)
        damage = Damage("a whole file beside the shards", whole, never=True)
    index.write_bytes(damage.data)
    if draw.random() < 0.4:
        return Case(what=f"convert: {damage.what}", act=lambda: command("convert", model, "out"))
    return _same_picture(kit, damage, lambda: kit.generate(folder, model=model))


def pickles(draw: Random, kit: Kit, folder: Path) -> Case:
    """Student files, tiny decoders and adapters as pickles that would run something, or are damaged."""
    from safetensors.torch import load_file

    state = load_file(kit.model / WEIGHTS[0])
    suffix, option = (
        draw.choice((".pt", ".pth", ".bin", ".ckpt")),
        draw.choice(("--student", "--tiny-decoder", "--lora")),
    )
    file = folder / f"file{suffix}"
    if draw.random() < 0.6:
        damage = payload(draw, folder, state)
    else:
        import io

        import torch

        stream = io.BytesIO()
        torch.save(draw.choice((state, {"generator": state}, [state], 3, {"a": 1})), stream)
        damage = bytes_gone_wrong(draw, stream.getvalue())
    put(file, damage)
    if draw.random() < 0.3:
        line: list[object] = ["convert", file, "out", "--to", "official", "--head-dim", 16]
    else:
        line = ["generate", PROMPT, "--model", kit.model, "--plan", 1, "--frames", 5, "-o", "x.png", option, file]
        line += ["--chunk-frames", 2] if option == "--student" else []
    return Case(what=f"{line[0]} {option} {suffix}: {damage.what}", act=lambda: command(*line))


def decoys(draw: Random, kit: Kit, folder: Path) -> Case:
    """Code and pickles beside or in the place of a model's files."""
    model, file = kit.copy_of(kit.model, folder, *draw.choice(WEIGHTS).split("/"))
    damage = payload(draw, folder)
    if draw.random() < 0.4:
        target = file.with_name(draw.choice(("pytorch_model.bin", "diffusion_pytorch_model.bin", "model.pt")))
        if draw.random() < 0.5:
            file.unlink()
    elif draw.random() < 0.5:
        target = file
    else:
        target = model / draw.choice(("tokenizer", "transformer", "text_encoder")) / "evil.py"
        damage = damage._replace(data=f"open({str(folder / 'executed')!r}, 'w')\n".encode())
        described = target.parent / ("tokenizer_config.json" if target.parent.name == "tokenizer" else "config.json")
        content = json.loads(described.read_text())
        auto = {name: "evil.X" for name in ("AutoTokenizer", "AutoModel", "AutoConfig")}
        described.write_text(json.dumps({**content, "auto_map": auto, "custom_pipeline": "evil"}))
    put(target, damage)
    return Case(what=f"{target.name}: {damage.what}", act=lambda: kit.generate(folder, model=model))


def loras(draw: Random, kit: Kit, folder: Path) -> Case:
    """An adapter's file."""
    whole, file = kit.lora.read_bytes(), folder / "lora.safetensors"
    length = 8 + int.from_bytes(whole[:8], "little")
    if (way := draw.random()) < 0.4:
        damage = header_gone_wrong(draw, whole)
    elif way < 0.7:
        damage = numbers_gone_wrong(draw, kit.lora)
    else:
        wrong = bytes_gone_wrong(draw, whole)
        damage = wrong._replace(never=len(wrong.data) != len(whole) or wrong.data[:length] != whole[:length])
        damage = damage._replace(never=len(wrong.data) != len(whole))
    put(file, damage)
    if draw.random() < 0.3:
        line = ["convert", kit.model, "out", "--lora", file]
        return Case(what=f"convert: {damage.what}", act=lambda: command(*line))
    return _same_picture(kit, damage, lambda: kit.generate(folder, "--lora", file), kit.with_lora)


def text_cache(draw: Random, kit: Kit, folder: Path) -> Case:
    """An entry of the text cache: made again, with a word about it, or refused."""
    cache, _ = kit.copy_of(kit.text_cache, folder)
    (entry,) = cache.rglob("*.safetensors")
    way = draw.random()
    if way < 0.3:
        damage = header_gone_wrong(draw, entry.read_bytes())
    elif way < 0.5:
        damage = numbers_gone_wrong(draw, entry)
    elif way < 0.6:
        damage = payload(draw, folder)
    else:
        damage = bytes_gone_wrong(draw, entry.read_bytes())
    damage = damage._replace(never=True)
    if draw.random() < 0.1:
        victim = folder / "victim"
        victim.write_bytes(b"mine")
        entry.unlink()
        entry.symlink_to(victim)
        return Case(
            what="a link",
            act=lambda: kit.generate(folder, "--text-cache", cache),
            judge=lambda _: None if victim.read_bytes() == b"mine" else "what a link leads to was overwritten",
        )
    put(entry, damage)
    return _same_picture(kit, damage, lambda: kit.generate(folder, "--text-cache", cache))
