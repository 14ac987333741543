"""``/v1/videos`` and ``/v1/models``, in the shape of OpenAI's: their clients can be pointed here."""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Route

from nearstep.files import link_or_copy
from nearstep.json_files import NUMBER, TEXT, Kind, count, either, optional
from nearstep.server.answers import json_body
from nearstep.server.app import ModelFacts
from nearstep.server.jobs import CANCELLED, DONE, FAILED, MAKING, NAME, OVER, Job, Jobs, new_name
from nearstep.server.making import Maker
from nearstep.server.protocol import NEGATIVE, PLAN, PROMPT, SEED, Json, checked
from nearstep.server.refusals import Refusal, absent, check_size, full
from nearstep.server.studio import Limits
from nearstep.server.uploads import Uploads
from nearstep.server.worker import Worker
from nearstep.stream.request import latent_shape

if TYPE_CHECKING:
    from nearstep.stream.pipeline import CausalVideoPipeline

SECONDS = "4"
"""Of a video, unless it is said; as OpenAI's."""
POLL = {"openai-poll-after-ms": "250"}
_FIELDS: Mapping[str, Kind] = {
    "prompt": PROMPT,
    "model": optional(TEXT),
    "seconds": optional(either(TEXT, NUMBER)),
    "size": optional(TEXT),
    "plan": optional(PLAN),
    "num_inference_steps": optional(count(1000)),
    "seed": optional(SEED),
    "negative_prompt": optional(NEGATIVE),
    "guidance_scale": optional(NUMBER),
}
_WHOLE, _REAL = frozenset({"num_inference_steps", "seed"}), frozenset({"guidance_scale"})
_SIZE = re.compile(r"(\d{1,5})x(\d{1,5})")
_FORM_FIELDS = 20


class Videos:
    """What is answered under /v1.

    Args:
        pipe: the model.
        worker: whose thread may use it.
        facts: what it is called.
        jobs: what was asked for.
        maker: what makes it.
        uploads: what takes pictures and clips.
        limits: how much is taken.
        replica: the rank of this server among several; None: it is the only one.
    """

    def __init__(
        self,
        pipe: CausalVideoPipeline,
        worker: Worker,
        facts: ModelFacts,
        jobs: Jobs,
        maker: Maker,
        uploads: Uploads,
        limits: Limits,
        replica: int | None = None,
    ) -> None:
        self._pipe, self._worker, self._facts, self._jobs = pipe, worker, facts, jobs
        self._maker, self._uploads, self._limits = maker, uploads, limits
        self._replica, self._started = replica, int(time.time())

    def routes(self) -> list[BaseRoute]:
        """All addresses."""
        return [
            Route("/v1/models", self.models),
            Route("/v1/models/{name:path}", self.model),
            Route("/v1/videos", self.create, methods=["POST"]),
            Route("/v1/videos", self.listing, methods=["GET"]),
            Route("/v1/videos/{name}", self.get, methods=["GET"]),
            Route("/v1/videos/{name}", self.delete, methods=["DELETE"]),
            Route("/v1/videos/{name}/cancel", self.cancel, methods=["POST"]),
            Route("/v1/videos/{name}/content", self.content, methods=["GET"]),
        ]

    async def models(self, _: Request) -> Response:
        """The one there is."""
        return JSONResponse({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        """That one."""
        if request.path_params["name"] != self._facts.name:
            raise absent("model", request.path_params["name"])
        return JSONResponse(self._model())

    async def create(self, request: Request) -> Response:
        """Ask for a video."""
        if self._maker.ended is not None:
            raise Refusal(503, f"no more videos are made ({self._maker.ended[:200]}); start the server anew")
        content, file = await _content(request)
        asked = await self._asked(checked(content, _FIELDS, "the request", frozenset({"prompt"})))
        context = None if file is None else self._uploads.path(await asyncio.to_thread(self._uploads.add, file))
        if self._jobs.open_count() >= self._limits.jobs:
            raise full("videos waiting", self._limits.jobs, "--jobs")
        name = new_name(self._replica)
        if context is not None:
            link_or_copy(context, self._maker.video(name).with_suffix(".npy"))
        job = self._jobs.add(name, asked)
        self._maker.notice()
        for old in self._jobs.beyond(self._limits.kept):
            self._drop(old)
        return JSONResponse(self._told(job), headers=POLL)

    async def listing(self, request: Request) -> Response:
        """Those that were asked for: ?limit= (20), ?after=ID, ?order=desc."""
        query = request.query_params
        limit = query.get("limit", "20")
        if not re.fullmatch("[0-9]{1,3}", limit) or not 1 <= int(limit) <= 100:
            raise Refusal(400, f"limit={limit[:20]}: give 1 to 100")
        if (order := query.get("order", "desc")) not in ("asc", "desc"):
            raise Refusal(400, f"order={order[:20]}: give asc or desc")
        after = self._find(query["after"]).number if query.get("after") else None
        jobs = self._jobs.listing(after=after, limit=int(limit) + 1, newest_first=order == "desc")
        page = [self._told(job) for job in jobs[: int(limit)]]
        ends = {"first_id": page[0]["id"], "last_id": page[-1]["id"]} if page else {"first_id": None, "last_id": None}
        return JSONResponse({"object": "list", "data": page, "has_more": len(jobs) > int(limit), **ends})

    async def get(self, request: Request) -> Response:
        """How far one is."""
        return JSONResponse(self._told(self._named(request)), headers=POLL)

    async def cancel(self, request: Request) -> Response:
        """Stop one, after the chunk that is being made."""
        job = self._named(request)
        if not self._jobs.finish(job.id, CANCELLED):
            raise Refusal(409, f"this video is {job.status} already")
        self._maker.notice()
        return JSONResponse(self._told(self._find(job.id)))

    async def delete(self, request: Request) -> Response:
        """Stop one if it is not over, and remove it."""
        job = self._named(request)
        self._drop(job)
        self._maker.notice()
        return JSONResponse({"id": job.id, "object": "video.deleted", "deleted": True})

    async def content(self, request: Request) -> Response:
        """The file: ?variant=video or thumbnail."""
        job, variant = self._named(request), request.query_params.get("variant", "video")
        if variant not in ("video", "thumbnail"):
            raise Refusal(400, f"variant={variant[:20]}: give video or thumbnail")
        if job.status != DONE:
            raise Refusal(409, f"this video is {job.status}; its file is there when it is {DONE}")
        video = self._maker.video(job.id)
        path = video if variant == "video" else video.with_suffix(".jpg")
        if not path.is_file():
            raise Refusal(410, f"the {variant} of {job.id} is no longer in the server's folder; ask for it anew")
        if variant == "thumbnail":
            return FileResponse(path, media_type="image/jpeg")
        return FileResponse(path, media_type="video/mp4", filename=f"{job.id}.mp4")

    # --- helpers ---------------------------------------------------------------------------------------------------

    async def _asked(self, fields: Json) -> Json:
        """A request as what a job is made of, after all of it was checked against the model.

        Raises:
            Refusal: for another model, a length or a size that is none.
            NearstepError: for what the model cannot do.
        """
        if fields.get("model", self._facts.name) != self._facts.name:
            raise Refusal(404, f"there is no model {fields['model'][:60]!r} here; it is {self._facts.name!r}")
        if "plan" in fields and "num_inference_steps" in fields:
            raise Refusal(400, "give plan or num_inference_steps, not both")
        asked = {
            name: fields[name] for name in ("prompt", "seed", "negative_prompt", "guidance_scale") if name in fields
        }
        steps = fields.get("num_inference_steps")
        asked["plan"] = fields.get("plan") or (str(steps) if steps else self._facts.plan)
        asked.setdefault("seed", secrets.randbelow(2**31))  # so that a video is made again as it was
        asked["seconds"] = str(fields.get("seconds", SECONDS))
        asked["chunks"] = self._chunks(asked["seconds"])
        asked |= self._size(fields.get("size"))
        await asyncio.wrap_future(self._worker.call(lambda: self._check(asked)))
        return asked

    def _check(self, asked: Json) -> None:
        """On the worker's thread."""
        self._pipe.live_plan(asked["plan"])
        latent_shape(self._pipe.configs, height=asked["height"], width=asked["width"])
        self._pipe.conditioning(
            asked["prompt"],
            negative_prompt=asked.get("negative_prompt", ""),
            guidance_scale=asked.get("guidance_scale"),
            seed=asked["seed"],
        )

    def _chunks(self, seconds: str) -> int:
        try:
            length = float(seconds)
        except ValueError:
            length = -1.0
        most = self._limits.longest * self._facts.chunk / self._facts.fps
        if not 0 < length <= most:
            raise Refusal(400, f"seconds={seconds[:20]}: give more than 0, and at most {most:g}")
        return max(1, round(length * self._facts.fps / self._facts.chunk))

    def _size(self, size: str | None) -> Json:
        if size is None:
            return {"height": self._facts.height, "width": self._facts.width}
        if not (found := _SIZE.fullmatch(size)):
            raise Refusal(400, f"size={size[:20]}: give WIDTHxHEIGHT, such as {self._facts.width}x{self._facts.height}")
        width, height = int(found[1]), int(found[2])
        check_size(width, height, usual=self._facts.width * self._facts.height)
        return {"height": height, "width": width}

    def _named(self, request: Request) -> Job:
        return self._find(request.path_params["name"])

    def _find(self, name: str) -> Job:
        job = self._jobs.find(name) if NAME.fullmatch(name) else None
        if job is None:
            raise absent("video", name)
        return job

    def _drop(self, job: Job) -> None:
        self._jobs.finish(job.id, CANCELLED)
        self._jobs.remove(job.id)
        if job.status != MAKING:
            self._maker.remove(job.id)  # else whoever makes it does, when it sees that

    def _model(self) -> Json:
        return {"id": self._facts.name, "object": "model", "created": self._started, "owned_by": "nearstep"}

    def _told(self, job: Job) -> Json:
        asked = job.asked
        over = job.completed if job.status in OVER else None
        return {
            "id": job.id,
            "object": "video",
            "model": self._facts.name,
            "status": job.status,
            "progress": 100 if job.status == DONE else min(99, round(100 * job.made / asked["chunks"])),
            "created_at": int(job.created),
            "completed_at": None if over is None else int(over),
            "expires_at": None,
            "prompt": asked["prompt"],
            "seconds": asked["seconds"],
            "size": f"{asked['width']}x{asked['height']}",
            "error": {"code": "failed", "message": job.error} if job.status == FAILED else None,
            "remixed_from_video_id": None,
            "plan": asked["plan"],
            "seed": asked["seed"],
        }


async def _content(request: Request) -> tuple[Json, bytes | None]:
    """The fields of a request, JSON or a form; and the file of its input_reference."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        return await json_body(request, "a JSON object, or a form"), None
    found: Json = {}
    file: bytes | None = None
    async with request.form(max_files=1, max_fields=_FORM_FIELDS) as form:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                if name != "input_reference":
                    raise Refusal(400, f"there is no file {name[:40]!r}; a picture or clip is input_reference")
                file = await value.read()
            else:
                found[name] = _number(name, value)
    return found, file


def _number(name: str, value: str) -> object:
    """A form's value: all are texts there."""
    try:
        return int(value) if name in _WHOLE else float(value) if name in _REAL else value
    except ValueError:
        return value


def job_folder(state: Path) -> Path:
    """Where videos are kept."""
    folder = state / "videos"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
