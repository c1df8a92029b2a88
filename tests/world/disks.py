"""The disk of a server: a store in memory that survives its process, and the points of a commit where that may end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from bester.broker.store.memory import MemoryStore
from bester.broker.store_requests import PRESSING, Committed, Read, Snapshot, Write

if TYPE_CHECKING:
    from tests.world.servers import SimServer

BEFORE, AFTER, MEANWHILE = "before the commit", "after the commit", "while sending"
SLOW_COMMIT_S = 0.5
TRAPS = (BEFORE, AFTER, MEANWHILE)


class CrashedError(BaseException):
    """The process has ended in the middle of a turn."""


class Disk:
    """A Store, for the shell of one server: tells the story of every write to `store` and read from it.

    A crash may fall right before or after a commit that somebody waits for: the server falls into its traps here.
    """

    is_remote, away, fenced = False, "", ""
    size_bytes: int | None = None

    def __init__(self, server: SimServer, store: MemoryStore) -> None:
        self.store = store
        self.on_committed: Callable[[Sequence[Write]], None] = lambda writes: None
        self.is_slow = False
        self.spent_s = 0.0
        """Time that slow commits have taken, for the driver's stopwatch: the world's clock stands still meanwhile."""
        self.held_since: float | None = None
        """Since when the store holds writes back, in the server's own time; None where it holds none."""
        self.held_for_room = False
        """True where it has held some of these back because the disk was full."""
        self._locks = 0
        self._server = server

    @property
    def held_back(self) -> int:
        """Return the count of the writes that wait for a sound disk."""
        return self.store.held_back

    @property
    def is_due(self) -> bool:
        """Return whether a lease is to be renewed."""
        return self.store.is_due

    def claim(self) -> None:
        """Take nothing: the store is this server's alone."""

    def open(self) -> Snapshot:
        """Count a life."""
        snapshot = self.store.open()
        self.fenced = ""
        return snapshot

    def commit(self, writes: Sequence[Write]) -> Committed:
        """Write a group; where a trap is laid, the process ends here."""
        server = self._server
        pressing = any(type(write) in PRESSING for write in writes)
        if pressing:
            server.fall_into(BEFORE)
        if self.is_slow:
            self.spent_s += SLOW_COMMIT_S
        result = self.store.commit(writes)
        self._look(result.code if not result.ok else "")
        if result.busy:
            return result
        if result.ok:
            self.on_committed(writes)
        if writes and server.world.telling:
            server.world.tell(server.name, "WRITES" if result.ok else "CANNOT WRITE", (writes, dict(result.repeated)))
        if pressing:
            server.fall_into(AFTER)
        return result

    def begin(self, writes: Sequence[Write]) -> Callable[[], Committed]:
        """Leave all of a group's work to the call that is returned."""
        return partial(self.commit, writes)

    def hold_back(self, writes: Sequence[Write]) -> frozenset[int]:
        """Take a group that was locked out for too long."""
        self._server.world.tell(self._server.name, "CANNOT WRITE", (writes, "locked"))
        kept = self.store.hold_back(writes)
        self._look()
        return kept

    def read(self, read: Read) -> Any:
        """Read."""
        try:
            answer = self.store.read(read)
        finally:
            self._look()
        self._server.world.tell(self._server.name, "reads", (read, answer))
        return answer

    def _look(self, code: str = "") -> None:
        """Take in whether the store is away, whether another process has taken it, and whether it holds writes back;
        `code` is that of a commit that has failed."""
        self.away, self.fenced = self.store.away, self.store.fenced
        if not self.store.held_back:
            self.held_since, self.held_for_room = None, False
            return
        self.held_since = self._server.now if self.held_since is None else self.held_since
        self.held_for_room = self.held_for_room or code == "storage-full"

    def close(self) -> None:
        """Keep the store open: its rows outlive the process."""

    def lock(self, seconds: float) -> None:
        """Have another process hold the lock for writing for a while; several may follow each other."""
        world, name = self._server.world, self._server.name
        world.tell(name, "STORE IS LOCKED", f"for {seconds:.1f} s")
        self._locks += 1
        self.store.locked = True

        def unlock() -> None:
            self._locks -= 1
            self.store.locked = self._locks > 0
            world.tell(name, "LOCK IS RELEASED", f"{self._locks} left")

        world.after(seconds, unlock)

    def slow_down(self, seconds: float) -> None:
        """Let every commit take SLOW_COMMIT_S for a while."""
        world, name = self._server.world, self._server.name
        world.tell(name, "DISK IS SLOW", f"for {seconds:.1f} s")
        self.is_slow = True

        def speed_up() -> None:
            world.tell(name, "DISK IS QUICK")
            self.is_slow = False

        world.after(seconds, speed_up)

    def fill(self, seconds: float, *, wholly: bool) -> None:
        """Fill the disk for a while; `wholly`: not even the end of a message can be written."""
        world, name = self._server.world, self._server.name
        world.tell(name, "DISK IS FULL", f"for {seconds:.1f} s{', wholly' if wholly else ''}")
        self.store.full, self.store.broken = True, wholly

        def room() -> None:
            world.tell(name, "DISK HAS ROOM")
            self.store.full = self.store.broken = False

        world.after(seconds, room)
