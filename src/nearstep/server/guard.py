"""Who may ask at all: before anything else of a request is looked at, its Host, its Origin, its token and its size.

A page of somebody else's that is open in the same browser can send requests here. It cannot choose their Host (so a
name that is made to point here is refused) nor their Origin (so scripts and WebSockets of other pages are), and it
cannot read the token, which is kept in a cookie of this site alone.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie

from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nearstep.server.refusals import Refusal

LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})
OPEN = ("/health", "/watch/", "/api/watch/", "/static/", "/api/enter")
"""What needs no token: nothing secret, or an id that nobody can guess."""
BODY = 256 * 1024
"""Bytes of a request that brings no file."""
SLOWEST = 20.0
"""Seconds between two parts of a request's body."""
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; "
    "media-src 'self' blob:; style-src 'self'; connect-src 'self'; frame-ancestors 'none'; "
    "base-uri 'none'; form-action 'self'; object-src 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


@dataclass(frozen=True, kw_only=True)
class Door:
    """Who is let in."""

    hosts: frozenset[str] = LOCAL
    """Names that the server is reached under."""
    addresses: bool = False
    """Whether any number (192.0.2.7) does as well: nobody can make one point elsewhere."""
    token: str | None = None
    port: int = 7860
    uploads: int = 64 * 2**20
    """Bytes of a file."""

    @property
    def cookie(self) -> str:
        """The name of the token's cookie: browsers do not tell ports apart."""
        return f"nearstep-{self.port}"

    def opens(self, given: str | None) -> bool:
        """Whether this is the token."""
        return self.token is None or (given is not None and hmac.compare_digest(given.encode(), self.token.encode()))


def new_token() -> str:
    """A token that nobody can guess."""
    return secrets.token_urlsafe(24)


def door_of(host: str, port: int, token: str | None, names: Collection[str] = ()) -> Door:
    """Who is let in where a server listens.

    Args:
        host: what it listens at.
        port: the same.
        token: what lets in; None: nothing is asked for.
        names: further ones that it is reached under, such as a proxy's.
    """
    anywhere = host in ("0.0.0.0", "::", "")
    hosts = LOCAL | {name.lower() for name in names} | (set() if anywhere else {host.lower()})
    return Door(hosts=frozenset(hosts), addresses=anywhere, token=token, port=port)


class Guard:
    """ASGI: lets through what may pass, and answers the rest.

    Args:
        app: what is guarded.
        door: who may pass.
        upload_paths: where a body may be a file.
    """

    def __init__(self, app: ASGIApp, door: Door, upload_paths: Collection[str] = ()) -> None:
        self._app, self._door, self._upload_paths = app, door, frozenset(upload_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = _headers(scope)
        try:
            self.check(scope)
            if scope["type"] == "http":
                receive = self._bounded(scope, headers, receive)
        except Refusal as refusal:
            await _answer(refusal, scope, receive, send)
            return
        started = False

        async def sealed(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [*message["headers"], *((n.encode(), v.encode()) for n, v in HEADERS.items())]
            await send(message)

        try:
            await self._app(scope, receive, sealed)
        except Refusal as refusal:  # of a body that is too long or too slow
            if not started:
                await _answer(refusal, scope, receive, send)

    def check(self, scope: Scope) -> None:
        """Look at Host, Origin and token.

        Raises:
            Refusal: for whoever may not pass.
        """
        headers = _headers(scope)
        host = headers.get("host", "")
        if not self._is_ours(_name_of(host)):
            raise Refusal(421, f"this server is not {host[:80]!r}; use the address that it printed, or --allow-host")
        origin = headers.get("origin")
        if origin is not None and origin not in (f"http://{host}", f"https://{host}"):
            raise Refusal(403, f"pages of {origin[:80]!r} may not talk to this server")
        if not self._is_open(scope["path"]) and not self._door.opens(self._given(headers)):
            raise Refusal(401, "this needs the token that the server printed: Authorization: Bearer TOKEN")

    def _is_ours(self, name: str) -> bool:
        if name in self._door.hosts:
            return True
        if not self._door.addresses:
            return False
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    @staticmethod
    def _is_open(path: str) -> bool:
        return path in ("/", "/favicon.ico") or path.startswith(OPEN)

    def _given(self, headers: dict[str, str]) -> str | None:
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return bearer.strip()
        return cookie_of(headers.get("cookie", ""), self._door.cookie)

    def _bounded(self, scope: Scope, headers: dict[str, str], receive: Receive) -> Receive:
        most = self._door.uploads if scope["path"] in self._upload_paths else BODY
        stated = headers.get("content-length", "0")
        too_much = Refusal(413, f"a body of more than {most} bytes; no more are taken here")
        if not stated.isdigit() or int(stated) > most:
            raise too_much
        taken = 0

        async def bounded() -> Message:
            nonlocal taken
            try:
                async with asyncio.timeout(None if taken < 0 else SLOWEST):
                    message = await receive()
            except TimeoutError:
                raise Refusal(408, f"no part of the request's body came for {SLOWEST:g} s") from None
            if message["type"] == "http.request":
                taken += len(message.get("body", b""))
                if taken > most:
                    raise too_much
                if not message.get("more_body"):
                    taken = -1  # what comes next is only that the client leaves, whenever that is
            return message

        return bounded


async def _answer(refusal: Refusal, scope: Scope, receive: Receive, send: Send) -> None:
    """A refusal as a response; a WebSocket is refused before it is one."""
    response = error_response(refusal.status, refusal.why)
    if scope["type"] == "websocket" and "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": 1008, "reason": refusal.why[:120]})
        return
    if refusal.status in (408, 413):
        response.headers["Connection"] = "close"
    for name, value in HEADERS.items():
        response.headers[name] = value
    await response(scope, receive, send)


def error_response(status: int, why: str) -> Response:
    """An error in the shape that OpenAI's clients read."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return JSONResponse({"error": {"message": why, "type": kind, "code": status, "param": None}}, status_code=status)


def cookie_of(header: str, name: str) -> str | None:
    """The value of one of the cookies that a request brings."""
    try:
        morsel = SimpleCookie(header).get(name)
    except CookieError:
        return None
    return None if morsel is None else morsel.value


def _headers(scope: Scope) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}


def _name_of(host: str) -> str:
    """A Host header without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.rpartition(":")[0].lower() if host.count(":") == 1 else host.lower()
