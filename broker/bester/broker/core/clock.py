"""The two clocks of a broker beside `now`: the wall clock, which may be wrong and be set at any moment, and the store's
time, in which everything on disk expires.

    wall clock     for people: dead letters and traces are dated by the wall clock
    store's time   for expiry: the store's time goes on with `now`, and setting the wall clock does not move it

Over a restart on a running machine the store's time goes on with the machine's monotonic clock, which is `now`. After a
boot only the wall clock is left: the store has saved how far the store's time was ahead of it (`skew_s`), and how far
the store's time had come (`stored_s`), below which it never falls. Pure: the shell reads the clocks and passes them in.
"""

from __future__ import annotations

from bester.broker.store_requests import ClockState

JUMP_S = 1.0
"""A wall clock that has moved by more than this against `now` was set, or the machine slept; two readings differ by
less. No message has a shorter life than a second."""


class Clock:
    """The clocks of one life of a broker. `now` is seconds of the machine's monotonic clock, `wall_s` seconds since
    1970; `boot` names this run of the machine, and is empty where the system gives no name."""

    def __init__(self, now: float, wall_s: float, boot: str, saved: ClockState | None) -> None:
        self._boot = boot
        self._wall_offset_s = wall_s - now
        stored_s = wall_s
        if saved is not None:
            stored_s = saved.boot_s + now if boot and saved.boot == boot else wall_s + saved.skew_s
            stored_s = max(stored_s, saved.stored_s)
        self._stored_offset_s = stored_s - now
        self._saved_skew_s: float | None = None  # in this life

    def wall(self, now: float) -> float:
        """Return the wall clock's time, in seconds since 1970."""
        return now + self._wall_offset_s

    def stored(self, now: float) -> float:
        """Return the store's time, in seconds; in a new store, that of the wall clock."""
        return now + self._stored_offset_s

    def read(self, now: float, wall_s: float) -> float | None:
        """Take in the wall clock's time. Returns by how many seconds the wall clock was set, None where it was not."""
        by_s = wall_s - self.wall(now)
        self._wall_offset_s += by_s
        return by_s if abs(by_s) > JUMP_S else None

    @property
    def is_dirty(self) -> bool:
        """Return whether the distance between the store's time and the wall clock is not saved yet."""
        return self._saved_skew_s is None or abs(self._skew_s - self._saved_skew_s) > JUMP_S

    def save(self, now: float) -> ClockState:
        """Return the state that the store is to save."""
        self._saved_skew_s = self._skew_s
        return ClockState(self.stored(now), self._skew_s, self._boot, self._stored_offset_s)

    @property
    def _skew_s(self) -> float:
        return self._stored_offset_s - self._wall_offset_s
