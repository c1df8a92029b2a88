"""Allowance of each party for messages of many frames, which delay everybody on an encrypted door. Pure.

ZeroMQ gives one message of each link in turn, and that one whole: while a message of sixteen thousand frames is read,
for ten milliseconds of the few that a turn has for reading, no other message of the door is. Batches of this program
have some dozens of frames; a reply with hundreds of large bodies has more. So a party may send such messages now and
then. One that sends more of them is cut with all its links, and held off for a while: what its links had brought
together would be read for seconds, and its new links would bring the same.
"""

from __future__ import annotations

from collections import OrderedDict

SHORT_FRAMES = 96
"""Frames of a message that is not counted: a batch is closed at 1 MiB of bodies, and only bodies above 16 KiB have
frames of their own, so that none but a single reply has more. Reading them takes some hundredths of a millisecond: a
hundred links with one each are read in some turns."""
FRAMES_A_SECOND = 4096
"""Frames of long messages of one party in a second: one message of the most frames in four seconds, ten milliseconds of
reading; or replies to hundreds of users a second, each with a large body of their own."""
MOST_FRAMES = 8 * FRAMES_A_SECOND
"""The same at once, of a party that has sent none for a while: two messages of the most frames."""
HELD_OFF_S = 30.0
"""Time for which a party is held off. Long enough that what it sends within its allowance each time is little."""
WHY = "it sends more messages of many frames than are read of one party"
HELD_OFF = f"it was cut less than {HELD_OFF_S:.0f} s ago: {WHY}"
"""Reasons for the log."""
MOST_PARTIES = 1024
"""Parties that are remembered; above the bound the one whose last long message is oldest is forgotten."""


class LongMessages:
    """Frames of long messages by party, over all doors."""

    def __init__(self) -> None:
        self._counts: OrderedDict[str, tuple[float, float]] = OrderedDict()  # frames, and the time of that count
        self._until: dict[str, float] = {}  # parties that are held off

    def allow(self, party: str, frames: int, now: float) -> bool:
        """Count frames of a party's long message; return whether they are within its allowance. A party above it is
        held off from now on, at every door."""
        if self.is_held_off(party, now):
            return False
        count, at = self._counts.pop(party, (0.0, now))
        count = max(0.0, count - (now - at) * FRAMES_A_SECOND) + frames
        if count > MOST_FRAMES:
            self._until = {each: until for each, until in self._until.items() if now < until}
            self._until[party] = now + HELD_OFF_S
            return False
        self._counts[party] = (count, now)
        if len(self._counts) > MOST_PARTIES:
            self._counts.popitem(last=False)
        return True

    def is_held_off(self, party: str, now: float) -> bool:
        """Return whether a party is held off."""
        return bool(self._until) and now < self._until.get(party, now)

    @property
    def remembered(self) -> int:
        """Number of parties whose frames are remembered."""
        return len(self._counts)
