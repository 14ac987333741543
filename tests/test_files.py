"""Folders that are kept: weights once on a disk, never changed through another name, whole or as they were."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nearstep import files
from nearstep.errors import NearstepError
from nearstep.files import (
    beside,
    check_writable,
    host_number,
    keep_folder,
    open_to_readers,
    part_name,
    replacing,
    write_json,
)

NAME = "model.safetensors"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source" / "vae"
    folder.mkdir(parents=True)
    save_file({"a": torch.zeros(100)}, folder / NAME)
    (folder / "config.json").write_text("{}")
    return folder


def test_weights_are_linked_and_the_rest_is_copied(source: Path, tmp_path: Path):
    target = tmp_path / "target"
    target.mkdir()
    (target / "stale.safetensors").touch()
    keep_folder(source, target)
    assert {path.name for path in target.iterdir()} == {NAME, "config.json"}
    assert (target / NAME).samefile(source / NAME)
    assert not (target / "config.json").samefile(source / "config.json")
    assert not list(tmp_path.glob(".*"))


def test_it_outlives_a_move_of_either_and_the_sources_end(source: Path, tmp_path: Path):
    keep_folder(source, tmp_path / "target")
    (tmp_path / "target").rename(tmp_path / "moved")
    shutil.rmtree(source)
    assert load_file(tmp_path / "moved" / NAME)["a"].shape == (100,)


def test_what_is_written_to_one_never_shows_in_the_other(source: Path, tmp_path: Path):
    keep_folder(source, tmp_path / "target")
    save_file({"a": torch.ones(100)}, tmp_path / "target" / NAME)  # as save_pretrained does
    assert not load_file(source / NAME)["a"].any()
    save_file({"a": torch.full((100,), 2.0)}, source / NAME)
    assert torch.equal(load_file(tmp_path / "target" / NAME)["a"], torch.ones(100))


def test_another_disk_gets_a_copy(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(self: Path, target: Path) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    keep_folder(source, tmp_path / "target")
    assert not (tmp_path / "target" / NAME).samefile(source / NAME)
    assert (tmp_path / "target" / NAME).read_bytes() == (source / NAME).read_bytes()


def test_a_symbolic_link_gives_its_file(source: Path, tmp_path: Path):
    hub = tmp_path / "hub"
    hub.mkdir()
    (hub / NAME).symlink_to(source / NAME)
    keep_folder(hub, tmp_path / "target")
    assert not (tmp_path / "target" / NAME).is_symlink()
    assert (tmp_path / "target" / NAME).samefile(source / NAME)


def test_a_folder_is_kept_in_its_own_place(source: Path):
    keep_folder(source, source)
    assert {path.name for path in source.iterdir()} == {NAME, "config.json"}


def test_a_full_disk_leaves_what_was_there(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    target = tmp_path / "target"
    keep_folder(source, target)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.shutil, "copyfile", full)
    with pytest.raises(NearstepError, match="No space left on device; nothing was left behind"):
        keep_folder(source, target)
    assert {path.name for path in target.iterdir()} == {NAME, "config.json"}
    assert not list(tmp_path.glob(".*"))


def test_weights_are_for_whoever_reads_the_rest(tmp_path: Path) -> None:
    index, private = tmp_path / "model" / "model_index.json", tmp_path / "private.safetensors"
    own, linked = (tmp_path / "model" / name / "model.safetensors" for name in ("vae", "transformer"))
    for file in (index, private, own, linked.parent / "config.json"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("{}")
    for file in (private, own):
        file.chmod(0o600)
    linked.hardlink_to(private)
    index.chmod(0o640)
    open_to_readers(index.parent, index)
    assert own.stat().st_mode & 0o777 == 0o640
    assert linked.stat().st_mode & 0o777 == 0o600  # elsewhere, and not ours to open


def test_a_pipe_a_socket_and_a_folder_are_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)  # a socket's path has to be short
    os.mkfifo("pipe")
    Path("folder").mkdir()
    Path("link").symlink_to("pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        before = {path: path.lstat().st_mode for path in Path().iterdir()}
        for path in before:
            for write in (check_writable, lambda path: write_json(path, {})):
                with pytest.raises(NearstepError, match="it is (no regular file|a folder); name a file"):
                    write(path)
        assert {path: path.lstat().st_mode for path in Path().iterdir()} == before


def test_temporary_names_cannot_be_foreseen_and_links_there_are_not_followed(tmp_path: Path, monkeypatch):
    target = tmp_path / "a.json"
    assert beside(target) != beside(target)
    victim, planted = tmp_path / "victim", tmp_path / ".planted.part"
    victim.write_text("precious")
    monkeypatch.setattr(files, "beside", lambda path: planted)
    for plant in (lambda: planted.symlink_to(victim), lambda: planted.hardlink_to(victim)):
        plant()
        with pytest.raises(NearstepError, match="File exists"):
            write_json(target, {})
        planted.unlink()
    assert victim.read_text() == "precious" and list(tmp_path.iterdir()) == [victim]
    write_json(target, {})
    assert target.read_text() == "{}\n"


def test_names_that_no_file_system_takes_are_one_line(tmp_path: Path):
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    bad = [tmp_path / ("n" * 256), tmp_path / ("é" * 128), Path("/".join(["x" * 200] * 25)), Path("a\0b"), loop / "a"]
    for path in bad:
        with pytest.raises(NearstepError, match="no file can be named"):
            check_writable(path)
        with pytest.raises(NearstepError, match="no file can be named"), replacing(path):
            pass
    check_writable(tmp_path / ("n" * 255))


def test_what_a_killed_program_left_goes_when_the_next_one_writes_there(tmp_path: Path):
    dead = 2**22 + 1
    left = tmp_path / part_name("0123456789abcdef", dead, host_number())
    others = [
        tmp_path / part_name("0123456789abcdef", os.getppid(), host_number()),  # of somebody who lives
        tmp_path / part_name("0123456789abcdef", dead, host_number() ^ 1),  # of another host
        tmp_path / ".2024.part",  # anybody's
        tmp_path / ".4194305.notes.part",
    ]
    for path in (left, *others):
        path.write_bytes(b"half")
    left.with_name(part_name("0123456789abcdef", 10**20, host_number())).write_bytes(b"half")  # nobody's number
    folder = tmp_path / part_name("fedcba9876543210", dead, host_number())
    folder.mkdir()
    write_json(tmp_path / "a.json", {})
    assert sorted(tmp_path.iterdir()) == sorted([*others, tmp_path / "a.json"])
