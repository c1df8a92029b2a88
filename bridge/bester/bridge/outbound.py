"""Frames on their way out to connections: bounds, slow readers, one write a turn of the loop. Pure.

A turn writes to all connections with little to write, then a chunk at a time to those with much, in turn; both within a
budget of bytes and of time. The remainder is for the next turns, in which senders take turns: a large message to many
connections delays nobody else by more than a turn. Of a user with many connections, for whom turn after turn has
frames, each turn writes to a part of these: fewer writes, each of more.

The slow-consumer policy: frames of others to a reader who is too slow are refused; a reader who takes nothing, or whose
queue stays full, is cut in the end. Nobody waits for a slow reader meanwhile.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence

from bester.bridge.in_turn import InTurn
from bester.bridge.limits import KIB, Limits
from bester.bridge.outqueue import JOIN_BYTES
from bester.bridge.ports import ClientConnection, Waiting
from bester.bridge.shared_log import SharedLog

WRITE_COST = 8 * KIB
"""Cost of a write, however short, in bytes of a long one: the call of the system, and its answer."""
MUCH_SHARE = 4
"""Connections with much to write have this part of a turn at least (a quarter), however many have little."""
LOOK_BYTES = 64 * KIB
"""Bytes between two looks at the clock, in the count of a turn: some 30 short writes, or one chunk."""

FEW = 8
"""Connections of a user up to which each gets its own copy of a frame: a log for so few costs more than it saves."""
LOG_BYTES = 1024 * KIB
"""Bytes of one log; the frames after these go into another one."""

MANY = 32
"""Connections of a user from which on they take turns, where each turn has frames for them."""
PARTS = 4
"""Turns in which each of such connections is written to once, or sooner (`REST_BYTES`): a write costs the system as
much as some 8 KiB do, and where 80 connections of a user flood, fewer and longer writes save 8 % of all work."""
REST_BYTES = 48 * KIB
"""Bytes queued for a connection above which it is written to in every turn: a chunk that is joined has 64 KiB."""


class _Group:
    """The connections of one user in this turn: those that follow a log, and those `apart`, which read too slowly, or
    acknowledge each frame."""

    __slots__ = ("apart", "followers", "log")

    def __init__(self, log: SharedLog[Waiting]) -> None:
        self.log = log
        self.followers: dict[ClientConnection, None] = {}
        self.apart: list[ClientConnection] = []


class Outbound:
    """Connections with something to write, and those that do not keep up.

    `wake` makes one call of `flush` at the end of this turn.
    """

    def __init__(
        self, limits: Limits, clock: Callable[[], float], wake: Callable[[], None], reached: Counter[str] | None = None
    ) -> None:
        self._reached = Counter() if reached is None else reached
        self._limits = limits
        self._room = min(limits.out_queue, limits.out_answers)
        self._clock = clock
        self._wake = wake
        self._rest_bytes = min(REST_BYTES, self._room // 4)
        self._groups: dict[int, _Group] = {}  # by the first session of the user
        self._served: set[int] = set()  # users, by first session, who had a group in the turn before
        self._part = 0
        self._dirty: deque[ClientConnection] = deque()
        self._late = InTurn()  # dirty ones that an earlier turn has left
        self._much = InTurn()  # dirty ones with more than a small chunk to write
        self._blocked: set[ClientConnection] = set()
        self._blocked_bytes = 0  # queued for blocked connections; exact at each tick, never too low in between
        self._full: dict[ClientConnection, float] = {}  # since when a connection's full queue has refused frames

    def offer(self, connection: ClientConnection, frame: tuple[bytes, ...]) -> bool:
        """Queue a frame of another sender, in pieces; False where the connection's queue is full."""
        if connection.abort_code is not None:
            return False
        out = connection.out
        if out.log is not None:
            out.catch_up()
        queued = out.pushed_bytes - out.sent_bytes
        if queued:
            limits, size = self._limits, sum(map(len, frame))
            if queued + size > limits.out_queue or (
                out.in_flight and queued >= limits.out_pause and self._blocked_bytes + size > limits.out_total
            ):
                self._reached["out_queue" if queued + size > limits.out_queue else "out_total"] += 1
                self._full.setdefault(connection, self._clock())
                return False
            if out.in_flight:
                self._blocked_bytes += size
        for piece in frame:
            out.push(piece)
        if not connection.dirty:
            self.touch(connection)
        return True

    def room(self, connection: ClientConnection) -> int:
        """Return how many bytes may be queued for a connection that takes what it is sent: within every bound on frames
        of others, and on answers. 0 or less where a frame has to be offered, or pushed, on its own."""
        out = connection.out
        if connection.abort_code is not None or out.taken_bytes != out.sent_bytes:
            return 0
        if out.log is not None:
            out.catch_up()
        return self._room - out.pushed_bytes + out.sent_bytes

    def push_run(self, connection: ClientConnection, frames: bytes) -> None:
        """Queue frames, in one piece, for which there is `room`."""
        connection.out.push(frames)
        if not connection.dirty:
            self.touch(connection)

    def offer_to_others(
        self, owner: ClientConnection, target: Sequence[int], targets: Mapping[int, ClientConnection],
        frame: tuple[bytes, ...],
    ) -> int:  # fmt: skip
        """Queue a frame for all connections of a target but for the `owner`, who has it. Return the number of those
        that got a copy of their own."""
        group = self._group(target, targets, frame)
        if group is None:
            others = [targets[session] for session in target[1:] if session in targets]
        else:
            group.log.append(b"".join(frame))
            owner.out.pass_over(group.log)
            others = group.apart
        for connection in others:
            if connection is not owner:
                self.offer(connection, frame)
        return len(others)

    def share(
        self, target: Sequence[int], targets: Mapping[int, ClientConnection], frame: tuple[bytes, ...],
        waiting: Waiting,
    ) -> tuple[int, list[ClientConnection]] | None:  # fmt: skip
        """Queue a frame for all connections of a target in one piece. Return the number of those that get it so, with
        `waiting` behind it, and the others, which need copies of their own; None where all do."""
        group = self._group(target, targets, frame)
        if group is None:
            return None
        if group.followers:
            group.log.append(b"".join(frame), waiting)
        return len(group.followers), group.apart

    def _group(
        self, target: Sequence[int], targets: Mapping[int, ClientConnection], frame: tuple[bytes, ...]
    ) -> _Group | None:
        """Return the group of a target, None where each connection gets a copy: they are few, or the frame is large."""
        if len(target) <= FEW + 1 or sum(map(len, frame)) > JOIN_BYTES:
            return None
        group = self._groups.get(target[1])
        if group is None or not group.log.is_for(target) or group.log.size_bytes > LOG_BYTES:
            group = self._open(target, targets)
        return group

    @staticmethod
    def is_among(owner: ClientConnection, target: Sequence[int]) -> bool:
        """Return whether a connection is one of a target's."""
        log = owner.out.log
        return (log is not None and log.target is target) or owner.session.number in target[1:]

    def _open(self, target: Sequence[int], targets: Mapping[int, ClientConnection]) -> _Group:
        """Begin a log for the connections of a target. Any other that they follow ends: a target of the broker may be
        older than the one before it."""
        earlier = self._groups.get(target[1])
        if earlier is not None:
            self._close(earlier)
        group = self._groups[target[1]] = _Group(SharedLog(target))
        for session in target[1:]:
            connection = targets.get(session)
            if connection is None or connection.abort_code is not None:
                continue
            out = connection.out
            other = self._followed(connection)
            if other is not None and other is not group:
                self._close(other)
            if out.in_flight or out.queued_bytes > self._limits.out_queue // 2 or connection.session.acks:
                group.apart.append(connection)
            else:
                out.follow(group.log)
                group.followers[connection] = None
                self.touch(connection)
        return group

    def _followed(self, connection: ClientConnection) -> _Group | None:
        """Return the group of the log that a connection follows."""
        log = connection.out.log
        return None if log is None else self._groups.get(log.target[1])

    def _close(self, group: _Group) -> None:
        """End a log: its followers take what is new there."""
        del self._groups[group.log.target[1]]
        for connection in group.followers:
            connection.out.catch_up()
            connection.out.follow(None)

    def push(self, connection: ClientConnection, frame: bytes) -> None:
        """Queue an answer to the connection's own frames."""
        if connection.abort_code is not None:
            return
        out = connection.out
        if out.log is not None:
            out.catch_up()
        queued = out.pushed_bytes - out.sent_bytes
        if queued and queued + len(frame) > self._limits.out_answers:
            self._reached["out_answers"] += 1
            self.cut_off(connection, f"does not read: {queued} bytes are queued")
            return
        out.push(frame)
        if not connection.dirty:
            self.touch(connection)

    def cut_off(self, connection: ClientConnection, why: str) -> None:
        """Cut a connection that does not read its frames."""
        connection.abort_code = "overloaded"
        connection.abort(why)

    def _end_logs(self) -> set[ClientConnection]:
        """End all logs. Return the connections that may rest in this turn: of a user who has many, and had frames in
        the turn before as well, all but one part."""
        part = self._part = (self._part + 1) % PARTS
        resting: set[ClientConnection] = set()
        served, self._served = self._served, set(self._groups)
        for first, group in list(self._groups.items()):
            self._close(group)
            if first in served and len(group.followers) >= MANY:
                resting.update(
                    each
                    for each in group.followers
                    if each.session.number % PARTS != part and each.out.queued_bytes < self._rest_bytes
                )
        return resting

    def touch(self, connection: ClientConnection) -> None:
        """Flush the connection at the end of this turn."""
        if not connection.dirty:
            connection.dirty = True
            self._dirty.append(connection)
            self._wake()

    def flush(self, written: Callable[[ClientConnection], None]) -> bool:
        """Write once to each connection, within the budget of a turn; `written` gets those whose socket did not take
        everything. Return whether there is something to write in the next turn."""
        resting = self._end_logs() if self._groups or self._served else set()
        rest: list[ClientConnection] = []  # but for those that an earlier turn has left: they are in a queue already
        if resting:
            rest = [each for each in self._dirty if each in resting]
            self._dirty = deque(each for each in self._dirty if each not in resting)
        dirty: deque[ClientConnection] | InTurn = self._dirty
        if self._late.by_sender:  # all of them in turn
            self._late.extend(self._dirty)
            self._dirty.clear()
            dirty = self._late
        room = self._write_dirty(dirty, written)
        if self._dirty:
            self._late.extend(self._dirty)
            self._dirty.clear()
        if self._much.by_sender:
            self._write_much(max(room, self._limits.turn_bytes // MUCH_SHARE), written)
        self._dirty.extend(rest)
        return bool(self._dirty or self._late.by_sender or self._much.by_sender)

    def _write_dirty(self, dirty: deque[ClientConnection] | InTurn, written: Callable[[ClientConnection], None]) -> int:
        """Write to connections with little to write, as far as there is room and time; return the bytes of room left,
        0 where the time is used up. Connections with more are left to `_write_much`."""
        room = self._limits.turn_bytes
        enough: float | None = None
        while True:
            look = room - LOOK_BYTES if room > LOOK_BYTES else 0
            while dirty and room > look:
                connection = dirty.popleft()
                out = connection.out
                size = out.pushed_bytes - out.sent_bytes
                if size > JOIN_BYTES:
                    self._much.append(connection)
                    continue
                room -= size + WRITE_COST
                connection.dirty = False
                if connection.flush():
                    self._write_again(connection)
                elif out.taken_bytes != out.sent_bytes:
                    written(connection)
            if not dirty or room <= 0:
                return room
            now = self._clock()
            if enough is None:
                enough = now + self._limits.turn_write_s
            elif now >= enough:
                return 0

    def _write_much(self, room: int, written: Callable[[ClientConnection], None]) -> None:
        """Write a chunk to each connection with much to write, in turn, as far as there is room and time."""
        enough = self._clock() + self._limits.turn_write_s / MUCH_SHARE
        while self._much.by_sender and room > 0:
            connection = self._much.popleft()
            out = connection.out
            before = out.taken_bytes
            connection.dirty = False
            if connection.flush():
                self._write_again(connection)
            elif out.in_flight:
                written(connection)
            room -= out.taken_bytes - before + WRITE_COST
            if self._clock() >= enough:
                return

    def _write_again(self, connection: ClientConnection) -> None:
        """Write more to a connection when its turn comes again."""
        if not connection.dirty:
            connection.dirty = True
            self._much.append(connection)

    def on_blocked(self, connection: ClientConnection) -> None:
        """Note that the socket of a connection takes no more for now."""
        connection.stalled_since, connection.stalled_bytes = self._clock(), connection.unsent_bytes()
        if connection not in self._blocked:
            self._blocked.add(connection)
            self._blocked_bytes += connection.out.queued_bytes

    def on_connection_lost(self, connection: ClientConnection) -> None:
        """Forget a connection. One that took nothing may have been ended by the system, just before its time here."""
        if connection.timed_out and connection in self._blocked:
            self._cut_stalled(connection)
        self._blocked.discard(connection)
        self._full.pop(connection, None)
        group = self._followed(connection)
        if group is not None:
            del group.followers[connection]

    def _cut_stalled(self, connection: ClientConnection) -> None:
        """Cut a connection that took nothing, and count it."""
        self._reached["stalled_s"] += 1
        self.cut_off(connection, f"took nothing for {self._limits.stalled_s:g} s")

    def judge(self, now: float) -> Iterator[None]:
        """Cut connections that have not kept up for too long; one before each step."""
        for connection in list(self._blocked):
            if connection not in self._blocked:
                continue
            unsent = connection.unsent_bytes()
            if not connection.out.in_flight:
                self._blocked.discard(connection)
            elif unsent != connection.stalled_bytes:
                connection.stalled_since, connection.stalled_bytes = now, unsent
            elif now - connection.stalled_since > self._limits.stalled_s:
                self._cut_stalled(connection)
                yield
        for connection, since in list(self._full.items()):
            if self._full.get(connection) != since:
                continue
            if connection.out.queued_bytes <= self._limits.out_queue // 2:
                del self._full[connection]
            elif now - since > self._limits.stalled_s:
                self._reached["stalled_s"] += 1
                self.cut_off(connection, f"was sent more than it took for {self._limits.stalled_s:g} s")
                yield
        self._blocked_bytes = sum(connection.out.queued_bytes for connection in self._blocked)
