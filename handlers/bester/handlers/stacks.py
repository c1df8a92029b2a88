"""Inspects a thread: the user's function that runs in it, and the line."""

from __future__ import annotations

import asyncio
import os
import sys
from types import CodeType, FrameType
from typing import Any, NamedTuple

import zmq

from bester.broker import fabric

_KIT = os.path.dirname(__file__)
_ASYNCIO = os.path.dirname(asyncio.__file__)
_OURS = tuple(os.path.join(os.path.dirname(str(module.__file__)), "") for module in (fabric, zmq))
_CALLERS = frozenset({"_work", "_call_inline", "_call", "outcome_of", "call_async", "call_plain"})
"""Functions of this kit that call a user's function: of task pool, threads, worker and timers."""


class Position(NamedTuple):
    """Position of a thread: the `function` that this kit has called (None: none), its code, and the line in the user's
    file, or else in any."""

    function: str | None
    code: CodeType | None
    line: str

    def __str__(self) -> str:
        return f"{self.function or 'something'} (at {self.line})"


def position_of(thread: int) -> Position | None:
    """Return the position of a thread; None where there is no such thread."""
    frame = sys._current_frames().get(thread)
    return None if frame is None else _position(frame)


def line_of(thread: int) -> str | None:
    """Return the line that a thread is at, in anyone's code; None where there is no such thread."""
    frame = sys._current_frames().get(thread)
    return None if frame is None else _line(frame)


def waits_at(task: asyncio.Task[Any]) -> str:
    """Return the line at which a task waits: the innermost one outside asyncio."""
    line = "its end"
    awaited: Any = task.get_coro()
    while awaited is not None:
        frame = getattr(awaited, "cr_frame", None) or getattr(awaited, "gi_frame", None)
        if frame is not None and os.path.dirname(frame.f_code.co_filename) != _ASYNCIO:
            line = _line(frame)
        awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "gi_yieldfrom", None)
    return line


def _name(frame: FrameType) -> str:
    return f"{frame.f_globals.get('__name__', '?')}.{frame.f_code.co_qualname}"


def _line(frame: FrameType) -> str:
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def _position(innermost: FrameType) -> Position:
    frames: list[FrameType] = []
    frame: FrameType | None = innermost
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    frames.reverse()
    found = _called(frames)
    if found is None:
        return Position(None, None, _line(innermost))
    own = [frame for frame in frames if frame.f_code.co_filename == found.f_code.co_filename]
    line = _line(own[-1])
    if own[-1] is not innermost:
        line += f", in {_name(innermost)}"
    return Position(_name(found), found.f_code, line)


def _called(frames: list[FrameType]) -> FrameType | None:
    """Return the frame of the function that the kit has called, or else the first one that asyncio has called."""
    at = next((number for number, frame in enumerate(frames) if _calls_users(frame)), None)
    if at is None:
        inside = [number for number, frame in enumerate(frames) if _is_machinery(frame)]
        if not inside:
            return None
        at = inside[0]
        while at + 1 < len(frames) and _is_machinery(frames[at + 1]):
            at += 1
        if os.path.dirname(frames[at].f_code.co_filename) != _ASYNCIO:
            return None  # called by this kit for its own purpose: no user's function
    return next((frame for frame in frames[at + 1 :] if not _is_machinery(frame)), None)


def _calls_users(frame: FrameType) -> bool:
    return frame.f_code.co_name in _CALLERS and os.path.dirname(frame.f_code.co_filename) == _KIT


def _is_machinery(frame: FrameType) -> bool:
    name = frame.f_code.co_filename
    return os.path.dirname(name) in (_KIT, _ASYNCIO) or name.startswith(_OURS)
