"""Position of a thread: the user's function, and never a function of the kit."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from types import FunctionType

from bester.handlers import stacks
from bester.handlers.stacks import Position, position_of

PATIENCE_S = 30.0


def position_during(callback: Callable[[Callable[[], object]], object]) -> Position | None:
    """Run `callback` on a loop of its own; return its thread's position during the call of its argument."""
    reached, looked = threading.Event(), threading.Event()

    def pause() -> None:
        reached.set()
        looked.wait(PATIENCE_S)

    async def run() -> None:
        loop = asyncio.get_running_loop()
        loop.call_soon(callback, pause)
        await loop.run_in_executor(None, looked.wait, PATIENCE_S)

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    try:
        assert reached.wait(PATIENCE_S)
        assert thread.ident is not None
        return position_of(thread.ident)
    finally:
        looked.set()
        thread.join(PATIENCE_S)


def users(pause: Callable[[], object]) -> None:
    pause()


def test_users_callback_is_named() -> None:
    position = position_during(users)
    assert position is not None
    assert position.function == f"{__name__}.users"
    assert position.code is users.__code__


def test_internal_callback_has_no_function() -> None:
    text, path = "def own(pause):\n    helper(pause)\n", stacks.__file__.replace("stacks.py", "own.py")
    (code, *_) = compile(text, path, "exec").co_consts
    own = FunctionType(code, {"helper": users})  # `helper`: a library function that a module of the kit calls
    position = position_during(own)
    assert position is not None
    assert position.function is None


def test_ended_thread_has_no_position() -> None:
    thread = threading.Thread(target=int)
    thread.start()
    thread.join()
    assert thread.ident is not None
    assert position_of(thread.ident) is None
