"""Scripts of ``benchmarks/`` from end to end at their smallest sizes, on the CPU."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from untrained import write_untrained

from nearstep.errors import NearstepError
from nearstep.evaluate.distances import CAPTIONS_SEED
from nearstep.models.folder import ModelFolder
from nearstep.nets.codec import VideoCodec
from nearstep.nets.transformer import VideoTransformer
from nearstep.playground import PLAYGROUND
from nearstep.playground.world import sample_scenes
from nearstep.rollout.rollout import generate

SCRIPTS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def peers() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)  # as for a script: what lies beside it is found
        yield loaded("peers")


@pytest.fixture(scope="module")
def drift() -> ModuleType:
    return loaded("drift")


def loaded(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", SCRIPTS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look their annotations up
    spec.loader.exec_module(module)
    return module


def test_peers_make_what_ours_makes_and_are_timed(peers: ModuleType, tmp_path: Path, capsys) -> None:
    file = tmp_path / "peers.json"
    assert peers.main(peers.Options(size="tiny", plans=("4", "4,1x"), rounds=2, device="cpu", json=file)) == 0
    assert "--self-forcing" in capsys.readouterr().out  # what was left out is said
    found = json.loads(file.read_text())
    assert [one["name"].split(",")[0] for one in found["checks"]] == ["ours", "ours", "recompute", "anyflow"]
    assert all(0 < one["error"] < 1e-5 for one in found["checks"])
    rows = {(one["peer"], one["plan"]): one for one in found["times"]}
    assert {name for name, _ in rows} == {
        *("ours, fused", "ours, separate", "anyflow, whole past", "anyflow, released", "recompute")
    }
    assert ("anyflow, released", "4,1x") not in rows  # its pipeline has no such plan
    assert [rows["ours, fused", plan]["calls"] for plan in ("4", "4,1x")] == [12, 6]
    assert rows["ours, separate", "4"]["calls"] == 14
    for one in found["times"]:
        ratio, low, high = one["ratio"]
        assert len(one["seconds"]) == 2 and low <= ratio <= high
    assert rows[peers.BASE]["ratio"] == [1, 1, 1]


def test_a_peer_that_makes_something_else_is_found(peers: ModuleType, tmp_path: Path, monkeypatch) -> None:
    from diffusers import WanTransformer3DModel

    forward = WanTransformer3DModel.forward

    def late(self, x, t, *arguments, **options):
        return forward(self, x, t + 1.0, *arguments, **options)  # a thousandth

    monkeypatch.setattr(WanTransformer3DModel, "forward", late)
    file = tmp_path / "peers.json"
    options = peers.Options(size="tiny", plans=("4",), rounds=1, skip=("anyflow",), device="cpu", json=file)
    assert peers.main(options) == 1
    failed = [one["name"] for one in json.loads(file.read_text())["checks"] if not one["passed"]]
    assert failed == ["recompute, first chunk, plan 4"]


def test_a_folder_that_is_no_checkout_is_refused(peers: ModuleType, tmp_path: Path, capsys) -> None:
    options = peers.Options(size="tiny", self_forcing=tmp_path, device="cpu", json=tmp_path / "peers.json")
    assert peers.main(options) == 2
    assert "is no checkout of guandeh17/Self-Forcing" in capsys.readouterr().err and not options.json.exists()


# --- drift ----------------------------------------------------------------------------------------------------------


def test_windows_of_a_stream_end_where_its_chunks_do(drift: ModuleType) -> None:
    video = torch.arange(9 + 12 * 8).view(-1, 1, 1, 1)  # nine chunks of three latent frames, numbered pixel frames
    parts = drift.windows(video).flatten(1)
    assert parts.shape == (3, 33)
    assert parts[:, -1].tolist() == [32, 68, 104]
    assert torch.equal(parts.diff(dim=1), torch.ones(3, 32, dtype=torch.long))


def test_the_renderer_keeps_everything_for_ever(drift: ModuleType) -> None:
    pairs = drift.scenes_that_stay(4)
    assert all(actor.motion != "slide" for scene, _ in pairs for actor in scene.actors)
    scores = drift.drawn(pairs, 90)
    assert all(scores[name].eq(1).all() for name in ("kept", "count"))
    moves = scores["moves"]
    go = torch.tensor([any(actor.motion != "rest" for actor in scene.actors) for scene, _ in pairs])
    assert moves[go].eq(1).all() and moves[~go].isnan().all()


def test_where_a_stream_is_lost(drift: ModuleType) -> None:
    level = torch.linspace(0.9, 1, 20, dtype=torch.float64)[:, None].expand(-1, 5)
    falls = level * torch.tensor([1, 0.5, 1, 0.8, 0.7])
    assert drift.loses_from(level) is None
    assert drift.loses_from(falls) == 3  # a window that recovers is no loss
    found = drift.summary(drift.collect([{"kept": row, "look": row} for row in falls.tolist()]), None)
    assert found["look"]["lower_from_frame"] == 3 * drift.WINDOW


def test_drift_refuses_settings_without_the_one_to_compare_with(drift: ModuleType) -> None:
    with pytest.raises(NearstepError, match="give default, and then any of"):
        drift.main(settings=("window 6",))


def test_drift_from_end_to_end(drift: ModuleType, tmp_path: Path, capsys) -> None:
    out, picture = tmp_path / "drift.json", tmp_path / "drift.png"
    found = drift.main(frames=18, captions=1, plan="1", out=out, picture=picture, sheets=tmp_path / "sheets")
    assert json.loads(out.read_text()) == found
    assert "default: kept" in capsys.readouterr().out
    first = [found["settings"][name]["means"]["look"][0] for name in drift.SETTINGS]
    assert first[2] == first[3]  # a sink lies where it is until the window has gone on
    assert len(list((tmp_path / "sheets").glob("*.png"))) == len(drift.SETTINGS)
    assert picture.stat().st_size > 0
    with pytest.raises(NearstepError, match="multiple of 9"):
        drift.main(frames=19)


# --- gains and adaptive plans ---------------------------------------------------------------------------------------


def test_gains_from_end_to_end(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.syspath_prepend(SCRIPTS)
    gains, out = loaded("gains"), tmp_path / "gains.json"
    quick = {"size": "tiny", "rounds": 2, "compile": False, "stream_chunks": 2, "stream_plans": ("1",)}
    assert gains.main(gains.Options(**quick, device="cpu", json=out)) == 0  # the outputs are equal
    found = json.loads(out.read_text())
    names = [row["name"] for row in found["clips"] if row["plan"] == "4"]
    assert len(names) == len({*names}) > 8 and len(found["streams"]) == 1
    errors = {row["name"]: row["error"] for row in found["clips"]}
    assert errors[gains.BASE] == errors["the last commit left out"] == 0 < errors["bfloat16"]
    assert "| 4,1x | without | fused commits |" in capsys.readouterr().out


def test_what_gains_takes_away_is_taken_away(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(SCRIPTS)
    gains = loaded("gains")
    given = gains.build(gains.SIZES["tiny"], (8, 8), torch.device("cpu"))
    calls: list[str] = []
    text_keys = VideoTransformer.text_keys
    monkeypatch.setattr(VideoTransformer, "text_keys", lambda *a: (calls.append("text"), text_keys(*a))[1])
    plan = gains.make_plan("1", frames=6, chunk_frames=2, shift=5.0)
    for change, expected in ((lambda: gains.text_anew(given.text), 4), (gains.tables_anew, 1)):
        calls.clear()
        with torch.inference_mode():
            gains.under(change, gains.ours(given, fused=True))(plan)
        assert len(calls) == expected  # once for the session, and once a call


def test_adaptive_from_end_to_end(tmp_path: Path, capsys) -> None:
    adaptive, out, picture = loaded("adaptive"), tmp_path / "adaptive.json", tmp_path / "adaptive.png"
    quick = {"fixed": ("1", "3,1x"), "closeness": (0.5, 0.999), "captions": 3, "calibrate_on": 4}
    found = adaptive.main(**quick, out=out, picture=picture)
    assert json.loads(out.read_text()) == found and picture.stat().st_size > 0
    fixed, low, high = found["fixed"], found["adaptive"]["0.5"], found["adaptive"]["0.999"]
    assert [row["steps"] for row in (fixed["1"], fixed["3,1x"], low)] == [9, 11, 9]  # all are close enough at once
    assert low["clips"] == fixed["1"]["clips"] and low["beside"]["fewer_steps"] == 0
    assert high["steps"] > 18 and high["by_chunk"][0] == 3
    assert "0.999  steps" in capsys.readouterr().out


def test_first_frames_are_its_own_or_real_ones(tmp_path: Path, capsys, monkeypatch) -> None:
    first_frames, out, made = loaded("first_frames"), tmp_path / "first.json", []
    monkeypatch.setattr(
        first_frames, "generate", lambda *all_, **named: made.append(generate(*all_, **named)) or made[-1]
    )
    found = first_frames.main(first_frames.Options(plans=("1",), captions=6, device="cpu", out=out))
    assert json.loads(out.read_text())["plans"] == found and "| 1 | all, 6 | real |" in capsys.readouterr().out
    kinds = found["1"]
    assert kinds["one thing"]["real"]["clips"] + kinds["two things"]["real"]["clips"] == 6
    for of in kinds.values():
        added = of["real"]["total"]["value"] - of["its own"]["total"]["value"]
        assert of["gain"]["value"] == pytest.approx(added, abs=1e-9)
    codec = VideoCodec.from_pretrained(ModelFolder.open("playground").path / "vae").float()
    clips = codec.encode(PLAYGROUND.clips(CAPTIONS_SEED, range(6)))
    own, real = made
    assert torch.allclose(real[:, 0], clips[:, 0], atol=1e-4) and not torch.allclose(own[:, 0], clips[:, 0], atol=0.1)
    assert not torch.allclose(real[:, 1], clips[:, 1], atol=0.1)


def test_the_penalty_is_measured_in_every_type(tmp_path: Path, capsys) -> None:
    penalty = loaded("penalty")
    x = torch.tensor([1.0, 1 + 2**-10, 1 + 2**-11, 1 + 2**-12, -3 - 2**-8, 0.0, 1e30])
    expected = torch.tensor([1.0, 1 + 2**-10, 1 + 2**-10, 1.0, -3 - 2**-8, 0.0])
    assert torch.equal(penalty.rounded(x)[:-1], expected)
    assert abs(penalty.rounded(x)[-1] / 1e30 - 1) <= 2**-11
    a, b = torch.randn(4, 16), torch.randn(16, 3)
    with penalty.tf32():
        assert torch.equal(a @ b, penalty.rounded(a) @ penalty.rounded(b))
        assert torch.equal(torch.nn.functional.linear(a, b.t()), penalty.rounded(a) @ penalty.rounded(b))


def test_obedience_tells_what_a_change_of_prompt_applied_and_kept() -> None:
    obedience = loaded("obedience")
    numbers, captions = obedience.stories(PLAYGROUND, 6, 33)
    changed = PLAYGROUND.stories(CAPTIONS_SEED, numbers, (33,), frames=66)
    found = obedience.summary([*changed], captions, (33,))
    assert found["applied after 0"][0] == found["kept after 0"][0] == 1
    ignored = torch.cat([changed[:, :33], changed[:, :33]], dim=1)  # the first scene once more
    assert obedience.summary([*ignored], captions, (33,))["applied after 0"][0] == 0


def test_captions_that_are_not_read_make_no_difference(tmp_path: Path) -> None:
    captions = loaded("captions")
    world = PLAYGROUND
    write_untrained(tmp_path, world)
    options = captions.Options(model=tmp_path, network="transformer", clips=24)
    scenes = sample_scenes(world.config, 3, range(24))
    swapped = captions.others(scenes)
    assert sorted(swapped) == [*range(24)] and all(
        scenes[a].place == scenes[b].place and len(scenes[a].actors) == len(scenes[b].actors)
        for a, b in enumerate(swapped)
    )
    for row in captions.losses(options).values():
        losses = [loss for loss, _ in row.values()]
        assert row["right"][1] == 0 and max(losses) - min(losses) < 0.01 < min(losses)
    given = captions.losses(replace(options, clips=4, frames=5, given=True))
    assert all(row.keys() == {"right", "others'", "none", "others' motions"} for row in given.values())
    for scene, other in zip(scenes, captions.moved(scenes), strict=True):
        assert [actor.thing for actor in scene.actors] == [actor.thing for actor in other.actors]
    assert sum(scene != other for scene, other in zip(scenes, captions.moved(scenes), strict=True)) > 12


def test_what_a_text_encoder_says_is_told_by_a_linear_layer(tmp_path: Path) -> None:
    words = loaded("words")
    write_untrained(tmp_path, PLAYGROUND)
    found = words.told(words.Options(model=tmp_path, captions=300))
    assert found.keys() == set(words.ATTRIBUTES) and found["speed"][1] == 2
    # Features of words that are drawn at random still differ where the words do.
    assert found["category"][0] > 2 / found["category"][1]
    features, values = torch.randn(300, 4), torch.arange(300) % 2
    assert words._share(features, values) < 0.7 < words._share(features + 9 * values[:, None], values)
