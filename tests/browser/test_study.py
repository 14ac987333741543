"""The voting page in a real browser: by keyboard, resumed, narrow, and without a word about whose a clip is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from served import Site
from studies import booth, new_study
from visits import Visit

from nearstep.study.public import Public
from nearstep.study.votes import read_votes

pytestmark = pytest.mark.browser

NAMES = ("alphasystem", "betasystem")
CAN_VOTE = "!document.querySelector('[data-choice=left]').disabled"
DONE = "document.querySelector('#count').textContent"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return new_study(tmp_path_factory.mktemp("study"), NAMES, count=3, attention=1, repeat=0.3)


@pytest.fixture
def site(study: Path) -> Iterator[Site]:
    (study / "votes.jsonl").unlink(missing_ok=True)
    with booth(study) as found:
        yield found


@pytest.fixture
def visit(chromium, site: Site) -> Iterator[Visit]:
    context = chromium.new_context(viewport={"width": 1000, "height": 800})
    found = Visit(context.new_page(), site)
    yield found
    context.close()
    assert not found.faults


def enter(visit: Visit, name: str) -> None:
    visit.open()
    visit.until("!document.querySelector('#who').hidden && document.activeElement.id === 'name'")
    visit.page.keyboard.type(name)
    visit.page.keyboard.press("Enter")
    visit.until(CAN_VOTE)


def press(visit: Visit, key: str) -> None:
    before = visit.ask(DONE)
    visit.page.keyboard.press(key)
    visit.until(f"{DONE} !== {before!r} && ({CAN_VOTE}) || !document.querySelector('#finished').hidden")


def test_all_by_keyboard_and_a_reload_goes_on_where_it_was(visit: Visit, study: Path) -> None:
    public, said = Public.open(study), []
    visit.page.on("request", lambda request: said.append(request.url + str(request.post_data)))
    enter(visit, "ann")
    keys = {"ArrowLeft": "left", "ArrowDown": "tie", "ArrowRight": "right"}
    for number, key in enumerate(keys, 1):
        press(visit, key)
        assert visit.ask(DONE) == f"{number} of 5 done"
    visit.page.reload()
    visit.until(CAN_VOTE)
    assert visit.ask(DONE) == "3 of 5 done"
    press(visit, "ArrowLeft")
    press(visit, "ArrowRight")
    visit.until("!document.querySelector('#finished').hidden")
    votes = read_votes(study / "votes.jsonl").votes
    assert [vote.choice for vote in votes] == [*keys.values(), "left", "right"]
    assert [vote.trial for vote in votes] == [trial.id for trial in public.order("ann")]
    assert all(vote.seconds > 0.4 for vote in votes)  # four frames at 8 a second are seen to their end
    assert said and not [each for each in said for name in NAMES if name in each]
    assert not [name for name in NAMES if name in visit.page.content()]


def test_no_vote_before_both_were_shown_and_both_start_together(visit: Visit, study: Path) -> None:
    visit.open()
    visit.page.add_init_script(
        "window.starts = []; addEventListener('play', e => window.starts.push([e.target.id, performance.now()]), true)"
    )
    enter(visit, "bob")
    visit.until("window.starts.length >= 6")  # they go round together
    starts = visit.ask("window.starts")
    for (one, at), (other, after) in zip(starts[::2], starts[1::2], strict=False):
        assert {one, other} == {"left", "right"} and after - at < 50
    press(visit, "ArrowLeft")
    visit.page.reload()
    visit.until("document.querySelector('#trial') && !document.querySelector('#trial').hidden")
    if not visit.ask(CAN_VOTE):
        visit.page.keyboard.press("ArrowLeft")
        visit.page.keyboard.press("ArrowRight")
    visit.until(CAN_VOTE)
    assert len(read_votes(study / "votes.jsonl").votes) == 1


def test_what_a_screen_reader_is_told(visit: Visit) -> None:
    enter(visit, "chen")
    labels = visit.ask("[...document.querySelectorAll('video')].map(v => v.getAttribute('aria-label'))")
    assert labels == ["Left video", "Right video"]
    assert visit.page.get_by_role("group", name="Which video is better").count() == 1
    assert visit.page.get_by_role("button", name="About the same").count() == 1
    assert visit.page.get_by_role("progressbar", name="0 of 5 done").count() == 1
    press(visit, "ArrowDown")
    assert visit.page.get_by_role("status").inner_text() == "You said: about the same."


def test_markup_in_a_name_is_text(visit: Visit, study: Path) -> None:
    enter(visit, "<img src=x onerror=boom()>")
    press(visit, "ArrowLeft")
    assert read_votes(study / "votes.jsonl").votes[0].rater == "<img src=x onerror=boom()>"
    assert visit.ask("document.querySelectorAll('img').length") == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_narrow_screen(visit: Visit, scheme: str) -> None:
    visit.page.set_viewport_size({"width": 360, "height": 740})
    visit.page.emulate_media(color_scheme=scheme)
    enter(visit, "dee")
    assert visit.ask("document.documentElement.scrollWidth") <= 360
    for button in visit.page.query_selector_all("#choices button"):
        box = button.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 360 and box["height"] >= 40
    left, right = (visit.page.query_selector(f"#{side}").bounding_box() for side in ("left", "right"))
    assert left["width"] > 100 and abs(left["y"] - right["y"]) < 1 and left["x"] + left["width"] <= right["x"]


def test_with_a_token(chromium, study: Path) -> None:
    with booth(study, token="open-sesame-1") as site:
        context = chromium.new_context()
        page = context.new_page()
        page.goto(f"http://127.0.0.1:{site.port}/#token=open-sesame-1")
        page.wait_for_selector("#who:not([hidden])")
        assert "token" not in page.url
        page.fill("#name", "eve")
        page.click("#who button")
        page.wait_for_selector("#trial:not([hidden])")
        context.close()
