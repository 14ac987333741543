"""The voting page of a preference study (study/): trials one after the other, votes, and nothing of whose a clip is.

The server opens the public part of a study and its votes, never the key. All clips come from addresses of one form, in
answers of one length with the same headers.
"""

from __future__ import annotations

import asyncio
from functools import lru_cache

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from nearstep.json_files import TEXT, one_of
from nearstep.server.answers import HANDLERS, STATIC, entered, json_body
from nearstep.server.guard import Door, Guard
from nearstep.server.protocol import Json, checked
from nearstep.server.refusals import Refusal, absent
from nearstep.study.public import Public, ShownTrial
from nearstep.study.votes import CHOICES, JUDGE, SECONDS, Vote, VoteFile, rater_name

MOST_RATERS = 10_000
_AHEAD = 2
"""Trials that a page is told of: the one that is shown, and one to fetch meanwhile."""
_BEGIN = {"rater": TEXT}
_VOTE = {"rater": TEXT, "trial": TEXT, "choice": one_of(*CHOICES), "seconds": SECONDS}


class Booth:
    """What is answered at each address."""

    def __init__(self, public: Public, votes: VoteFile, door: Door) -> None:
        self._public, self._votes, self._door = public, votes, door
        self._clips = public.clips
        self._order = lru_cache(maxsize=256)(public.order)

    def routes(self) -> list[Route | Mount]:
        """All addresses."""
        return [
            Route("/", self.page),
            Route("/favicon.ico", self.icon),
            Mount("/static", StaticFiles(directory=STATIC)),
            Route("/api/enter", self.enter, methods=["POST"]),
            Route("/api/begin", self.begin, methods=["POST"]),
            Route("/api/vote", self.vote, methods=["POST"]),
            Route("/api/clips/{name}", self.clip, methods=["GET"]),
            Route("/health", self.health),
        ]

    async def page(self, _: Request) -> Response:
        """The page."""
        return FileResponse(STATIC / "study.html", headers={"Cache-Control": "no-cache"})

    async def icon(self, _: Request) -> Response:
        """What browsers ask for by themselves."""
        return FileResponse(STATIC / "icon.svg", media_type="image/svg+xml")

    async def enter(self, request: Request) -> Response:
        """A token as a cookie."""
        return await entered(request, self._door)

    async def begin(self, request: Request) -> Response:
        """Where a rater is: at the beginning, or where the last vote left off."""
        asked = checked(await json_body(request), _BEGIN, "the request", frozenset(_BEGIN))
        return self._state(self._rater(asked["rater"]))

    async def vote(self, request: Request) -> Response:
        """A vote, on the disk before it is answered; the same one once more changes nothing."""
        asked = checked(await json_body(request), _VOTE, "the request", frozenset(_VOTE))
        rater, trial = self._rater(asked["rater"]), asked["trial"]
        if trial not in self._public.trials:
            raise absent("trial", trial)
        given = Vote(trial=trial, rater=rater, choice=asked["choice"], seconds=round(float(asked["seconds"]), 3))
        counts = await asyncio.to_thread(self._votes.add, given)
        if counts != given.choice:
            raise Refusal(409, f"{rater} has voted on this already; the first vote counts")
        return self._state(rater)

    async def clip(self, request: Request) -> Response:
        """A clip."""
        name = request.path_params["name"]
        if name not in self._clips:
            raise absent("clip", name)
        content = await asyncio.to_thread(self._public.clip(name).read_bytes)
        return Response(content, media_type="video/mp4", headers={"Cache-Control": "no-store"})

    async def health(self, _: Request) -> Response:
        """Whether the process answers."""
        return JSONResponse({"live": True, "ready": True})

    def _rater(self, given: str) -> str:
        rater = rater_name(given)
        if rater.casefold() == JUDGE:
            raise Refusal(403, f"{rater!r} is the judge's name; take another")
        if self._votes.raters >= MOST_RATERS and not self._votes.of(rater):
            raise Refusal(429, f"{MOST_RATERS} raters have voted already")
        return rater

    def _state(self, rater: str) -> Response:
        done, order = self._votes.of(rater), self._order(rater)
        waiting = [trial for trial in order if trial.id not in done]
        facts = {"rater": rater, "question": self._public.question, "total": len(order)}
        ahead = [_told(trial) for trial in waiting[:_AHEAD]]
        return JSONResponse({**facts, "done": len(order) - len(waiting), "trials": ahead})


def _told(trial: ShownTrial) -> Json:
    return {"id": trial.id, "left": trial.left, "right": trial.right, "prompt": trial.prompt}


def voting_app(public: Public, votes: VoteFile, door: Door) -> Guard:
    """The app.

    Args:
        public: what is shown.
        votes: where votes go.
        door: who is let in.
    """
    return Guard(Starlette(routes=Booth(public, votes, door).routes(), exception_handlers=HANDLERS), door)
