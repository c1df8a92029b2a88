"""Frames that come together have the effects of the same frames one by one."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from random import Random

import pytest

from bester.bridge import session as sessions
from bester.bridge.broker_link import BrokerLink
from bester.bridge.frames import frame
from bester.bridge.meter import Meter
from bester.bridge.senders import Sender
from bester.bridge.session import Session
from bester.bridge.states import State
from bester.bridge.steps import Step
from bester.bridge.submissions import Submissions
from bester.bridge.window import Window
from bester.broker.wire.messages import MAX_TYPE, Report
from tests.unit.test_session import ACK, ASK, CLOSE, GARBAGE, HELLO, LIMITS, message

BOUNDS = replace(
    LIMITS, unreported=6, unreported_bytes=3000, held_messages=14, held_bytes=9000, max_connections=100, questions=2
)  # fmt: skip
OPTIONS = frame(b'{"payload":{"type":"chat","data":[1],"id":"k","dedup":"d","ttl_s":2,"resent":true}}')
USUAL = [message(), message(id_="long", data=f'"{"x" * 700}"'), message("mail")]
ODD = [
    OPTIONS, message("dummy"), message("dummy", None), ASK, ACK, message("builtin", "i", "1"), message("x" * MAX_TYPE),
    message("x" * (MAX_TYPE + 1)), message(id_=None), frame(b'{"payload":{"type":"chat","data":1,"id":5}}'),
    frame(b'{"payload":{"data":1}}'), message("stuck"), message("stuck"),
]  # fmt: skip
LAST = [CLOSE, GARBAGE]


class Side:
    """Session whose sender has another window, too; events change both."""

    def __init__(self, *, acks: bool, rated: bool) -> None:
        self.submissions = Submissions(BOUNDS, BrokerLink(BOUNDS, count(1), lambda text: None), lambda: None)
        self.sender = Sender(("user", "alice"))
        self.window = Window(BOUNDS, self.submissions, self.sender)
        self.session = Session(
            7, "127.0.0.1", BOUNDS, count(1), self.window, 0.0, BOUNDS.first_frame, meter=Meter(2.0 if rated else 0.0)
        )
        hello = frame(HELLO[4:].replace(b'"scope"', b'"ack":true,"scope"')) if acks else HELLO
        self.session.on_bytes(hello, 0.0)
        self.session.on_login_answer(0, None, 0.0)
        self.write = b""
        self.send: list[object] = []

    def take(self, step: Step) -> None:
        """Note the effects of a step."""
        self.write += b"".join(step.write)
        self.send += step.send

    def seen(self) -> list[object]:
        """Return the effects so far, and every count."""
        window, submissions = self.window, self.submissions
        return [
            self.write, self.send, self.session.state, self.session.deadline, self.session.wants_input,
            self.session.has_waiting, window.tokens, len(window), window.size_bytes, window.is_full, window.waits_for,
            self.sender.count, self.sender.size_bytes, submissions.size_bytes, list(submissions.by_token),
            [(each.submit, each.id, each.size, each.since_s, each.session) for each in submissions.by_token.values()],
        ]  # fmt: skip


def frames_of(random: Random) -> list[bytes]:
    """Return frames that come together: mostly usual ones, and sometimes a last one."""
    frames = [random.choice(USUAL if random.random() < 0.8 else ODD) for _ in range(random.choice([1, 3, 12]))]
    if random.random() < 0.04:
        frames.insert(random.randint(0, len(frames)), random.choice(LAST))
    return frames


@pytest.mark.parametrize("first", range(0, 300, 100))
def test_frames_together_equal_frames_one_by_one(first: int) -> None:
    ended = 0
    for seed in range(first, first + 100):
        random = Random(seed)
        acks, rated = random.random() < 0.3, random.random() < 0.3
        together, apart = Side(acks=acks, rated=rated), Side(acks=acks, rated=rated)
        now = 0.0
        for number in range(12):
            now += random.choice([0.0, 0.5])
            chance, tokens = random.random(), together.window.tokens
            if chance < 0.6 or not tokens:
                frames = frames_of(random)
                together.take(together.session.on_bytes(b"".join(frames), now))
                for each in frames:
                    apart.take(apart.session.on_bytes(each, now))
            elif chance < 0.7:
                others, size = random.randint(-3, 5), random.randint(-500, 3000)
                stuck = random.random() < 0.3
                for side in (together, apart):
                    side.sender.count, side.sender.size_bytes = (
                        side.sender.count + others,
                        side.sender.size_bytes + size,
                    )
                    side.submissions.size_bytes += size
                    side.window.stuck.clear()
                    side.window.stuck.update({"stuck": None} if stuck else {})
                    side.window.look_again()
                    side.take(side.session.proceed(now))
            else:
                token = random.choice(tokens)
                for side in (together, apart):
                    side.take(side.session.on_report(Report(token, 0, None, f"s/{token}", {}), now))
            assert together.seen() == apart.seen(), (seed, number)
        ended += together.session.state is not State.OPEN
    assert ended


def test_held_frames_go_on_within_the_ration() -> None:
    side = Side(acks=False, rated=False)
    side.session.on_bytes(b"".join([message()] * 12), 0.0)
    for token in range(1, 7):
        side.window.report(token, 0, None, None, None)
    step = side.session.proceed(0.0, 2)
    assert (len(step.send), side.session.spent) == (2, 2)
    assert side.session.has_waiting
    step = side.session.proceed(0.0, 100)
    assert (len(step.send), side.session.spent) == (4, 4)
    assert not side.session.has_waiting


@pytest.mark.parametrize("cut_bytes", [1, 20, 150])
def test_bytes_cut_piece_by_piece_equal_bytes_cut_at_once(cut_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    waited = 0
    for seed in range(100):
        random = Random(seed)
        pieces, once = (Side(acks=False, rated=False), cut_bytes), (Side(acks=False, rated=False), 1 << 62)
        for number in range(12):
            data = b"".join(each for each in frames_of(random) if len(each) < 300)  # 4 KiB would cost a unit more
            ration, tokens = random.choice([1, 3, 1 << 62]), once[0].window.tokens
            is_input = random.random() < 0.5 or not tokens
            token = 0 if is_input else random.choice(tokens)
            for side, size in (pieces, once):
                monkeypatch.setattr(sessions, "CUT_BYTES", size)
                if is_input:
                    side.take(side.session.on_bytes(data, 0.0, ration))
                else:
                    side.take(side.session.on_report(Report(token, 0, None, f"s/{token}", {}), 0.0, ration))
            assert pieces[0].seen() == once[0].seen(), (seed, number)
            waited += pieces[0].session.has_waiting
    assert waited
