"""What the watch says of a loop's thread: the user's function, and never one of the kit's own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from types import FunctionType

from bester.handlers import stacks
from bester.handlers.stacks import Place, place_of

PATIENCE_S = 30.0


def looked_at(callback: Callable[[Callable[[], object]], object]) -> Place | None:
    """Run `callback` on a loop of its own, and look where its thread is while it calls what it was given."""
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
        return place_of(thread.ident)
    finally:
        looked.set()
        thread.join(PATIENCE_S)


def users(pause: Callable[[], object]) -> None:
    pause()


def test_a_callback_of_the_users_is_named() -> None:
    place = looked_at(users)
    assert place is not None
    assert place.function == f"{__name__}.users"
    assert place.code is users.__code__


def test_what_the_kit_calls_for_its_own_ends_is_nobodys() -> None:
    text, path = "def own(pause):\n    helper(pause)\n", stacks.__file__.replace("stacks.py", "own.py")
    (code, *_) = compile(text, path, "exec").co_consts
    own = FunctionType(code, {"helper": users})  # `helper`: of a library that a module of the kit calls
    place = looked_at(own)
    assert place is not None
    assert place.function is None


def test_a_thread_that_is_gone_is_nowhere() -> None:
    thread = threading.Thread(target=int)
    thread.start()
    thread.join()
    assert thread.ident is not None
    assert place_of(thread.ident) is None
