"""A bridge's core on connections that are lists, for tests: no socket, no loop, a clock that stands still."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from bester.bridge.bridge import Bridge
from bester.bridge.frames import Splitter, frame
from bester.bridge.limits import Limits
from bester.bridge.ports import Reading, Shell
from bester.broker.brief import Brief
from bester.broker.wire.messages import LoggedIn, Message, Submit
from tests.stand_in import StandIn

M = TypeVar("M")


class ListConnection(StandIn):
    """Connection whose socket takes everything, until `blocked`."""

    def __init__(self, bridge: Bridge) -> None:
        super().__init__()
        self.bridge = bridge
        self.blocked = False
        self.aborted: str | None = None
        self.written = b""
        self.writes = 0
        self.chunk_bytes = 1000

    def flush(self) -> bool:
        if chunk := self.out.take(self.chunk_bytes):
            self.writes += 1
            self.written += chunk
            if self.blocked:
                self.bridge.on_blocked(self)
                return False
            self.bridge.on_bytes_sent(self, self.out.on_sent())
        return self.out.queued_bytes > 0 and not self.out.in_flight

    def unblock(self) -> None:
        self.blocked = False
        self.bridge.on_bytes_sent(self, self.out.on_sent())
        self.bridge.on_unblocked(self)
        self.bridge.flush()

    def abort(self, why: str) -> None:
        self.aborted = why

    def frames(self) -> list[Any]:
        """Return every frame that was written."""
        return [json.loads(body) for body in Splitter(1 << 20).feed(self.written)]

    def count(self, id_: str) -> int:
        """Return how many answers to frames with this id were written."""
        return sum(each["payload"].get("id") == id_ for each in self.frames())

    def lines(self) -> list[str]:
        """Return the frames as text, and forget them."""
        lines = []
        for row in self.frames():
            header, payload = row["header"], row["payload"]
            if header.get("messageType") == "receivedMessage":
                lines.append(f"{header['id']}={payload['data']}")
            else:
                lines.append(" ".join([header["status"], str(payload["id"]), *payload.get("reason", "").split()]))
        self.written = b""
        return lines


class Noted:
    """Reading that notes how each read began and ended."""

    def __init__(self) -> None:
        self.noted: list[str] = []

    def begin(self) -> None:
        self.noted.append("begin")

    def end(self) -> None:
        self.noted.append("end")

    def leave(self) -> None:
        self.noted.append("leave")

    def take(self) -> list[str]:
        """Return what was noted, and forget it."""
        noted, self.noted = self.noted, []
        return noted


class Scene:
    """Bridge with a broker port that is a list, and a clock that stands still. `places` are those of its brokers;
    without a `reading`, everything waits for the end of a turn."""

    places: Sequence[str] = ("",)
    reading: Reading | None = None

    def __init__(self, **limits: Any) -> None:
        self.now = 0.0
        self.full = False
        self.given_up = 0
        self.sent: list[Message] = []
        self.notices: list[str] = []
        self.ended: list[tuple[int, str]] = []
        self._soon: list[Callable[[], None]] = []
        self.brief = Brief()
        self.limits = replace(Limits(), **limits)
        self.bridge = Bridge(
            self.limits,
            Shell(
                lambda: self.now, self._soon.append, reading=self.reading, notice=self.notices.append,
                brief=self.brief, ended=lambda session, why: self.ended.append((session.number, why)),
            ),
            brokers=self.places,
        )  # fmt: skip
        self.begin()

    def begin(self) -> None:
        """Link the bridge to its broker."""
        self.bridge.connect(self)
        self.bridge.on_link_ready()

    def send(self, message: Message) -> bool:
        if self.full:
            return False
        self.sent.append(message)
        return True

    def send_all(self, messages: Sequence[Message]) -> int:
        return sum(self.send(message) for message in messages)

    def give_up(self) -> None:
        self.given_up += 1

    def turn(self) -> None:
        """Run the loop until nothing is left to do."""
        while self._soon:
            self._soon.pop(0)()

    def one_turn(self) -> None:
        """Run one turn of the loop."""
        calls, self._soon[:] = list(self._soon), []
        for call in calls:
            call()

    def take(self, kind: type[M]) -> list[M]:
        """Return the messages of one type that the broker got, and forget them."""
        found: list[M] = [message for message in self.sent if isinstance(message, kind)]
        self.sent = [message for message in self.sent if not isinstance(message, kind)]
        return found

    def broker(self, *messages: Message) -> None:
        self.bridge.receive(list(messages))
        self.turn()

    def connect(self, host: str = "127.0.0.1") -> ListConnection:
        connection = ListConnection(self.bridge)
        assert self.bridge.admit(connection, host)
        return connection

    def start_login(self, user: str = "alice", host: str = "127.0.0.1", *, acks: bool = False) -> ListConnection:
        connection = self.connect(host)
        header = {"scope": "client", "authentication": {"username": user, "password": "p"}, "ack": acks}
        login = {"header": header}
        self.bridge.on_bytes(connection, frame(json.dumps(login).encode()))
        self.turn()
        return connection

    def log_in(self, user: str = "alice", host: str = "127.0.0.1", *, acks: bool = False) -> ListConnection:
        connection = self.start_login(user, host, acks=acks)
        self.broker(LoggedIn(connection.session.number, 0))
        assert connection.lines() == ["good auth_special"]
        return connection

    def command(self, connection: ListConnection, command: str, data: Any, id_: str = "c") -> None:
        """Let a client send a command to the server itself."""
        payload = {"type": "builtin", "id": id_, "data": {"command": {"type": command, "data": data}}}
        self.bridge.on_bytes(connection, frame(json.dumps({"payload": payload}).encode()))
        self.turn()

    def submit(self, connection: ListConnection, id_: str = "i", data: str = "1") -> int:
        payload = b'{"payload":{"type":"t","data":%b,"id":"%b"}}' % (data.encode(), id_.encode())
        self.bridge.on_bytes(connection, frame(payload))
        self.turn()
        (submit,) = self.take(Submit)
        return submit.token
