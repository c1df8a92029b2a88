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

# --- races ------------------------------------------------------------------------------------------------------------


def test_who_comes_between_writing_and_its_end_gets_it_behind_what_waited() -> None:
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
    assert post.told() == {"bob": "queued"}
    assert bodies_of(stand.heard_of(bob, Deliver)) == [b"1", b"2"]


def test_who_comes_to_an_empty_mailbox_while_the_first_is_written_gets_it() -> None:
    stand = town()
    post = Post(stand)
    bob = stand.bridge()
    stand.submit(post.bridge, "chat")
    request = stand.request(post.chat)
    stand.commits = False
    stand.reply(post.chat, request.token, clients("bob"))
    writes, stand.writes = stand.writes, []
    result = stand.store.commit(writes)  # it is on the disk, and the core does not know yet
    stand.say(bob, Open(1, "bob"))
    stand.take(stand.router.on_committed(writes, result, stand.now))
    stand.commits = True
    stand.commit()
    assert post.told() == {"bob": "queued"}
    stand.deliver(bob)
    assert stand.mail("bob") == []


def test_who_goes_while_it_is_read_finds_it_when_he_comes_again_and_it_is_not_marked() -> None:
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


def test_what_is_put_back_while_the_next_are_read_comes_before_them() -> None:
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


def test_what_is_over_is_not_read_again_in_the_same_turn() -> None:
    """Its time is over, and in the same turn somebody comes and what is new is written for him."""
    stand = town(ttl_s=10.0)
    post = Post(stand)
    post.sends("bob", body=b"1", ttl_s=1)
    post.told()
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


# --- all of it --------------------------------------------------------------------------------------------------------


class Mail(RuleBasedStateMachine):
    """Alice sends numbers to bob, who comes and goes; bridges are lost, the broker is killed at any moment.

    The model: what bob's connections wrote, in order, each with its mark.
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
        """Bob's connection writes what is next, and the bridge says so."""
        assert self.bob is not None
        written, self.out = self.out[:some], self.out[some:]
        self.seen += [(int(each.body), "redelivered" in each.meta) for each in written]
        self.stand.say(self.bob, Confirm(written[-1].serial))
        self.hear()

    @precondition(lambda self: self.online)
    @rule()
    def go(self) -> None:
        """His connection is closed; the bridge says what it had not written."""
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
        """The bridge dies; some of what it had was written, and nobody knows."""
        assert self.bob is not None
        self.seen += [(int(each.body), "redelivered" in each.meta) for each in self.out[:written]]
        self.stand.say(self.bob, Goodbye(None))
        self.bob, self.online, self.out = None, False, []
        self.hear()

    @rule(written=st.integers(0, 3))
    def crash(self, written: int) -> None:
        """The broker dies; alice submits again what she has no report on."""
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
        """Bob comes and reads until there is no more: all that was promised is there."""
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


def test_a_notice_names_why_nothing_can_be_kept() -> None:
    stand = town()
    post = Post(stand)
    stand.store.full = True
    post.sends("bob")
    said = [notice for notice in stand.notices if notice.event == "storage-full"]
    assert said == [Notice("storage-full", {"why": "the store in memory is told to be full; make room in it"})]


def test_requests_and_mail_of_one_user_do_not_mix() -> None:
    """What alice is sent while she is away waits for her alone, though she sends it herself."""
    stand = town()
    post = Post(stand)
    stand.submit(post.bridge, "chat")
    request = stand.one(post.chat, Request)
    stand.say(post.bridge, Close(1))
    stand.reply(post.chat, request.token, clients("alice", "bob"))
    assert post.told() == {"alice": "queued", "bob": "queued"}
    assert [entry.sender for entry in stand.kept(mailbox("alice")) + stand.kept(BOB)] == ["alice", "alice"]
