"""Slices: the long batches of an encrypted door are handled over several turns of the loop. Pure.

A batch holds up to 1,024 messages, and the cost of each is its sender's choice. Without a bound on a turn everybody
waits for the whole batch, at the other doors as well. So a long batch is handled in slices until the time of the turn
is used up. Its rest waits for the next turn, and the door is not read meanwhile: order is kept, and at most one batch
of a door waits. The doors of the same machine have no slices: their parties are trusted with the time that they take.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from bester.broker.core.effects import Link

SLICE = 16
"""Messages handled between two looks at the clock: a look costs a hundredth of them where they are cheap."""
SLICE_S = 0.002
"""Seconds of a long batch in one turn of the loop: a message of an honest client takes four or five turns."""


class Slices:
    """Batches of one door. `take(link, messages)` handles messages; `soon` calls a function in the next turn of the
    loop. `pause(link)` stops the reading of the door, and the sending on the link whose rest waits; `resume(link)` goes
    on with both. Answers to a batch leave at its end: a link that cannot be sent to is lost, with its rest.
    """

    def __init__(
        self, take: Callable[[Link, Sequence[Any]], None], *, clock: Callable[[], float],
        soon: Callable[[Callable[[], None]], object], pause: Callable[[Link], None],
        resume: Callable[[Link], None],
    ) -> None:  # fmt: skip
        self._take = take
        self._clock = clock
        self._soon = soon
        self._pause = pause
        self._resume = resume
        self._rest: tuple[Link, Sequence[Any]] | None = None

    def take_in(self, link: Link, messages: Sequence[Any]) -> None:
        """Handle a batch: now, or as much of it now as the turn has time for. Not to be called while a rest waits."""
        if len(messages) <= SLICE:
            self._take(link, messages)
            return
        if self._handle_rest(link, messages):
            self._pause(link)

    def drop(self) -> None:
        """Forget the rest of a batch: the door closes."""
        self._rest = None

    def _handle_rest(self, link: Link, messages: Sequence[Any]) -> bool:
        """Handle slices until the time of the turn is used up; return whether a rest is left to the next turn."""
        enough = self._clock() + SLICE_S
        for first in range(0, len(messages), SLICE):
            if first and self._clock() >= enough:
                self._rest = link, messages[first:]
                self._soon(self._go_on)
                return True
            self._take(link, messages[first : first + SLICE])
        self._rest = None
        return False

    def _go_on(self) -> None:
        """Handle more of the rest in a later turn, and read the door again after its end."""
        if self._rest is None:  # dropped
            return
        link, messages = self._rest
        if not self._handle_rest(link, messages):
            self._resume(link)
