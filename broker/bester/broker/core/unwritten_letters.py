"""Dead letters that are not on disk yet: the report on a message waits until its letter is. Pure.

A letter is handed to the store, and its group may be pending for seconds, or fail and be held back while the store is
away. Were the broker killed meanwhile, the letter would be lost, and the message with it, had the sender a report.
"""

from __future__ import annotations

from collections.abc import Sequence

from bester.broker.store_requests import Bury, Committed, Write

NO_LETTER = 0


class UnwrittenLetters:
    """Letters by number, which is never used twice. `repeats` has every letter that is not written, with the count of
    the duplicates of its message that wait for it.

    There are no more of them than messages whose senders wait for a report.
    """

    def __init__(self) -> None:
        self.repeats: dict[int, int] = {}
        self._last = NO_LETTER
        self._handed_out: dict[int, tuple[Bury, int]] = {}  # by the identity of the write
        self._held_back: list[int] = []

    def add(self, write: Bury) -> int:
        """Return the number of a letter that is handed to the store in this call."""
        self._last += 1
        self._handed_out[id(write)] = write, self._last
        self.repeats[self._last] = 0
        return self._last

    def on_committed(self, writes: Sequence[Write], result: Committed) -> list[int]:
        """Take in the result of a group of writes. Returns the letters on which reports wait no more: those of the
        group, and with it those held back; those of a group for which the disk has no room as well. While the store is
        away the letters of a group are held back, and the next group that is written has them."""
        is_away = not result.ok and result.code == "storage-unavailable"
        ended: list[int] = []
        for write in writes:
            if type(write) is Bury and (found := self._handed_out.pop(id(write), None)) is not None:
                (self._held_back if is_away else ended).append(found[1])
        if result.ok:
            ended, self._held_back = self._held_back + ended, []
        for letter in ended:
            del self.repeats[letter]
        return ended
