"""Calls at the end of a turn of the loop: everything that came in the turn is sent together, in the same turn.

A callback of the loop that has read all its input runs the calls itself, between `begin` and `end`. Other callbacks
leave them to the loop, which runs them once the turn's other callbacks have run, and so does one that ends by `leave`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from bester.broker.brief import Brief

Call = Callable[[], None]


class Turn:
    """End of the turns of one loop, shared by the parts of a process that send to each other. `brief` tells them when
    turns are to be brief.

    A call that asks for itself again runs in the next turn, so that no budget of a turn is spent twice in one.
    """

    def __init__(self) -> None:
        self.brief = Brief()
        self._calls: deque[Call] = deque()
        self._is_open = False  # `end` comes, or runs
        self._handle: asyncio.Handle | None = None

    def soon(self, call: Call) -> None:
        """Run a call at the end of this turn; the caller asks once until the call has run."""
        self._calls.append(call)
        if not self._is_open:
            self.wait()

    def wait(self) -> None:
        """Leave the end of this turn to the loop, for calls that are dear and serve all that its callbacks ask."""
        if self._handle is None:
            self._handle = asyncio.get_running_loop().call_soon(self._run)

    def forget(self, call: Call) -> None:
        """Run a call no more, where it waits."""
        if call in self._calls:
            self._calls.remove(call)

    def begin(self) -> None:
        """Begin a callback of the loop that reads input, and that calls `end` after it."""
        self._is_open = True

    def end(self) -> None:
        """End this callback: run the calls, and those that they ask for, unless the loop will; other callbacks of this
        turn have asked then, and what they send goes together."""
        if self._calls and self._handle is None:
            self._run()
        else:
            self._is_open = False

    def leave(self) -> None:
        """End this callback, and leave the calls to the loop."""
        self._is_open = False
        if self._calls:
            self.wait()

    def _run(self) -> None:
        self._handle, self._is_open = None, True
        calls = self._calls
        have_run: list[Call] = []
        try:
            while calls and (call := calls[0]) not in have_run:
                have_run.append(call)
                del calls[0]
                call()
        finally:  # a call that fails keeps no other back
            self._is_open = False
            if calls:
                self.wait()
