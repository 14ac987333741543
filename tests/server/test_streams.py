"""Streams over a WebSocket: chunks, receipts, rewind, fork, many viewers, back-pressure, and what is kept."""

from __future__ import annotations

import asyncio
import io
import re
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import av
import numpy as np
import pytest
from served import BLUE, RED, Site, eventually, running
from websockets.exceptions import ConnectionClosed

from nearstep.server.fragments import encoded
from nearstep.server.kept import joined
from nearstep.server.protocol import AHEAD, Close
from nearstep.server.studio import Limits
from nearstep.server.viewers import MOST_CHUNKS
from nearstep.stream.output import pixels
from nearstep.stream.pipeline import CausalVideoPipeline
from nearstep.stream.recording import Recording
from nearstep.stream.results import ChunkVideo


def frames(content: bytes) -> np.ndarray:
    with av.open(io.BytesIO(content)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def written(chunks: list[ChunkVideo]) -> np.ndarray:
    """Frames of chunks, as a video gives them back: an untrained model's noise loses much in 4:2:0."""
    parts = [encoded(pixels(chunk.video[0]), fps=12, start=chunk.start) for chunk in chunks]
    return np.concatenate([frames(part.init + part.media) for part in parts])


def times(content: bytes) -> list[float]:
    with av.open(io.BytesIO(content)) as container:
        return [float(frame.time) for frame in container.decode(video=0)]


def recorded(site: Site, take: dict, path: Path) -> Recording:
    path.write_bytes(site.ask("GET", f"/api/takes/{take['id']}/recording.jsonl")[1])
    return Recording.load(path)


def test_chunks_come_and_each_stands_alone(site: Site, tiny: CausalVideoPipeline) -> None:
    take = site.take()
    with site.look(f"takes/{take['id']}") as look:
        assert look.step()["take"] == {**look.events[0]["take"], "prompt": RED, "seed": 3, "width": 32, "fps": 12}
        facts = [look.chunk(index) for index in range(4)]
    assert [(each["start"], each["frames"], each["steps"]) for each in facts] == [
        (0, 5, 1), (5, 8, 1), (13, 8, 1), (21, 8, 1)
    ]  # fmt: skip
    with tiny.open(RED, "1", seed=3) as session:
        for index in range(4):
            made, alone = next(session), look.init + look.media[0, index]
            assert np.array_equal(frames(alone), written([made]))
            assert times(alone) == pytest.approx([(made.start + n) / 12 for n in range(facts[index]["frames"])])


def test_a_change_gets_two_receipts_and_holds_from_the_chunk_that_they_name(site: Site, tmp_path: Path) -> None:
    take = site.take()
    with site.look(f"takes/{take['id']}") as look:
        look.chunk(1)
        look.say("change", ref="a", prompt=BLUE, plan="2")
        assert look.of("accepted", ref="a")
        applied = look.of("applied", ref="a")
        seen = max(chunk for _, chunk in look.media)
        assert applied["chunk"] <= seen + 2
        told = look.chunk(applied["chunk"])
    assert (told["prompt"], told["plan"], told["steps"]) == (BLUE, "2", 2)
    entry = recorded(site, take, tmp_path / "a.jsonl").chunks[applied["chunk"]]
    assert (entry.changes.prompt, entry.changes.plan) == (BLUE, "2")


def test_what_is_asked_while_a_chunk_is_made_is_done_in_order(site: Site) -> None:
    take = site.take()
    with site.look(f"takes/{take['id']}") as look:
        look.chunk(0)
        for number in range(10):
            look.say("change", ref=f"r{number}", seed=number)
        look.say("rewind", ref="back", chunk=1)
        look.say("change", ref="wrong", prompt="a purple elephant")
        look.of("refused", ref="wrong")
        done = [event for event in look.events if event["type"] in ("applied", "refused")]
        assert [event["ref"] for event in done] == [*(f"r{number}" for number in range(10)), "back", "wrong"]
        assert "elephant" in done[-1]["why"]
        assert look.chunk(2, epoch=1)["seed"] == 3  # as it was before chunk 1: the changes came after it


def test_a_rewound_take_goes_on_as_another_would(site: Site, tiny: CausalVideoPipeline, tmp_path: Path) -> None:
    take = site.take()
    with site.look(f"takes/{take['id']}") as look:
        look.chunk(4)
        look.say("rewind", ref="back", chunk=2)
        assert look.of("rewound")["epoch"] == 1
        assert look.of("applied", ref="back")["chunk"] == 2
        look.say("change", ref="blue", prompt=BLUE)
        first = look.of("applied", ref="blue")["chunk"]
        look.chunk(first + 1, epoch=1)
        look.say("pause")
        look.of("state", state="paused")
    recording = recorded(site, take, tmp_path / "a.jsonl")
    eventually(lambda: len(site.studio.find(take["id"]).chunks) == len(recording.chunks))
    video = frames(site.ask("GET", f"/api/takes/{take['id']}/video.mp4")[1])
    with tiny.replay(recording) as session:
        assert np.array_equal(video, written([*session]))


def test_the_saved_video_is_the_fragments_that_were_shown(site: Site) -> None:
    take = site.take()
    with site.look(f"takes/{take['id']}") as look:
        look.chunk(3)
        look.say("pause")
        look.of("state", state="paused")
    status, video, headers = site.ask("GET", f"/api/takes/{take['id']}/video.mp4")
    parts = b"".join(media for _, media in sorted(look.media.items()))
    assert status == 200 and video.startswith(look.init + parts) and "attachment" in headers["content-disposition"]
    assert times(video) == pytest.approx([n / 12 for n in range(len(times(video)))])


def test_files_that_grow_or_are_replaced_while_they_are_asked_for_come_whole(site: Site, tmp_path: Path) -> None:
    take = site.take()
    folder = site.studio.find_kept(take["id"]).folder
    with site.look(f"takes/{take['id']}") as look:
        look.chunk(2)
        look.say("pause")
        look.of("state", state="paused")
    log, picture = folder / "recording.jsonl", folder / "000001.jpg"
    line, sizes = log.read_bytes().splitlines(keepends=True)[-1], [picture.read_bytes(), b"\xff\xd8" + bytes(9000)]
    whole = log.read_bytes()
    stop = threading.Event()

    def write() -> None:
        for turn in range(100_000):
            if stop.is_set():
                return
            with log.open("ab") as file:
                file.write(line[:-3]), file.flush()  # a line that is being written
                file.write(line[-3:])
            part = picture.with_suffix(".part")
            part.write_bytes(sizes[turn % 2])
            part.replace(picture)
            if turn % 50 == 49:
                log.write_bytes(whole)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(100):
            status, text, _ = site.ask("GET", f"/api/takes/{take['id']}/recording.jsonl")
            assert status == 200 and text.endswith(b"\n" if text else b"") and text.startswith(whole[: len(text)])
            assert site.ask("GET", f"/api/takes/{take['id']}/chunks/1.jpg")[1] in sizes
    finally:
        stop.set()
        writer.join()


def test_a_download_breaks_off_where_chunks_are_taken_back_meanwhile(tmp_path: Path) -> None:
    parts = [tmp_path / name for name in ("init.mp4", "000000.m4s", "000001.m4s")]
    for part in parts:
        part.write_bytes(part.name.encode())
    assert b"".join(joined(parts)) == b"init.mp4000000.m4s000001.m4s"
    reading = joined(parts)
    assert next(reading) == b"init.mp4"
    new = tmp_path / "new"
    new.write_bytes(b"another past")
    new.replace(parts[1])
    with pytest.raises(FileNotFoundError, match="taken back"):
        next(reading)
    parts[2].unlink()
    with pytest.raises(FileNotFoundError):
        joined(parts)


def test_a_fork_shares_the_past_and_goes_its_own_way(site: Site, tiny: CausalVideoPipeline, tmp_path: Path) -> None:
    take = site.take()
    with site.look(f"takes/{take['id']}") as look:
        look.chunk(3)
        look.say("fork", ref="f", chunk=2, prompt=BLUE)
        fork = look.of("applied", ref="f")
        look.say("pause")
    with site.look(f"takes/{fork['take']}") as other:
        assert other.step()["take"]["parent"] == take["id"]
        assert other.chunk(2)["prompt"] == BLUE
        other.say("pause")
    one, two = (
        recorded(site, {"id": name}, tmp_path / f"{place}.jsonl")
        for place, name in enumerate((take["id"], fork["take"]))
    )
    assert two.chunks[:2] == one.chunks[:2] and two.chunks[2].changes.prompt == BLUE
    shared = site.ask("GET", f"/api/takes/{take['id']}/chunks/1.jpg")[1]
    assert shared[:2] == b"\xff\xd8" and site.ask("GET", f"/api/takes/{fork['take']}/chunks/1.jpg")[1] == shared


def test_a_fork_keeps_the_past_that_a_rewind_takes_back_at_once(site: Site) -> None:
    take = site.take()
    with site.look(f"takes/{take['id']}") as look:
        look.chunk(3)
        look.say("fork", ref="f", chunk=3)  # both wait for the same chunk
        look.say("rewind", ref="r", chunk=0)
        fork = look.of("applied", ref="f")
        assert look.of("applied", ref="r")["chunk"] == 0
        look.say("pause")
    pictures = [site.ask("GET", f"/api/takes/{fork['take']}/chunks/{chunk}.jpg") for chunk in range(3)]
    assert [status for status, *_ in pictures] == [200] * 3
    with site.look(f"takes/{fork['take']}") as other:
        assert other.step()["take"]["count"] >= 3
        other.chunk(3)
        other.say("pause")
    assert len(frames(site.ask("GET", f"/api/takes/{fork['take']}/video.mp4")[1])) >= 5 + 3 * 8


def test_a_take_at_its_longest_has_ended_and_goes_on_after_a_rewind(tiny: CausalVideoPipeline, tmp_path: Path) -> None:
    with running(tiny, tmp_path, limits=Limits(longest=2)) as site:
        take = site.take()
        with site.look(f"takes/{take['id']}") as look:
            ended = look.of("state", state="ended")
            assert (ended["count"], "at most 2 chunks; rewind it" in ended["why"]) == (2, True)
            look.say("rewind", ref="r", chunk=1)
            assert look.of("applied", ref="r")["chunk"] == 1
            assert look.of("state", state="ended")["count"] == 2


def test_a_take_is_made_again_under_another_plan(site: Site, tmp_path: Path) -> None:
    take = site.take()
    with site.look(f"takes/{take['id']}") as look:
        look.chunk(2)
        look.say("pause")
        look.of("state", state="paused")
    least = len(recorded(site, take, tmp_path / "a.jsonl").chunks)  # the chunk that was being made may yet follow
    final = site.json("POST", "/api/takes", {"again": take["id"], "plan": "2"}, 201)
    with site.look(f"takes/{final['id']}") as look:
        made = look.of("state", state="ended")["count"]
        assert least <= made <= len(recorded(site, take, tmp_path / "b.jsonl").chunks)
        assert {event["steps"] for event in look.events if event["type"] == "chunk"} == {2}
        look.say("fork", ref="on", chunk=made)  # and goes on from there
        assert look.of("applied", ref="on")["chunk"] == made
    lines = site.ask("GET", f"/api/takes/{take['id']}/recording.jsonl")[1]
    loaded = site.ask("POST", "/api/recordings", lines)
    assert loaded[0] == 201 and site.ask("POST", "/api/recordings", b"{}")[0] == 400
    large = re.sub(rb'"(height|width)": \d+', rb'"\1": 4096', lines)  # would take all memory here
    assert site.ask("POST", "/api/recordings", large)[0] == 400
    long = lines.replace(b'"negative_prompt": ""', b'"negative_prompt": "%s"' % (b"word " * 1000))
    assert site.ask("POST", "/api/recordings", long)[0] == 413


def test_many_viewers_get_the_same_bytes_and_only_some_may_steer(site: Site) -> None:
    take = site.take()
    with site.look(f"takes/{take['id']}") as owner, site.look(f"watch/{take['watch']}") as guest:
        assert "id" not in guest.step()["take"]
        owner.chunk(3), guest.chunk(3)
        assert all(owner.media[key] == data for key, data in guest.media.items() if key in owner.media)
        guest.say("change", ref="x", prompt=BLUE)
        assert "only watches" in guest.of("error")["why"]


def test_a_viewer_that_shows_nothing_stops_the_stream_and_one_that_goes_on_starts_it(site: Site) -> None:
    take = site.take()
    with site.look(f"takes/{take['id']}") as look:
        look.pace = False
        look.chunk(AHEAD - 1)
        time.sleep(0.5)
        found = site.studio.find(take["id"])
        assert len(found.chunks) == AHEAD  # none was shown: no more is made
        look.say("ack", epoch=0, chunk=0)
        assert look.chunk(AHEAD)
    with site.look(f"takes/{take['id']}", after=f"0.{AHEAD}") as again:
        assert again.step()["from"] == AHEAD + 1 and not again.media
        again.say("ack", epoch=0, chunk=AHEAD)
        assert again.chunk(AHEAD + 1)


def test_a_slow_watcher_skips_and_the_others_do_not_wait(site: Site) -> None:
    take = site.take()
    with site.look(f"takes/{take['id']}") as owner, site.look(f"watch/{take['watch']}", close_timeout=0.2):
        there = site.studio.find(take["id"])
        eventually(lambda: len(there.viewers) == 2)
        guest = next(viewer for viewer in [*there.viewers] if not viewer.steers)
        # A socket holds some MiB before its sender waits, so the sending is held up here.
        event = {"type": "chunk", "index": 0}
        owner.chunk(2)

        async def burst() -> int:  # nothing is sent meanwhile
            for index in range(20):
                guest.show({**event, "index": index}, b"")
            return guest.skipped

        skipped = asyncio.run_coroutine_threadsafe(burst(), site.studio.loop).result(10)
        assert skipped >= 20 - MOST_CHUNKS
        owner.chunk(8)


def test_takes_have_turns_chunk_by_chunk(tiny: CausalVideoPipeline, tmp_path: Path) -> None:
    with running(tiny, tmp_path, limits=Limits(sessions=4)) as site:
        takes = [site.take(seed=seed) for seed in range(4)]
        with ExitStack() as stack:
            looks = [stack.enter_context(site.look(f"takes/{take['id']}")) for take in takes]
            for look in looks:
                look.pace = False
                look.say("ack", epoch=0, chunk=0)
            for index in range(1, 12):
                for look in looks:
                    look.chunk(index - 1)
                counts = [len(take.chunks) for take in site.studio.takes]
                assert max(counts) - min(counts) <= AHEAD + 1
                for look in looks:
                    look.say("ack", epoch=0, chunk=index - 1)


def test_a_take_that_nobody_watches_is_closed_and_kept(tiny: CausalVideoPipeline, tmp_path: Path) -> None:
    with running(tiny, tmp_path, limits=Limits(idle=1)) as site:
        take = site.take()
        with site.look(f"takes/{take['id']}") as look:
            look.chunk(2)
        eventually(lambda: not site.studio.takes)
        with pytest.raises(ConnectionClosed) as closed, site.look(f"takes/{take['id']}") as look:
            look.of("never")
        assert closed.value.rcvd.code == Close.GONE
        assert site.json("GET", f"/api/takes/{take['id']}")["state"] == "closed"
        assert len(frames(site.ask("GET", f"/api/takes/{take['id']}/video.mp4")[1])) >= 21
    with running(tiny, tmp_path) as site:  # and after a restart
        assert site.json("GET", "/api/takes")["takes"][0]["id"] == take["id"]
        assert len(recorded(site, take, tmp_path / "a.jsonl").chunks) >= 3
        site.json("DELETE", f"/api/takes/{take['id']}")
        assert site.ask("GET", f"/api/takes/{take['id']}")[0] == 404
