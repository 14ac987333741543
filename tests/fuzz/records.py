"""What nearstep writes for itself to read again, gone wrong: takes, latents, checkpoints, metrics, results."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from random import Random
from typing import Any

import torch

from tests.fuzz.cases import Case, command
from tests.fuzz.damage import Damage, bytes_gone_wrong, json_gone_wrong, lines_gone_wrong, odd_value, payload
from tests.fuzz.kit import CHUNKS, Kit, put
from tests.tiny import PROMPT


def takes(draw: Random, kit: Kit, folder: Path) -> Case:
    """A recording, made again."""
    from nearstep.stream.recording import Recording

    whole = kit.take.read_bytes()
    damage = lines_gone_wrong(draw, whole) if draw.random() < 0.8 else bytes_gone_wrong(draw, whole)
    if damage.what.startswith("bits"):  # which may make another seed, or another word
        damage = damage._replace(never=False)
    file = folder / "take.jsonl"
    put(file, damage)
    if draw.random() < 0.15:
        plan = draw.choice(("2", "4,1x", "adaptive"))
        line = ["stream", "--model", kit.model, "--replay", file, "-o", "x.mp4", "--plan", plan]
        return Case(what=f"stream --plan {plan}: {damage.what}", act=lambda: command(*line))

    def act() -> list[bytes]:
        with kit.pipe.replay(Recording.load(file)) as session:
            return [chunk.video.numpy().tobytes() for _, chunk in zip(range(CHUNKS + 2), session, strict=False)]

    def judge(made: list[bytes]) -> str | None:
        whole = whole_take(kit)
        if damage.never and made != whole[: len(made)]:  # a torn line at the end is left out, with a word
            return "another stream came of it"
        return None

    return Case(what=damage.what, act=act, judge=judge)


def whole_take(kit: Kit) -> list[bytes]:
    """The chunks of the take as it was recorded."""
    if not hasattr(kit, "_whole_take"):
        from nearstep.stream.recording import Recording

        with kit.pipe.replay(Recording.load(kit.take)) as session:
            kit._whole_take = [chunk.video.numpy().tobytes() for chunk in session]  # type: ignore[attr-defined]
    return kit._whole_take  # type: ignore[attr-defined]


# --- latents -------------------------------------------------------------------------------------------------------


def latents(draw: Random, kit: Kit, folder: Path) -> Case:
    """A folder of latents, read as training reads it."""
    name = draw.choice(("index.json", "00000.jsonl", "00000.safetensors", "00001.safetensors", "00001.jsonl"))
    copy, file = kit.copy_of(kit.latents, folder, name)
    whole = file.read_bytes()
    if file.suffix == ".json":
        damage = json_gone_wrong(draw, whole)
    elif file.suffix == ".jsonl":
        damage = lines_gone_wrong(draw, whole)
    elif draw.random() < 0.1:
        damage = Damage("another shard", (copy / "00000.safetensors").read_bytes(), never=name != "00000.safetensors")
    else:
        damage = bytes_gone_wrong(draw, whole)
    put(file, damage)
    if draw.random() < 0.03:
        return Case(
            what=f"train: {name}: {damage.what}",
            act=lambda: command(*kit.training(folder / "r", steps=1, latents=copy)),
        )

    def judge(found: tuple[bytes, list[str]]) -> str | None:
        rows, captions = whole_latents(kit)
        if file.suffix == ".safetensors" and found[0] != rows:
            return "other latents were read"
        if damage.never and file.suffix != ".safetensors" and found != (rows, captions):
            return "other latents or captions were read"
        return None

    return Case(what=f"{name}: {damage.what}", act=lambda: _clips(kit, copy), judge=judge)


def _clips(kit: Kit, folder: Path) -> tuple[bytes, list[str]]:
    from nearstep.data.latents import LatentsConfig, load_latents
    from nearstep.data.shards import codec_key

    config = json.loads((kit.model / "vae" / "config.json").read_text())
    clips: Any = load_latents(LatentsConfig(folder=folder), kit.pipe.codec, codec_key(config))
    rows = clips.latents.rows(range(clips.count))
    return rows.numpy().tobytes(), list(clips.texts)


def whole_latents(kit: Kit) -> tuple[bytes, list[str]]:
    """The latents and captions as they were prepared."""
    if not hasattr(kit, "_whole_latents"):
        kit._whole_latents = _clips(kit, kit.latents)  # type: ignore[attr-defined]
    return kit._whole_latents  # type: ignore[attr-defined]


def preparing(draw: Random, kit: Kit, folder: Path) -> Case:
    """A folder of latents that ``nearstep prepare`` goes on with."""
    name = draw.choice(("index.json", "00000.jsonl", "00000.safetensors"))
    copy, file = kit.copy_of(kit.latents, folder, name)
    if file.suffix == ".safetensors":
        damage = bytes_gone_wrong(draw, file.read_bytes())
    else:
        damage = (json_gone_wrong if file.suffix == ".json" else lines_gone_wrong)(draw, file.read_bytes())
    put(file, damage)
    line = ["prepare", kit.videos, copy, "--model", kit.model, "--workers", 0, "--shard", 2]
    return Case(what=f"{name}: {damage.what}", act=lambda: command(*line))


# --- training ------------------------------------------------------------------------------------------------------


def _state(step: int = 0) -> Any:
    from nearstep.train.checkpoint import TrainState

    torch.manual_seed(5)
    net = torch.nn.Linear(3, 4)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    net(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    if not step:
        with torch.no_grad():
            net.weight.zero_()
    parts = {"net": net, "optimizer": _Optimizer(net, optimizer)}
    return TrainState(parts, step=step, unwritten={"loss": (0.5, 1)} if step else {})


class _Optimizer:
    """An optimizer as a part of a run."""

    def __init__(self, net: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.net, self.optimizer = net, optimizer

    def state_dict(self) -> dict[str, Any]:
        from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

        return get_optimizer_state_dict(self.net, self.optimizer)  # type: ignore[return-value]

    def load_state_dict(self, state: Any) -> None:
        from torch.distributed.checkpoint.state_dict import set_optimizer_state_dict

        set_optimizer_state_dict(self.net, self.optimizer, state)


RECIPE = {"lr": 1, "name": "x", "loop": {"steps": 3}, "steps": 3}


def checkpoints(draw: Random, kit: Kit, folder: Path) -> Case:
    """A checkpoint, loaded as a run that goes on does."""
    from nearstep.train import checkpoint
    from nearstep.train.parallel import Ranks

    here = Ranks(0, 1, torch.device("cpu"))
    if not (kit.own / "checkpoints").exists():
        checkpoint.save(_state(3), RECIPE, kit.own / "checkpoints", here)
    source = checkpoint.latest(kit.own / "checkpoints")
    assert source is not None
    name = draw.choice((".metadata", ".metadata", "__0_0.distcp", "__0_0.distcp", "recipe.json"))
    copy, file = kit.copy_of(source, folder, name)
    if name == "recipe.json":
        damage = json_gone_wrong(draw, file.read_bytes())
    elif draw.random() < 0.3:
        damage = payload(draw, folder)
    else:
        damage = bytes_gone_wrong(draw, file.read_bytes())
    put(file, damage)
    state = _state()

    def act() -> tuple[int, str]:
        checkpoint.load(state, RECIPE, copy, here)
        return state.step, repr(state.tensors())

    def judge(found: tuple[int, str]) -> str | None:
        whole = _state(3)
        if found != (whole.step, repr(whole.tensors())):
            return f"another state was read, of step {found[0]}"
        return "a recipe of another kind was read" if damage.never and ".step" in damage.what else None

    return Case(what=f"{name}: {damage.what}", act=act, judge=judge)


def resuming(draw: Random, kit: Kit, folder: Path) -> Case:
    """A run's folder, gone on with by ``nearstep train``."""
    run, _ = kit.copy_of(kit.run, folder)
    name = draw.choice(("checkpoint-0000002/recipe.json", "checkpoint-0000002/.metadata", "metrics.jsonl", "lock"))
    file = run / name
    whole = file.read_bytes() if file.exists() else b"{}\n"
    way = draw.random()
    damage = payload(draw, folder) if way < 0.2 else bytes_gone_wrong(draw, whole)
    if name.endswith(".json") and way > 0.4:
        damage = json_gone_wrong(draw, whole)
    put(file, damage)
    return Case(what=f"{name}: {damage.what}", act=lambda: command(*kit.training(run, steps=3)))


def metrics(draw: Random, kit: Kit, folder: Path) -> Case:
    """The metrics that ``nearstep report`` draws, its previews, and what is drawn behind."""
    run = folder / "run"
    (run / "previews").mkdir(parents=True)
    rows = [
        {"step": step, "loss": 1 / step, "grad_norm": 1.0, "gamma": 1.0, "r1": 0.1, "r2": 0.1} for step in (1, 2, 3)
    ]
    rows = [{**row, "discriminator": 2.0, "assistant": 1.0, "std_data": 1.0, "std_1": 1.0, "lr": 1e-4} for row in rows]
    whole = "".join(json.dumps(row) + "\n" for row in rows).encode()
    damage = lines_gone_wrong(draw, whole)
    (run / "metrics.jsonl").write_bytes(damage.data)
    if draw.random() < 0.3:
        (run / "previews" / draw.choice(("0000001.png", "x.png", "1e3.png", "-1.png"))).write_bytes(draw.randbytes(20))
    behind: list[object] = []
    if draw.random() < 0.3:
        (folder / "behind.jsonl").write_bytes(lines_gone_wrong(draw, whole).data)
        behind = ["--reference", folder / "behind.jsonl"]
    return Case(what=damage.what, act=lambda: command("report", run, *behind))


def results(draw: Random, kit: Kit, folder: Path) -> Case:
    """Results of an evaluation: read again, put into tables, and into a model card."""
    from nearstep.evaluate import results as reading
    from nearstep.evaluate.tables import clips, compare, details, table

    damage, file = json_gone_wrong(draw, kit.evaluation), folder / "evaluation.json"
    put(file, damage)
    if draw.random() < 0.1:
        line = ["convert", kit.model, "out", "--results", file]
        return Case(what=f"convert: {damage.what}", act=lambda: command(*line))
    settings = json.loads(kit.evaluation)["settings"]

    def act() -> str:
        found = reading.open_results(file, settings)
        reading.write_results(folder / "again.json", found)
        pooled = [str(clips([found], plan, "total").mean()) for plan in found["plans"]]
        return "\n".join([table(found), details(found), compare(found, found), *pooled])

    def judge(said: str) -> str | None:
        odd = [word for word in ("nan", "inf", "None") if word in said.split()]
        return f"a table with {odd[0]}" if odd else None

    return Case(what=damage.what, act=act, judge=judge)


# --- what a file says of itself ------------------------------------------------------------------------------------


def comments(draw: Random, kit: Kit, folder: Path) -> Case:
    """A video that is there already, whose comment says something odd."""
    from nearstep.stream.output import write_video

    made = folder / "made.webp"
    said: dict[str, Any] = {"prompt": PROMPT, "plan": "1", "seed": 1, "model": str(kit.model)}
    said[draw.choice([*said, "x"])] = odd_value(draw)
    suffix = draw.choice((".webp", ".png", ".mp4", ".gif"))
    made = folder / f"made{suffix}"
    clip = torch.rand(5, 3, 32, 32)
    if draw.random() < 0.5:
        write_video(made, clip, fps=12, metadata=said)
        damage = (
            bytes_gone_wrong(draw, made.read_bytes())
            if draw.random() < 0.5
            else Damage("odd", made.read_bytes(), False)
        )
    else:
        damage = bytes_gone_wrong(draw, shutil.copy(kit.clip, made).read_bytes())
    put(made, damage)
    before = made.read_bytes()
    line = ["generate", PROMPT, "--model", kit.model, "--plan", 1, "--frames", 5, "-o", made]
    return Case(
        what=f"{suffix}: {damage.what}, {said!r:.100}",
        act=lambda: command(*line),
        judge=lambda _: None if made.read_bytes() == before else "a file was replaced without --overwrite",
    )
