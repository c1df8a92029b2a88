"""Admission of connections, and of strangers who make way for others: who gets a place, and when a place is free. Pure.

A connection without a login, or a message of a server, is a stranger's. Where all places are taken, the oldest stranger
is cut, and its place is free at once. All strangers share the bridge's input as one sender; a login makes a connection
one of its user's.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

from bester.bridge import native_writing
from bester.bridge.homes import Homes
from bester.bridge.intake import Intake
from bester.bridge.limits import Limits
from bester.bridge.meter import Meter
from bester.bridge.outbound import Outbound
from bester.bridge.ports import ClientConnection, Shell
from bester.bridge.registry import Registry
from bester.bridge.senders import STRANGERS, Key, Sender, Senders
from bester.bridge.session import Session
from bester.bridge.states import State
from bester.bridge.submissions import Submissions
from bester.bridge.unfinished import Unfinished
from bester.bridge.window import Window

MAKE_WAY = 2
"""Strangers that make way for one where all their places are taken: their excess shrinks, without many cuts a turn."""


class Admission:
    """The door of one bridge. `tokens` are those of the bridge's messages, which its sessions share. `made_way` counts
    strangers that were cut."""

    def __init__(
        self, limits: Limits, shell: Shell, tokens: Iterator[int], meter: Meter, registry: Registry, homes: Homes,
        senders: Senders, unfinished: Unfinished, intake: Intake, outbound: Outbound,
    ) -> None:  # fmt: skip
        self.made_way = 0
        self._limits = limits
        self._clock, self._in_doubt = shell.clock, shell.in_doubt
        self._first_frame_bytes = shell.first_frame_bytes or (lambda host, certificate: limits.first_frame)
        self._numbers = count(1)
        self._tokens = tokens
        self._meter = meter
        self._registry = registry
        self._homes = homes
        self._senders = senders
        self._unfinished = unfinished
        self._intake = intake
        self._push = outbound.push

    def admit(self, connection: ClientConnection, host: str, *, is_scarce: bool) -> bool:
        """Accept a new connection and give it a session; False where there is no room, and no stranger to make way.
        There is none where the process `is_scarce` of descriptors either."""
        now = self._clock()
        if is_scarce or not self._registry.has_room(host):
            stranger = self._registry.makes_way(host)
            if stranger is None:
                self._meter.connections += 1
                return False
            self._cut(stranger)
        for _ in range(MAKE_WAY):
            stranger = self._registry.lingers(now)
            if stranger is not None:
                self._cut(stranger)
        first_bytes = self._first_frame_bytes(host, ())
        is_listed = first_bytes >= self._limits.max_frame
        submissions = self._homes.of_address(host, is_listed=is_listed).submissions
        window = Window(self._limits, submissions, self._join(("host", host) if is_listed else STRANGERS, submissions))
        connection.session = Session(
            next(self._numbers), host, self._limits, self._tokens, window, now, first_bytes,
            in_doubt=first_bytes < self._limits.max_frame and self._in_doubt(host), meter=self._meter,
        )  # fmt: skip
        self._registry.add(connection, now)
        return True

    def on_certificate(self, connection: ClientConnection, certificate: tuple[str, ...]) -> None:
        """Note the names in a peer's verified certificate, before any byte of its stream; empty without one."""
        session = connection.session
        if session.state is State.NEW:
            session.on_certificate(certificate, self._first_frame_bytes(session.address, certificate))

    def _cut(self, connection: ClientConnection) -> None:
        """Tell a stranger that there is no room for it, and cut its connection: its place is free at once."""
        self.made_way += 1
        session = connection.session
        if session.state is State.NEW:
            self._push(connection, native_writing.refused("overloaded", None))
            connection.flush()
        connection.abort_code = "overloaded"
        session.on_connection_lost()
        self.release(connection)
        connection.abort("it sent no login, and made way for a new connection")

    def release(self, connection: ClientConnection) -> None:
        """Free the place of a connection that has ended, or is cut: an end may follow a cut, and frees no more."""
        session = connection.session
        has_place = self._registry.remove(session)
        self._unfinished.forget(connection)
        self._intake.remove(connection)
        if has_place:
            self._senders.leave(session.window.sender)

    def join_user(self, connection: ClientConnection) -> None:
        """Let a connection that logs in share with its user's other connections: it was a stranger's until now."""
        window = connection.session.window
        self._intake.remove(connection)
        self._senders.leave(window.sender)
        window.sender = sender = self._join(("user", connection.session.user or ""), window.submissions)
        if window.submissions is not sender.submissions:
            window.move(sender.submissions)
        self._homes.on_user_joined(window)

    def _join(self, key: Key, submissions: Submissions) -> Sender:
        """Return the sender of another connection; a new one sends to the broker with these messages."""
        sender = self._senders.join(key)
        if sender.connections == 1:
            sender.submissions = submissions
        return sender
