"""The page in a real browser: seen, steered, by mouse and by keyboard, at any width."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path

import av
import numpy as np
import pytest
from served import Site, running
from visits import Visit

from nearstep.server.fragments import encoded
from nearstep.stream.output import pixels
from nearstep.stream.recording import Recording

pytestmark = pytest.mark.browser

BLUE = "a small green frog drifts up quickly on a meadow"


def frames(content: bytes) -> np.ndarray:
    with av.open(io.BytesIO(content)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


@pytest.mark.slow  # seconds are for a machine that does nothing else
def test_the_first_frame_is_there_at_once(visit) -> None:
    seconds = []
    for _ in range(3):  # of a machine that may do something else, the best
        visit.open()
        visit.until("document.querySelector('video')?.getVideoPlaybackQuality().totalVideoFrames > 0")
        seconds.append(visit.ask("performance.now()") / 1000)
        visit.ask("location.hash = ''")
    assert min(seconds) < 1.5, seconds


def stalls(visit, seconds: float) -> tuple[float, int, float]:
    """Seconds of video shown in so many, how often it waited, and frames shown a second."""
    visit.open()
    visit.playing()
    visit.until("document.querySelector('video').currentTime > 1.5")
    visit.ask("window.waits = 0; document.querySelector('video').addEventListener('waiting', () => window.waits += 1)")
    before, began = visit.ask("document.querySelector('video').currentTime"), time.monotonic()
    count = visit.frames()
    time.sleep(seconds)
    shown, lasted = visit.ask("document.querySelector('video').currentTime") - before, time.monotonic() - began
    return shown / lasted, visit.ask("window.waits"), (visit.frames() - count) / lasted


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [8, 60])
def test_frames_go_on_without_a_stall(visit, seconds: float) -> None:
    rate, waits, shown = stalls(visit, seconds)
    assert rate > 0.97 and waits == 0 and shown > 0.95 * 12, (rate, waits, shown)


def test_a_prompt_is_changed_and_the_receipt_names_the_chunk(visit) -> None:
    visit.open()
    visit.playing()
    visit.page.fill("#prompt", BLUE)
    newest = int(visit.ask("document.querySelector('#timeline li:last-child').dataset.chunk"))
    visit.page.click("#change")
    chunk = int(visit.told("Changed from chunk").split()[3])
    assert chunk <= newest + 3  # two, and one that may have come between the two lines above
    item = f'#timeline li.turn[data-chunk="{chunk}"] button'
    visit.until(f"document.querySelector('{item}')?.title.includes('green frog')")
    visit.until("document.querySelector('.latency').textContent.includes('s')")
    assert visit.site.studio.find(visit.take()).chunks[chunk].prompt == BLUE


def test_a_change_at_once_is_seen_sooner(visit) -> None:
    visit.open()
    visit.until("document.querySelector('video').currentTime > 1")
    visit.page.fill("#prompt", BLUE)
    visit.page.click("#now")
    chunk = int(visit.told("Changed from chunk").split()[3])
    shown = int(visit.until("document.querySelector('#timeline li.now').dataset.chunk"))
    assert chunk <= shown + 1, "the next that is shown, though two more were there"
    visit.until("document.querySelector('.latency').textContent.endsWith('s')")
    before = visit.frames()
    visit.until(f"document.querySelector('video').getVideoPlaybackQuality().totalVideoFrames > {before + 24}")


def test_back_then_another_way_then_both_beside(visit) -> None:
    visit.open()
    visit.until("document.querySelectorAll('#timeline li').length > 4")
    visit.page.click("#timeline li:nth-child(3) button")
    assert "Chunk 2" in visit.page.inner_text("#chosen")
    visit.page.click("#rewind")
    visit.told("Back at chunk 2")
    visit.until("[...document.querySelectorAll('#timeline li')].at(-1).dataset.chunk >= 4")
    before = visit.frames()
    visit.until(f"document.querySelector('video').getVideoPlaybackQuality().totalVideoFrames > {before + 12}")

    visit.page.click("#timeline li:nth-child(2) button")
    visit.page.click("#fork")
    visit.told("Forked at chunk 1")
    shown = "v => v.getVideoPlaybackQuality().totalVideoFrames > 3"
    visit.until(f"[...document.querySelectorAll('video')].filter({shown}).length == 2")
    one, two = visit.site.studio.takes[-2:]
    assert two.origin.parent == one.origin.id and two.chunks[0] == one.chunks[0]
    visit.page.click(".keep:visible")
    visit.until("document.querySelectorAll('video').length == 1")
    assert visit.take() == two.origin.id

    visit.page.click("#final")
    visit.told("at 4 steps")
    visit.until("[...document.querySelectorAll('.steps')].at(-1).textContent.startsWith('4')")
    visit.page.click(".away:visible")


def test_what_is_saved_is_what_a_replay_makes(visit, embedded, tmp_path: Path) -> None:
    visit.open()
    visit.until("document.querySelectorAll('#timeline li').length > 3")
    visit.page.fill("#prompt", BLUE)
    visit.page.click("#change")
    visit.told("Changed from chunk")
    visit.until("[...document.querySelectorAll('#timeline li.turn')].length == 2")
    visit.page.click(".play")
    visit.until("document.querySelector('.play').textContent == 'Play'")
    time.sleep(0.5)
    saved = {}
    for name in ("save", "record"):
        with visit.page.expect_download() as download:
            visit.page.click(f"#{name}")
        saved[name] = tmp_path / name
        download.value.save_as(saved[name])
    recording = Recording.load(saved["record"])
    with embedded.replay(recording) as session:
        parts = [encoded(pixels(chunk.video[0]), fps=12, start=chunk.start) for chunk in session]
    again = np.concatenate([frames(part.init + part.media) for part in parts])
    assert np.array_equal(frames(saved["save"].read_bytes()), again)
    visit.page.set_input_files("#load", saved["record"])  # and the page can show it again
    visit.until(f"document.querySelectorAll('#timeline li').length >= {min(3, len(recording.chunks))}")


def test_a_page_that_is_loaded_again_goes_on(visit) -> None:
    visit.open()
    visit.until("document.querySelectorAll('#timeline li').length > 3")
    name, count = visit.take(), len(visit.site.studio.takes)
    visit.page.reload()
    visit.playing()
    assert visit.take() == name and len(visit.site.studio.takes) == count
    assert visit.ask("document.querySelectorAll('#timeline li').length") > 3
    newest = len(visit.site.studio.find(name).chunks)
    visit.until(f"Number([...document.querySelectorAll('#timeline li')].at(-1).dataset.chunk) > {newest}")


def test_all_of_it_by_keyboard(visit) -> None:
    visit.open()
    visit.until("document.querySelectorAll('#timeline li').length > 3")
    keys = visit.page.keyboard

    def tab_to(selector: str) -> None:
        for _ in range(150):
            if visit.ask(f"document.activeElement.matches('{selector}')"):
                return
            keys.press("Tab")
        raise AssertionError(f"no way to {selector}")

    visit.ask("document.body.focus()")
    tab_to(".play")
    keys.press("Enter")
    visit.until("document.querySelector('.play').getAttribute('aria-pressed') == 'true'")
    keys.press("Enter")
    tab_to("#timeline button")
    keys.press("Home")
    keys.press("ArrowRight")
    keys.press("Enter")
    assert "Chunk 1" in visit.page.inner_text("#chosen")
    tab_to("#rewind")
    keys.press("Enter")
    visit.told("Back at chunk 1")
    tab_to("#prompt")
    keys.press("Control+A")
    keys.type(BLUE)
    tab_to("#change")
    keys.press("Enter")
    visit.told("Changed from chunk")


def test_each_control_has_a_name(visit) -> None:
    visit.open()
    visit.playing()
    kinds = ", ".join(f"#studio {kind}" for kind in ("button", "a", "input", "select", "textarea"))
    named = "e => e.textContent.trim() || e.ariaLabel || [...(e.labels ?? [])].some(l => l.textContent.trim())"
    nameless = visit.ask(f"[...document.querySelectorAll('{kinds}')].filter(e => !({named})(e)).map(e => e.outerHTML)")
    assert nameless == []
    assert visit.page.get_attribute("#told", "role") == "status"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_narrow_screen(visit, scheme: str) -> None:
    visit.page.set_viewport_size({"width": 360, "height": 740})
    visit.page.emulate_media(color_scheme=scheme)
    visit.open()
    visit.playing()
    assert visit.ask("document.documentElement.scrollWidth") == 360
    sides = "[...document.querySelectorAll('button, .button, input:not([type=radio]):not([type=file]), video')]"
    visible = f"{sides}.filter(e => e.offsetParent && !e.closest('#timeline')).map(e => e.getBoundingClientRect())"
    assert visit.ask(f"{visible}.every(r => r.left >= 0 && r.right <= 360)")
    size = visit.ask("(r => [r.width, r.height])(document.querySelector('video').getBoundingClientRect())")
    assert size[0] == size[1] and size[0] % 48 == 0 and size[0] >= 240  # whole squares
    ink, paper = visit.ask("(s => [s.color, s.backgroundColor])(getComputedStyle(document.body))")
    bright = [sum(int(part) for part in colour[4:-1].split(",")) for colour in (ink, paper)]
    assert (bright[0] < bright[1]) is (scheme == "light")


def test_markup_is_shown_as_text(visit) -> None:
    wild, plan = "<b>bold</b>", "<img src=x onerror=alert(1)>"
    visit.page.on("dialog", lambda dialog: pytest.fail(dialog.message))
    visit.open()
    visit.playing()
    visit.page.fill("#prompt", wild)
    visit.page.click("#change")
    visit.told("'bold'")
    visit.page.fill("#prompt", BLUE)
    visit.page.fill("#plan-own", plan)
    visit.page.click("#change")
    visit.told("<img")
    assert visit.ask("document.querySelectorAll('#told *').length") == 0
    recording = visit.site.ask("GET", f"/api/takes/{visit.take()}/recording.jsonl")[1].decode().splitlines()
    entry = json.loads(recording[1]) | {"prompt": BLUE, "plan": plan}
    loaded = visit.site.ask("POST", "/api/recordings", "\n".join([recording[0], json.dumps(entry)]).encode())
    assert loaded[0] == 201
    take = json.loads(loaded[1])["id"]
    visit.ask(f"location.hash = '#take={take}'")
    visit.page.reload()
    visit.until("document.querySelector('.over').textContent.includes('<img')")
    assert visit.ask("document.querySelectorAll('b, #told *, .over *, .what *').length") == 0


def test_who_watches_sees_it_and_steers_nothing(visit) -> None:
    take = visit.site.json("POST", "/api/takes", {"prompt": BLUE, "plan": "1"}, 201)
    visit.open(f"watch/{take['watch']}")
    visit.playing()
    assert "green frog" in visit.page.inner_text(".what")
    assert not visit.page.is_visible("#direction") and not visit.page.is_visible("#rewind")
    assert not visit.page.is_visible(".play") and take["id"] not in visit.page.content()


def test_a_token_is_asked_for_once(chromium, embedded, tmp_path: Path) -> None:
    with running(embedded, tmp_path, token="open-sesame-1") as site:
        context = chromium.new_context()
        visit = Visit(context.new_page(), site)
        visit.open()
        visit.page.fill("#token", "wrong-token")
        visit.page.click("text=Enter")
        visit.told("not the token")
        visit.open("#token=open-sesame-1")
        visit.page.reload()
        visit.playing()
        assert "sesame" not in visit.ask("location.href + document.cookie + JSON.stringify(localStorage)")
        visit.page.reload()
        visit.playing()
        context.close()


def test_a_server_that_comes_back_is_found_again(visit, site: Site) -> None:
    visit.open()
    visit.playing()
    visit.page.context.set_offline(True)
    visit.ask("0")
    for viewer in [*site.studio.find(visit.take()).viewers]:  # each leaves, in another thread
        site.studio.loop.call_soon_threadsafe(viewer.end, 1012)
    visit.until("document.querySelector('.over').textContent.includes('trying again')")
    visit.page.context.set_offline(False)
    visit.until("document.querySelector('.over').hidden", 30)
    before = visit.frames()
    visit.until(f"document.querySelector('video').getVideoPlaybackQuality().totalVideoFrames > {before + 24}")
    visit.faults = [fault for fault in visit.faults if "WebSocket" not in fault and "ERR_INTERNET" not in fault]
