"""Play stories on a real bridge, on either event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import uvloop

from tests.e2e.bridge_scene import Story, scene

Play = Callable[..., None]


def player(kind: str) -> Play:
    """Return a function that plays a story, in a scene of its own, on this kind of event loop."""
    factory = uvloop.new_event_loop if kind == "uvloop" else asyncio.new_event_loop

    def run(story: Story, **more: Any) -> None:
        async def played() -> None:
            async with scene(**more) as it:
                await story(it)

        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(played())

    return run


def report(status: str, id_: str | None, reason: str | None = None) -> dict[str, Any]:
    payload = {"id": id_} if reason is None else {"id": id_, "reason": reason}
    return {"header": {"messageType": "statusReport", "status": status}, "payload": payload}


def short(frame: dict[str, Any]) -> dict[str, Any]:
    """A report without the server's own id of the message."""
    frame["payload"].pop("message", None)
    return frame
