"""The WebSocket of one viewer: what it asks goes to its take, what the take tells goes to it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from nearstep.errors import NearstepError
from nearstep.server.kept import as_text
from nearstep.server.protocol import MOST_FAULTS, STEERING, Close, Json, Request, read_request
from nearstep.server.refusals import Refusal
from nearstep.server.studio import Studio
from nearstep.server.take import Take
from nearstep.server.viewers import Slow, Viewer

SLOWEST = 30.0
"""Seconds that a viewer has to take one message."""
_AFTER = re.compile(r"(\d{1,7})\.(\d{1,7})")


async def attend(socket: WebSocket, studio: Studio, name: str, *, steers: bool) -> None:
    """Serve one viewer until it leaves.

    Args:
        socket: its connection, not accepted yet.
        studio: where takes are.
        name: the take's id, or the id that it is watched under.
        steers: whether it is the first of these.
    """
    await socket.accept()
    try:
        take = studio.find(name, watch=not steers)
    except Refusal as refusal:
        over = _is_kept(studio, name, watch=not steers)
        why = "this take is over; its recording and its video can be downloaded" if over else refusal.why
        await _refused(socket, Close.GONE if over else Close.ABSENT, why)
        return
    if studio.viewers >= studio.limits.viewers:
        await _refused(socket, Close.FULL, f"{studio.limits.viewers} viewers are here already (--viewers)")
        return
    viewer, found = Viewer(steers=steers), _AFTER.fullmatch(socket.query_params.get("after", ""))
    take.attach(viewer, (int(found[1]), int(found[2])) if found else None)
    try:
        await _both(_sent(socket, viewer), _heard(socket, viewer, take))
    finally:
        take.detach(viewer)


async def _both(*parts: Coroutine[Any, Any, None]) -> None:
    """Until one of them ends; the other ends with it."""
    tasks = [asyncio.ensure_future(part) for part in parts]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _sent(socket: WebSocket, viewer: Viewer) -> None:
    """Send what is there, in order; close where it does not read."""
    try:
        while True:
            item = await viewer.next()
            if isinstance(item, int):
                await _closed(socket, item)
                return
            event, data = item if isinstance(item, tuple) else (item, None)
            async with asyncio.timeout(SLOWEST):
                await socket.send_text(as_text(event))
                if data is not None:
                    await socket.send_bytes(data)
    except (Slow, TimeoutError):
        await _closed(socket, Close.SLOW)
    except (WebSocketDisconnect, RuntimeError, OSError):
        return  # it has left


async def _heard(socket: WebSocket, viewer: Viewer, take: Take) -> None:
    """Do what is asked, until it leaves or says too much that is no message."""
    faults = 0
    while True:
        message = await socket.receive()
        if message["type"] == "websocket.disconnect":
            return
        try:
            _answer(viewer, take, read_request(_text_of(message)))
        except NearstepError as error:
            faults += 1
            viewer.tell({"type": "error", "why": str(error)})
            if faults >= MOST_FAULTS:
                await _closed(socket, Close.FAULTS)
                return


def _text_of(message: object) -> str:
    text = message.get("text") if isinstance(message, dict) else None
    if not isinstance(text, str):
        raise NearstepError("a message is a JSON text; binary ones go the other way only")
    return text


def _answer(viewer: Viewer, take: Take, request: Request) -> None:
    if request.type in STEERING and not viewer.steers:
        raise NearstepError(f"this address only watches; {request.type!r} needs the take's own")
    if request.type == "ping":
        viewer.tell({"type": "pong"})
    elif request.type == "ack":
        take.acknowledge(viewer, request.fields["epoch"], request.fields["chunk"])
    else:
        take.ask(viewer, request)


def _is_kept(studio: Studio, name: str, *, watch: bool) -> bool:
    try:
        studio.find_kept(name, watch=watch)
    except Refusal:
        return False
    return True


async def _refused(socket: WebSocket, code: int, why: str) -> None:
    told: Json = {"type": "error", "why": why}
    with suppress(WebSocketDisconnect, RuntimeError, OSError):
        await socket.send_text(as_text(told))
    await _closed(socket, code)


async def _closed(socket: WebSocket, code: int) -> None:
    with suppress(WebSocketDisconnect, RuntimeError, OSError, TimeoutError):
        async with asyncio.timeout(5):
            await socket.close(code)
