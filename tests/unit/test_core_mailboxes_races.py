"""Mailboxes by chance: users who come and go while messages are written, delivered and confirmed."""

from __future__ import annotations

from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from bester.broker.core.effects import Link, Notice
from bester.broker.core.settings import Limits
from bester.broker.store_requests import mailbox
from bester.broker.wire.messages import Close, Confirm, Deliver, Goodbye, Open, Report, Request
from tests.unit.core_post import BOB, Post, bodies_of, numbered, town
from tests.unit.core_stand import clients

# --- races ----------------------------------------------------------------------------------------------------------


def test_login_during_a_write_has_the_message_behind_ready_ones() -> None:
    stand = town()
    post = Post(stand)
    post.queues(b"1")
    bob = stand.bridge()
    stand.submit(post.bridge, "chat")
    request = stand.request(post.chat)
    stand.commits = False
    stand.reply(post.chat, request.token, clients("bob", body=b"2"))
    stand.say(bob, Open(1, "bob"))
    stand.commits = True
    stand.commit()
    assert post.outcomes() == {"bob": "queued"}
    assert bodies_of(stand.heard_of(bob, Deliver)) == [b"1", b"2"]


def test_login_during_the_first_write_has_the_message() -> None:
    stand = town()
    post = Post(stand)
    bob = stand.bridge()
    stand.submit(post.bridge, "chat")
    request = stand.request(post.chat)
    stand.commits = False
    stand.reply(post.chat, request.token, clients("bob"))
    writes, stand.writes = stand.writes, []
    result = stand.store.commit(writes)  # on disk; the core has no commit yet
    stand.say(bob, Open(1, "bob"))
    stand.take(stand.router.on_committed(writes, result, stand.now))
    stand.commits = True
    stand.commit()
    assert post.outcomes() == {"bob": "queued"}
    stand.deliver(bob)
    assert stand.mail("bob") == []


def test_logout_during_a_read_leaves_the_message_unmarked() -> None:
    stand = town()
    Post(stand).queues(b"1", b"2")
    bob = stand.bridge()
    stand.commits = False
    stand.say(bob, Open(1, "bob"))
    assert len(stand.reads) == 1
    stand.say(bob, Close(1))
    stand.commits = True
    stand.commit()
    assert stand.heard_of(bob, Deliver) == []
    stand.say(bob, Open(2, "bob"))
    got = stand.heard_of(bob, Deliver)
    assert bodies_of(got) == [b"1", b"2"]
    assert not any("redelivered" in each.meta for each in got)


def test_requeued_message_comes_before_those_being_read() -> None:
    stand = town(Limits(window=2))
    Post(stand).queues(*numbered(4))
    bob = stand.bridge("bob")
    assert bodies_of(stand.heard_of(bob, Deliver)) == numbered(2)
    stand.commits = False
    stand.say(bob, Confirm(0, [2]))
    assert stand.reads
    stand.say(bob, Confirm(1, [], [[1, 0, "not-connected"]]))
    stand.commits = True
    stand.commit()
    assert bodies_of(stand.heard_of(bob, Deliver)) == [b"0", b"2"]


def test_expired_message_is_ended_once_in_a_turn() -> None:
    """A message expires in the turn in which its user logs in and a new one is written."""
    stand = town(ttl_s=10.0)
    post = Post(stand)
    post.sends("bob", body=b"1", ttl_s=1)
    post.outcomes()
    bob = stand.bridge()
    stand.submit(post.bridge, "chat")
    request = stand.request(post.chat)
    stand.wait(0.5)
    stand.commits = False
    stand.reply(post.chat, request.token, clients("bob", body=b"2"))
    stand.now += 1.0
    stand.tick()
    stand.say(bob, Open(1, "bob"))
    stand.commits = True
    stand.commit()
    assert bodies_of(stand.heard_of(bob, Deliver)) == [b"2"]
    stand.say(bob, Confirm(1))
    assert stand.mail("bob") == []
    assert stand.queued == (0, 0)


# --- everything at once ---------------------------------------------------------------------------------------------


class Mail(RuleBasedStateMachine):
    """Alice sends numbers to bob, who logs in and out; bridges are lost, the broker is killed at any moment.

    The model: the messages that bob's connections wrote, in order, each with its mark.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stand = town(Limits(window=4, window_bytes=3))
        self.post = Post(self.stand)
        self.bob: Link | None = None
        self.online = False
        self.sessions = 0
        self.sent = 0
        self.promised: set[int] = set()
        self.tokens: dict[int, int] = {}
        self.out: list[Deliver] = []
        self.seen: list[tuple[int, bool]] = []
        self.unsure: set[int] = set()

    def hear(self) -> None:
        if self.bob is not None:
            self.out += self.stand.heard_of(self.bob, Deliver)
        for report in self.stand.heard_of(self.post.bridge, Report):
            number = self.tokens.pop(report.token)
            assert report.status == 0, report
            self.promised.add(number)

    @rule()
    def send(self) -> None:
        token = self.post.sends("bob", body=b"%d" % self.sent)
        self.tokens[token] = self.sent
        self.sent += 1
        self.hear()

    @precondition(lambda self: not self.online)
    @rule()
    def come(self) -> None:
        self.online, self.sessions = True, self.sessions + 1
        if self.bob is None:
            self.bob = self.stand.bridge(name="bob")
        self.stand.say(self.bob, Open(self.sessions, "bob"))
        self.hear()

    @precondition(lambda self: bool(self.out) and self.online)
    @rule(some=st.integers(1, 4))
    def read(self, some: int) -> None:
        """Let bob's connection write the next messages, and the bridge confirm them."""
        assert self.bob is not None
        written, self.out = self.out[:some], self.out[some:]
        self.seen += [(int(each.body), "redelivered" in each.meta) for each in written]
        self.stand.say(self.bob, Confirm(written[-1].serial))
        self.hear()

    @precondition(lambda self: self.online)
    @rule()
    def go(self) -> None:
        """Close bob's connection; the bridge confirms with failures for messages that were not written."""
        assert self.bob is not None
        self.online = False
        self.stand.say(self.bob, Close(self.sessions))
        out, self.out = self.out, []
        if out:
            self.stand.say(self.bob, Confirm(out[-1].serial, [], [[each.serial, 0, "not-connected"] for each in out]))
        self.hear()

    @precondition(lambda self: self.bob is not None)
    @rule(written=st.integers(0, 3))
    def lose(self, written: int) -> None:
        """Kill the bridge, after an unknown part of its deliveries was written."""
        assert self.bob is not None
        self.seen += [(int(each.body), "redelivered" in each.meta) for each in self.out[:written]]
        self.stand.say(self.bob, Goodbye(None))
        self.bob, self.online, self.out = None, False, []
        self.hear()

    @rule(written=st.integers(0, 3))
    def crash(self, written: int) -> None:
        """Kill the broker; alice submits again every message without a report."""
        self.seen += [(int(each.body), "redelivered" in each.meta) for each in self.out[:written]]
        self.unsure |= set(self.tokens.values())
        self.tokens.clear()
        self.stand.restart(f"e{self.stand.store.inspect().life}")
        self.post = Post(self.stand)
        self.bob, self.online, self.out = None, False, []

    @rule(seconds=st.sampled_from([0.5, 1.5]))
    def wait(self, seconds: float) -> None:
        self.stand.wait(seconds)
        self.hear()

    @invariant()
    def nothing_comes_twice_unmarked(self) -> None:
        known: set[int] = set()
        for number, marked in self.seen:
            assert marked or number not in known, self.seen
            known.add(number)

    @invariant()
    def what_is_new_comes_in_order(self) -> None:
        firsts = list(dict.fromkeys(number for number, _ in self.seen))
        assert firsts == sorted(firsts), self.seen

    @invariant()
    def counts_agree(self) -> None:
        entries = self.stand.kept(BOB)
        assert self.stand.queued == (len(entries), sum(len(entry.body) for entry in entries))

    def teardown(self) -> None:
        """Let bob read everything: every message that was reported as queued is there."""
        if not self.online:
            self.come()
        while self.out:
            self.read(4)
        missing = self.promised - {number for number, _ in self.seen}
        assert not missing, missing
        assert not self.tokens
        assert self.stand.mail("bob") == []


Mail.TestCase.settings = hypothesis_settings(max_examples=60, stateful_step_count=40)
TestMail = Mail.TestCase


def test_notice_names_the_reason_of_a_failed_write() -> None:
    stand = town()
    post = Post(stand)
    stand.store.full = True
    post.sends("bob")
    said = [notice for notice in stand.notices if notice.event == "storage-full"]
    assert said == [Notice("storage-full", {"why": "the store in memory is told to be full; make room in it"})]


def test_requests_and_mailbox_of_one_user_do_not_mix() -> None:
    """A message to alice herself, queued while she is away, is hers alone."""
    stand = town()
    post = Post(stand)
    stand.submit(post.bridge, "chat")
    request = stand.one(post.chat, Request)
    stand.say(post.bridge, Close(1))
    stand.reply(post.chat, request.token, clients("alice", "bob"))
    assert post.outcomes() == {"alice": "queued", "bob": "queued"}
    assert [entry.sender for entry in stand.kept(mailbox("alice")) + stand.kept(BOB)] == ["alice", "alice"]
