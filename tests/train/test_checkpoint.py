"""What is in a checkpoint's folder is data: nothing of it is executed, whatever it says."""

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from nearstep.errors import NearstepError
from nearstep.train import checkpoint
from nearstep.train.checkpoint import TrainState
from nearstep.train.ema import Ema
from nearstep.train.optim import NonFiniteError
from nearstep.train.parallel import Ranks
from nearstep.train.reading import described

ALONE = Ranks(0, 1, torch.device("cpu"))


class Payload:
    """Runs a command when it is opened with pickle."""

    def __init__(self, command: str, function=os.system) -> None:
        self.command, self.function = command, function

    def __reduce__(self):
        return self.function, (self.command,)


def state() -> TrainState:
    net = nn.Linear(2, 3)
    return TrainState({"net": net, "ema": Ema(net, 0.9)}, step=3)


def saved(folder: Path) -> Path:
    checkpoint.save(state(), {"lr": 1}, folder, ALONE)
    path = checkpoint.latest(folder)
    assert path is not None
    return path


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_cannot_be_resumed_is_not_saved(tmp_path: Path, value: float):
    before = saved(tmp_path)
    broken = state()
    broken.step = 4
    with torch.no_grad():
        broken.parts["ema"].module.weight[0, 0] = value
    with pytest.raises(NonFiniteError, match=r"step 4 left values that are not finite in ema; no checkpoint is made"):
        checkpoint.save(broken, {"lr": 1}, tmp_path, ALONE)
    assert checkpoint.latest(tmp_path) == before
    checkpoint.load(state(), {"lr": 1}, before, ALONE)


def hostile(kind: str, path: Path, victim: Path) -> bytes:
    original = (path / ".metadata").read_bytes()
    if kind == "command":
        return pickle.dumps(Payload(f"touch {victim}"))
    if kind == "eval":
        return pickle.dumps(Payload(f"open({str(victim)!r}, 'w')", function=eval))
    if kind == "before the true one":  # leaves no trace: what is opened afterwards is right
        return pickle.dumps(Payload(f"touch {victim}"))[:-1] + b"0" + original[2:]
    if kind == "torch.load":
        return b"ctorch.serialization\nload\n(S'x'\ntR."
    return pickle.dumps(Payload(f"touch {victim}"), protocol=0)


@pytest.mark.parametrize("kind", ["command", "eval", "before the true one", "torch.load", "protocol 0"])
def test_a_hostile_description_is_refused_in_a_line_and_not_executed(tmp_path: Path, kind: str):
    path, victim = saved(tmp_path), tmp_path / "victim"
    (path / ".metadata").write_bytes(hostile(kind, path, victim))
    with pytest.raises(NearstepError, match=r"\.metadata is not what a run of nearstep writes: it names \S+, which"):
        checkpoint.load(state(), {"lr": 1}, path, ALONE)
    assert not victim.exists()


def test_a_hostile_number_is_not_executed(tmp_path: Path):
    path, victim = saved(tmp_path), tmp_path / "victim"
    metadata = described(path)
    (index,) = (index for index in metadata.storage_data if index.fqn == "ema.updates")
    info, payload = metadata.storage_data[index], io.BytesIO()
    torch.save(Payload(f"touch {victim}"), payload)
    file = path / info.relative_path
    info.offset, info.length = file.stat().st_size, len(payload.getvalue())
    file.write_bytes(file.read_bytes() + payload.getvalue())
    (path / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(NearstepError, match="no readable checkpoint"):
        checkpoint.load(state(), {"lr": 1}, path, ALONE)
    assert not victim.exists()


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "", "..", "pipe"])
def test_a_description_names_files_of_its_own_folder_alone(tmp_path: Path, name: str):
    path = saved(tmp_path)
    (tmp_path / "outside").write_bytes(b"x")
    os.mkfifo(path / "pipe")
    metadata = described(path)
    next(iter(metadata.storage_data.values())).relative_path = name
    (path / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(NearstepError, match="which is no file of its folder"):
        checkpoint.load(state(), {"lr": 1}, path, ALONE)


@pytest.mark.parametrize("content", [b"", b"junk", pickle.dumps({"a": 1}), pickle.dumps(torch.float32)[:-2]])
def test_a_damaged_description_is_a_line(tmp_path: Path, content: bytes):
    path = saved(tmp_path)
    (path / ".metadata").write_bytes(content)
    with pytest.raises(NearstepError, match="is not what a run of nearstep writes"):
        checkpoint.load(state(), {"lr": 1}, path, ALONE)


def test_what_a_run_writes_is_read_to_the_last_bit(tmp_path: Path):
    before, after = state(), state()
    before.parts["ema"].updates = 7
    checkpoint.save(before, {"lr": 1}, tmp_path, ALONE)
    path = checkpoint.latest(tmp_path)
    assert path is not None
    checkpoint.load(after, {"lr": 1}, path, ALONE)
    assert after.step == 3
    assert after.parts["ema"].updates == 7
    assert torch.equal(before.parts["net"].weight, after.parts["net"].weight)
