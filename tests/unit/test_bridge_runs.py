"""Deliveries that come together have the effects of the same deliveries one by one, each frame written on its own."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from bester.bridge.outbound import Outbound
from bester.broker.wire.messages import Close, Confirm, Deliver, Heartbeat, Message, Report, Submit
from tests.unit.bridge_stand import ListConnection, Scene

LIMITS: dict[str, Any] = {
    "unreported": 12, "out_queue": 3000, "out_answers": 6000, "out_pause": 500, "turn_frames": 10_000,
}  # fmt: skip


class Side:
    """Bridge with clients: two of alice's, bob who acknowledges, and cid who may stop reading."""

    def __init__(self) -> None:
        self.scene = Scene(**LIMITS)
        self.clients = [
            self.scene.log_in("alice"), self.scene.log_in("alice"), self.scene.log_in("bob", acks=True),
            self.scene.log_in("cid"),
        ]  # fmt: skip
        for client in self.clients:
            client.chunk_bytes = 1 << 20  # chunks end where frames were queued; these differ
        self.submits: list[Submit] = []

    def send(self, client: int, count: int, options: str) -> None:
        """Let a client send messages."""
        payload = b'{"payload":{"type":"t","data":1,"id":"i"%b}}' % options.encode()
        framed = len(payload).to_bytes(4, "little") + payload
        self.scene.bridge.on_bytes(self.clients[client], framed * count)
        self.turn()

    def toggle_reading(self) -> None:
        """Let the last client stop reading, or read again."""
        client = self.clients[-1]
        client.blocked = not client.blocked
        if not client.blocked:
            client.unblock()

    def turn(self) -> None:
        """Run one turn of the loop, and note the submits."""
        self.scene.one_turn()
        self.submits += self.scene.take(Submit)

    def seen(self) -> list[object]:
        """Return everything that clients and the broker got, and every count."""
        bridge = self.scene.bridge
        return [
            bridge.inspect(), self.scene.sent, [self.state(each) for each in self.clients], self.submits,
        ]  # fmt: skip

    @staticmethod
    def state(connection: ListConnection) -> list[object]:
        """Return what was written on a connection, and its counts."""
        out, session = connection.out, connection.session
        return [
            connection.written, connection.aborted, connection.abort_code, connection.reading, out.pushed_bytes,
            out.sent_bytes, session.state, session.window.tokens, session.window.size_bytes, session.window.is_full,
            session.window.sender.count, session.window.sender.size_bytes,
        ]  # fmt: skip


class Story:
    """Messages of a broker: deliveries, most of which answer a message to its sender alone, and other messages."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.serial = 0
        self.open: list[Submit] = []

    def batch(self, sessions: list[int]) -> list[Message]:
        """Return what comes in one batch."""
        return [self.message(sessions) for _ in range(self.random.choice([1, 2, 5, 20]))]

    def message(self, sessions: list[int]) -> Message:
        """Return the next message."""
        random, chance = self.random, self.random.random()
        if chance < 0.03:
            rare: list[Message] = [Heartbeat(), Close(random.choice(sessions))]
            return rare[0] if random.random() < 0.7 else rare[1]
        submit = self.open.pop(0 if random.random() < 0.8 else -1) if self.open and chance < 0.93 else None
        token = random.choice([1, 900]) if submit is None else submit.token
        if chance < 0.1:
            return Report(token, random.randint(0, 1), "overloaded", f"m{token}", {})
        self.serial += 1
        meta: dict[str, Any] = {"origin": random.choice(["s1", "s1", "s1", "s2"])}
        if random.random() < 0.05:
            meta["redelivered"] = True
        alone = submit is not None and random.random() < 0.8
        targets = [[random.randint(0, 2), submit.session if alone and submit and submit.session else 99]]
        if not alone:
            targets = [[t, *random.sample(sessions, random.randint(1, 3))] for t in range(random.randint(1, 4))]
        if random.random() < 0.9:
            meta["message"] = f"m{token}"
        body = b'"%b"' % (b"x" * random.choice([1, 1, 1, 50, 400, 5000]))
        type_ = random.choice(["t", "t", "t", 'q"'])
        return Deliver(
            self.serial, f"m{token}.0", type_, body, targets, token if random.random() < 0.95 else None, meta
        )


def step(random: Random, story: Story, together: Side, apart: Side, sessions: list[int]) -> None:
    """Let one thing happen on both sides."""
    chance, client = random.random(), random.randrange(4)
    count, options = random.choice([1, 5, 15]), random.choice(["", "", "", ',"dedup":"d"'])
    batch = story.batch(sessions) if chance >= 0.5 else []
    for side in (together, apart):
        if chance < 0.4:
            side.send(client, count, options)
        elif chance < 0.43:
            side.scene.bridge.on_link_lost("it is gone")
        elif chance < 0.46 and not side.scene.bridge.is_ready:
            side.scene.bridge.on_link_ready()
        elif chance < 0.5:
            side.toggle_reading()
        else:
            for part in [batch] if side is together else [[each] for each in batch]:
                side.scene.bridge.receive(part)
            side.turn()


@pytest.mark.parametrize("first", range(0, 120, 40))
def test_deliveries_together_equal_deliveries_one_by_one(first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    confirmed = 0
    for seed in range(first, first + 40):
        random = Random(seed)
        together, story = Side(), Story(random)
        with monkeypatch.context() as patch:
            patch.setattr(Outbound, "room", lambda *_: -(1 << 60))
            apart = Side()
        sessions = [each.session.number for each in together.clients]
        for number in range(20):
            step(random, story, together, apart, sessions)
            assert together.seen() == apart.seen(), (seed, number)
            known = {submit.token for submit in story.open}
            story.open += [each for each in together.submits if each.token not in known]
            together.submits, apart.submits = [], []
        for _ in range(5):
            together.turn()
            apart.turn()
        assert together.seen() == apart.seen(), seed
        confirmed += len(together.scene.take(Confirm))
    assert confirmed > 40
