"""Calls at the end of a turn of the loop: order, once a turn, in the turn of the input, and failures."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from bester.broker.turn import Turn


def run(scene: Callable[[Turn, list[str]], None]) -> tuple[list[str], list[str]]:
    """Run a scene as a callback of a loop; return what had run at its end, and what after one more turn of the loop."""

    async def main() -> tuple[list[str], list[str]]:
        ran: list[str] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: ran.append("exception"))
        scene(Turn(), ran)
        at_once = list(ran)
        await asyncio.sleep(0)
        return at_once, list(ran)

    return asyncio.run(main())


def test_calls_run_in_their_order_after_the_callbacks_of_this_turn() -> None:
    """Run the calls of ordinary callbacks once those are over."""

    def scene(turn: Turn, ran: list[str]) -> None:
        turn.soon(lambda: ran.append("first"))
        turn.soon(lambda: ran.append("second"))

    assert run(scene) == ([], ["first", "second"])


def test_calls_of_a_reading_callback_run_at_its_end() -> None:
    """Run them, and those that they ask for, before the loop does anything else."""

    def scene(turn: Turn, ran: list[str]) -> None:
        def broker() -> None:
            ran.append("broker")
            turn.soon(lambda: ran.append("bridge"))

        turn.begin()
        turn.soon(broker)
        ran.append("read")
        turn.end()

    assert run(scene) == (["read", "broker", "bridge"],) * 2


def test_callback_that_leaves_leaves_its_calls_to_the_loop() -> None:
    """Run the calls of a callback that ends by `leave` in the next turn, and those of the next one at its end."""

    def scene(turn: Turn, ran: list[str]) -> None:
        turn.begin()
        turn.soon(lambda: ran.append("left"))
        turn.leave()
        ran.append("over")

    assert run(scene) == (["over"], ["over", "left"])


def test_call_that_asks_again_runs_once_a_turn() -> None:
    """Leave the second run to the next turn: a budget of a turn is spent once."""

    def scene(turn: Turn, ran: list[str]) -> None:
        def write() -> None:
            ran.append("write")
            if len(ran) < 3:
                turn.soon(write)

        turn.begin()
        turn.soon(write)
        turn.end()

    assert run(scene) == (["write"], ["write", "write"])


def test_reading_callback_leaves_calls_to_the_loop_where_others_have_asked() -> None:
    """Send together with what other callbacks of this turn have still to ask for."""

    def scene(turn: Turn, ran: list[str]) -> None:
        turn.soon(lambda: ran.append("client"))
        turn.begin()
        turn.soon(lambda: ran.append("handler"))
        turn.end()

    assert run(scene) == ([], ["client", "handler"])


def test_reading_callback_leaves_calls_that_wait_to_the_loop() -> None:
    """Run a call that serves all callbacks of this turn once."""

    def scene(turn: Turn, ran: list[str]) -> None:
        for _ in range(2):
            turn.begin()
            if not ran:
                turn.soon(lambda: ran.append("commit"))
                turn.wait()
            ran.append("read")
            turn.end()

    assert run(scene) == (["read", "read"], ["read", "read", "commit"])


def test_call_that_fails_keeps_no_other_back() -> None:
    """Run the calls behind a failed one in the next turn, and report the failure to the loop."""

    def scene(turn: Turn, ran: list[str]) -> None:
        def fail() -> None:
            raise ValueError("this call fails")

        turn.soon(fail)
        turn.soon(lambda: ran.append("other"))

    async def main() -> list[str]:
        ran: list[str] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: ran.append("exception"))
        scene(Turn(), ran)
        for _ in range(2):
            await asyncio.sleep(0)
        return ran

    assert asyncio.run(main()) == ["exception", "other"]


def test_call_that_is_forgotten_does_not_run() -> None:
    """Run none that was forgotten, and forget none that does not wait."""

    def scene(turn: Turn, ran: list[str]) -> None:
        def gone() -> None:
            ran.append("gone")

        turn.forget(gone)
        turn.soon(gone)
        turn.soon(lambda: ran.append("left"))
        turn.forget(gone)

    assert run(scene) == ([], ["left"])


def test_turn_without_calls_ends_and_later_calls_run() -> None:
    """Close a turn in which nothing was asked for."""

    def scene(turn: Turn, ran: list[str]) -> None:
        turn.begin()
        turn.end()
        turn.soon(lambda: ran.append("later"))

    assert run(scene) == ([], ["later"])
