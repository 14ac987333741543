"""What every server of this package does with a request's body, and how it says what went wrong."""

from __future__ import annotations

from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from nearstep.errors import NearstepError
from nearstep.json_files import TEXT, parsed_object
from nearstep.server.guard import Door, error_response
from nearstep.server.protocol import Json, checked
from nearstep.server.refusals import Refusal

STATIC = Path(__file__).parent / "static"
"""Files of the pages."""


async def json_body(request: Request, kinds: str = "a JSON object") -> Json:
    """The object that a request brings.

    Args:
        request: with a body of at most what the guard lets through.
        kinds: what bodies the address takes.

    Raises:
        Refusal: for a body that is no JSON object.
    """
    try:
        return parsed_object((await request.body()).decode())
    except ValueError as error:
        raise Refusal(400, f"the request's body is {kinds}: {error}") from None


async def entered(request: Request, door: Door) -> Response:
    """A token as a cookie, which scripts cannot read and no other site sends.

    Raises:
        Refusal: for any other token than the door's.
    """
    token = checked(await json_body(request), {"token": TEXT}, "the request", frozenset({"token"}))["token"]
    if not door.opens(token):
        raise Refusal(401, "that is not the token that the server printed")
    response = JSONResponse({"ok": True})
    secure = request.url.scheme == "https"
    response.set_cookie(door.cookie, token, httponly=True, samesite="strict", secure=secure)
    return response


async def _refused(_: Request, error: Exception) -> Response:
    return error_response(error.status if isinstance(error, Refusal) else 400, str(error))


async def _no_page(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    there = f"there is no {request.method} {request.url.path[:80]}"
    return error_response(status, there if status in (404, 405) else str(getattr(error, "detail", error))[:200])


async def _unforeseen(_: Request, error: Exception) -> Response:
    return error_response(500, f"this should not have happened ({type(error).__name__}); the server's log says where")


HANDLERS = {Refusal: _refused, NearstepError: _refused, HTTPException: _no_page, Exception: _unforeseen}
"""Kind of error -> its answer."""
