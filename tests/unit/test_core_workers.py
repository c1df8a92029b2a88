"""The choice of a worker: least loaded, chunks when queues are deep, order where asked, none lost, none starved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from random import Random

import pytest
from hypothesis import Phase
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from bester.broker.core.cases import Case, Kind
from bester.broker.core.effects import Link
from bester.broker.core.jobs import Job
from bester.broker.core.pools import CHUNK, Worker
from bester.broker.core.settings import Limits, Settings
from bester.broker.core.workers import Workers
from bester.broker.wire.messages import Error, Goodbye, Heartbeat, Hello, Reply, Report, Request, Submit
from tests.unit.core_stand import Stand

HERE = Link("ipc", b"b")


def job(type_: str = "t", user: str | None = "u", id_: str = "m") -> Job:
    return Job(Case(Kind.SUBMIT, HERE, 1, id_, id_), id_, id_, type_, b"1", scope="client", origin="s", user=user)


class Crew:
    """Workers of a `Workers`, given messages the way the dispatcher gives them."""

    def __init__(self, *credits_: int, types: str = "t", ordered: str = "") -> None:
        self.workers = Workers(20_000)
        self.tokens = iter(range(1_000_000))
        self.ordered = frozenset(ordered.split())
        self.types = frozenset(types.split())
        self.crew = [self.join(credit) for credit in credits_]

    def join(self, credit: int) -> Worker:
        return self.workers.join(Link("ipc", b"%d" % next(self.tokens)), self.types, credit, self.ordered)

    def come(self, parcel_: Job) -> Worker | None:
        worker = self.workers.choose(parcel_)
        if worker is None:
            self.workers.queues.enqueue(parcel_)
        else:
            self.give(worker, parcel_)
        return worker

    def give(self, worker: Worker, job: Job) -> None:
        worker.inflight[next(self.tokens)] = job
        self.workers.assign(worker, [job])

    def next_jobs(self, worker: Worker, *, together: bool) -> list[Job]:
        """Return a run of waiting jobs, or the next one alone."""
        if together:
            return self.workers.next_run(worker, 1_000)
        job = self.workers.next_for(worker)
        return [] if job is None else [job]

    def finish(self, worker: Worker) -> Job:
        """Let the worker answer its oldest message, and give it waiting ones."""
        done = self.workers.complete(worker, next(iter(worker.inflight)))
        assert done is not None
        self.feed(worker)
        return done

    def feed(self, worker: Worker) -> None:
        while (waiting := self.workers.next_for(worker)) is not None:
            self.give(worker, waiting)


def test_four_workers_share_evenly_when_idle() -> None:
    crew = Crew(8, 8, 8, 8)
    given = Counter(crew.come(job()) for _ in range(20))
    assert [given[worker] for worker in crew.crew] == [5, 5, 5, 5]


def test_four_workers_share_evenly_in_a_closed_loop_of_one() -> None:
    crew = Crew(8, 8, 8, 8)
    given: Counter[Worker | None] = Counter()
    for _ in range(40):
        worker = crew.come(job())
        assert worker is not None
        given[worker] += 1
        crew.finish(worker)
    assert set(given.values()) == {10}


def test_deep_queues_are_handed_out_in_chunks() -> None:
    crew = Crew(256, 256, 256, 256)
    for _ in range(4 * CHUNK):
        crew.come(job())
    given = [crew.come(job()) for _ in range(4 * CHUNK)]
    chunks = [given[at : at + CHUNK] for at in range(0, len(given), CHUNK)]
    assert all(len(set(chunk)) == 1 for chunk in chunks)
    assert {chunk[0] for chunk in chunks} == set(crew.crew)


def test_worker_with_most_free_credit_is_next() -> None:
    crew = Crew(2, 5)
    small, large = crew.crew
    assert [crew.come(job()) for _ in range(3)] == [large, large, large]
    assert {crew.come(job()), crew.come(job())} == {small, large}


def test_credit_is_never_exceeded_and_other_messages_wait() -> None:
    crew = Crew(2, 3)
    for _ in range(9):
        crew.come(job())
    assert [len(worker.inflight) for worker in crew.crew] == [2, 3]
    assert crew.workers.queues.count("t") == 4
    crew.finish(crew.crew[0])
    assert [len(worker.inflight) for worker in crew.crew] == [2, 3]
    assert crew.workers.queues.total == 3


def test_a_pool_that_shrinks_to_one_and_grows_again_counts_right() -> None:
    crew = Crew(4, 4)
    first, second = crew.crew
    for _ in range(4):
        crew.come(job())
    crew.workers.lose(first)
    crew.come(job())
    third = crew.join(4)
    assert [crew.come(job()) for _ in range(4)] == [third, third, third, second] or second.free >= 0
    assert (len(second.inflight), len(third.inflight)) == (4, 3) or (len(second.inflight), len(third.inflight)) == (
        3,
        4,
    )
    for worker in (second, third):
        while worker.inflight:
            crew.finish(worker)
        assert worker.free == worker.credit


def test_workers_of_overlapping_types_compete_by_free_credit() -> None:
    workers = Workers(20_000)
    both = workers.join(Link("ipc", b"1"), frozenset({"a", "b"}), 3, frozenset())
    only = workers.join(Link("ipc", b"2"), frozenset({"a"}), 5, frozenset())
    assert workers.choose(job("a")) is only
    assert workers.choose(job("b")) is both
    assert workers.choose(job("c")) is None


def test_types_take_turns_so_that_a_deep_queue_starves_none() -> None:
    crew = Crew(1, types="a b")
    (worker,) = crew.crew
    for _ in range(10):
        crew.come(job("a"))
    crew.come(job("b"))
    crew.finish(worker)
    crew.finish(worker)
    assert {waiting.type for waiting in worker.inflight.values()} == {"b"}


def test_joining_worker_gets_messages_that_waited() -> None:
    workers = Workers(20_000)
    workers.queues.enqueue(job("t"))
    worker = workers.join(Link("ipc", b"1"), frozenset({"t", "x"}), 1, frozenset())
    assert workers.next_for(worker) is not None
    assert workers.next_for(worker) is None
    assert workers.queues.total == 0


def test_messages_of_one_user_of_an_ordered_type_stay_with_one_worker() -> None:
    crew = Crew(4, 4, ordered="t")
    first = crew.come(job(user="u"))
    assert crew.come(job(user="u")) is first
    assert crew.come(job(user="v")) is not first
    assert crew.come(job(user="u")) is first


def test_message_group_waits_for_its_worker_while_another_is_free() -> None:
    crew = Crew(1, 1, ordered="t")
    one, two = job(id_="1"), job(id_="2")
    worker = crew.come(one)
    assert worker is not None
    assert crew.come(two) is None
    assert crew.finish(worker) is one
    assert list(worker.inflight.values()) == [two]


def test_later_messages_of_a_user_do_not_overtake_waiting_ones() -> None:
    crew = Crew(1, ordered="t")
    (worker,) = crew.crew
    jobs = [job(id_=str(number)) for number in range(3)]
    crew.come(job(user="v"))
    crew.come(jobs[0])
    crew.come(jobs[1])
    crew.finish(worker)  # the first of u's is given, the second waits
    crew.come(jobs[2])
    assert [crew.finish(worker) for _ in range(3)] == jobs


def test_leaving_worker_gets_no_more_of_its_group_and_the_group_moves_on() -> None:
    crew = Crew(2, 2, ordered="t")
    first, second = job(id_="1"), job(id_="2")
    old = crew.come(first)
    assert old is not None
    (other,) = set(crew.crew) - {old}
    crew.workers.leave(old)
    assert crew.come(second) is None
    assert crew.workers.next_for(other) is None
    assert crew.workers.complete(old, next(iter(old.inflight))) is first
    assert list(crew.workers.queues.requeued) == ["t"]
    assert crew.workers.next_for(other) is second


def test_one_flooding_user_of_an_ordered_type_does_not_starve_the_others() -> None:
    crew = Crew(1, ordered="t")
    (worker,) = crew.crew
    for _ in range(20):
        crew.come(job(user="flood"))
    crew.come(job(user="v"))
    assert "v" in [crew.finish(worker).user for _ in range(4)]


def test_order_asked_for_later_holds_for_waiting_messages() -> None:
    crew = Crew(1)
    (plain,) = crew.crew
    jobs = [job(id_=str(number)) for number in range(4)]
    for each in jobs:
        crew.come(each)
    before = crew.workers.queues.counts()
    crew.ordered = frozenset({"t"})
    strict = crew.join(2)
    assert crew.workers.queues.counts() == before == {"t": (3, 3 * len(jobs[0].body))}
    crew.feed(strict)
    assert list(strict.inflight.values()) == jobs[1:3]
    crew.finish(plain)
    assert not plain.inflight
    crew.finish(strict)
    assert list(strict.inflight.values()) == jobs[2:]


def test_overdue_message_is_taken_out_also_behind_a_requeued_one() -> None:
    workers = Workers(20_000)
    old, back = job(id_="old"), job(id_="back")
    old.since, back.since, back.attempt = 1.0, 9.0, 1
    workers.queues.enqueue(old)
    workers.queues.enqueue(back, first=True)
    assert workers.queues.overdue("t", lambda _: 5.0) == [old]
    assert workers.queues.overdue("t", lambda _: 5.0) == []
    assert workers.queues.overdue("t", lambda _: 9.0) == [back]
    assert workers.queues.total == 0
    assert "t" not in workers.queues.by_type


def test_overdue_message_group_is_taken_out() -> None:
    crew = Crew(1, ordered="t")
    (worker,) = crew.crew
    jobs = [job(id_=str(number)) for number in range(4)]
    for number, each in enumerate(jobs):
        each.since = float(number)
        crew.come(each)
    assert crew.workers.queues.overdue_for(worker, lambda _: 2.0) == jobs[1:3]
    crew.finish(worker)
    assert list(worker.inflight.values()) == jobs[3:]


# --- against a naive model ------------------------------------------------------------------------------------------

TYPES = ("a", "b", "c")
USERS = ("u", "v", "w")
ATTEMPTS = 3
TYPE_SETS = st.sets(st.sampled_from(TYPES), min_size=1)


class Hand:
    """Model of a handler."""

    def __init__(self, types: set[str], credit: int) -> None:
        self.types = types
        self.credit = credit
        self.leaving = False
        self.over = 0  # messages in flight beyond its lowered credit
        self.held: dict[int, str] = {}  # by token, in the order given


class Post:
    """Model of a message."""

    def __init__(self, number: int, type_: str, user: str, *, ordered: bool) -> None:
        self.number = number
        self.type = type_
        self.user = user
        self.ordered = ordered  # the type was ordered at the entry
        self.gives = 0
        self.deaths = 0  # deaths of handlers that held this message alone
        self.group: list[Post] = []  # messages suspected together, this one among them
        self.ended = False  # reported before the handler's answer
        self.passed = False  # its handler was passed over once: it binds its user's messages no more


class Crews(RuleBasedStateMachine):
    """Handlers come, go, die and answer at random; after each step the rules are checked from outside."""

    @initialize()
    def start(self) -> None:
        self.stand = Stand(
            Settings("s1", open_accounts=True, limits=Limits(attempts=ATTEMPTS), declared_types=frozenset(TYPES))
        )
        self.bridge = self.stand.bridge(*USERS)
        (self.prefix,) = self.stand.state.resume
        self.hands: dict[Link, Hand] = {}
        self.posts: dict[str, Post] = {}  # open ones, by id
        self.reported: set[int] = set()
        self.submitted = 0
        self.ordered: set[str] = set()
        self.dead_tokens: list[tuple[Link, int]] = []
        self.patient = False  # true if time passes

    # --- the router's messages, as the model takes them in ---

    def listen(self) -> None:
        for link in list(self.stand.inbox):
            for message in self.stand.heard(link):
                if isinstance(message, Request):
                    self.given(link, message)
                elif isinstance(message, Report):
                    self.on_report(message)
                elif isinstance(message, Goodbye) and not self.hands[link].held:
                    del self.hands[link]
        assert self.stand.state.workers.unshared == 0

    def on_report(self, report: Report) -> None:
        assert report.token not in self.reported
        self.reported.add(report.token)
        assert report.message is not None
        post = self.posts[report.message]
        if self.where(report.message):
            assert report.reason == "timeout"
            post.ended = True
        else:
            if report.reason == "handler-lost" and post.deaths < ATTEMPTS:
                assert post.gives, "nobody was given it"
                assert self.patient, "given up at once, and it had killed nobody"
            self.clear_of_suspicion(post)
            del self.posts[report.message]

    def given(self, link: Link, request: Request) -> None:
        hand = self.hands[link]
        post = self.posts[request.meta["id"]]
        assert not hand.leaving
        assert request.type in hand.types
        assert (request.type, request.user) == (post.type, post.user)
        assert all(request.token not in other.held for other in self.hands.values())
        assert request.meta["id"] not in [id_ for other in self.hands.values() for id_ in other.held.values()]
        held_posts = [self.posts[id_] for id_ in hand.held.values()]
        assert not any(held.group and not held.ended for held in held_posts), "something beside a suspect"
        assert not post.group or all(that.ended for that in held_posts), "a suspect beside something"
        hand.held[request.token] = request.meta["id"]
        post.gives += 1
        assert request.meta["attempt"] == post.gives
        if post.ordered:
            earlier = [
                id_ for id_, other in self.posts.items()
                if (other.type, other.user) == (post.type, post.user)
                and other.ordered and other.number < post.number
            ]  # fmt: skip
            held = {id_: where for where, other in self.hands.items() for id_ in other.held.values()}
            self.pass_over()
            # One that is given up binds nobody, though its report waits until its dead letter is written.
            earlier = [id_ for id_ in earlier if not self.posts[id_].passed and self.posts[id_].deaths < ATTEMPTS]
            assert all(id_ in held for id_ in earlier), "overtook one that waits"
            assert all(held[id_] == link for id_ in earlier), "two workers hold one user's"

    def pass_over(self) -> None:
        """Note the messages whose handlers hold as many as they may, all of them settled: such a handler is passed
        over, and when it goes on, what it holds still binds nobody."""
        for hand in self.hands.values():
            posts = [self.posts[id_] for id_ in hand.held.values()]
            if len(posts) >= hand.credit and all(post.ended for post in posts):
                for post in posts:
                    post.passed = True

    @invariant()
    def credit_is_kept_and_nobody_idles(self) -> None:
        if not hasattr(self, "stand"):
            return
        self.listen()
        self.pass_over()
        held = {id_: link for link, hand in self.hands.items() for id_ in hand.held.values()}
        for hand in self.hands.values():
            assert len(hand.held) <= max(hand.credit, hand.over)
        suspected = {post.type for id_, post in self.posts.items() if post.group and id_ not in held}
        held_groups = {(self.posts[id_].type, self.posts[id_].user) for id_ in held}
        unbound = {  # the group of a leaving worker waits until this worker has ended the group's messages in flight
            post.type for id_, post in self.posts.items()
            if post.group and id_ not in held
            and not (post.type in self.ordered and (post.type, post.user) in held_groups)
        }  # fmt: skip
        for type_ in unbound:
            serving = [hand for hand in self.hands.values() if type_ in hand.types and not hand.leaving]
            assert not serving or any(hand.held for hand in serving), "suspects wait, and all are idle"
        aside = max(0, sum(not hand.leaving for hand in self.hands.values()) - 1)
        for id_, post in self.posts.items():
            if id_ in held or post.group or (suspected and not aside):
                continue
            for link, hand in self.hands.items():
                if hand.leaving or post.type not in hand.types or len(hand.held) >= hand.credit:
                    continue
                bound = {
                    held[other] for other, that in self.posts.items()
                    if other in held and (that.type, that.user) == (post.type, post.user)
                }  # fmt: skip
                if self.may_be_isolated(hand):
                    continue
                assert post.type in self.ordered, f"{id_} waits while {link} is free"
                mates = [
                    that for that in self.posts.values() if (that.type, that.user) == (post.type, post.user)
                ]  # fmt: skip
                assert bound - {link} or any(that.group for that in mates), f"{id_} waits for nobody"

    def may_be_isolated(self, hand: Hand) -> bool:
        """Return whether the handler may be isolated: for a suspect in flight, or a waiting one of its types."""
        suspects = {id_: post.type for id_, post in self.posts.items() if post.group}
        return not hand.types.isdisjoint(suspects.values()) or not suspects.keys().isdisjoint(hand.held.values())

    def clear_of_suspicion(self, post: Post) -> None:
        """Clear a message of suspicion; its group is suspected still."""
        if post.group:
            post.group.remove(post)
            post.group = []

    # --- random steps ---

    @rule(types=TYPE_SETS, credit=st.integers(1, 4), ordered=st.sets(st.sampled_from(TYPES)))
    def join(self, types: set[str], credit: int, ordered: set[str]) -> None:
        if len(self.hands) < 5:
            link = self.stand.link()
            self.greet(link, Hand(types, credit), ordered)

    def greet(self, link: Link, hand: Hand, ordered: set[str]) -> None:
        self.hands[link] = hand
        self.ordered |= ordered & hand.types
        options = {"types": sorted(hand.types), "credit": hand.credit, "order": dict.fromkeys(ordered, "user")}
        self.stand.say(link, Hello(1, "handler", "h", options))

    @rule(type_=st.sampled_from(TYPES), session=st.integers(1, len(USERS)))
    def submit(self, type_: str, session: int) -> None:
        self.submitted += 1
        user = USERS[session - 1]
        self.posts[f"{self.prefix}{self.submitted}"] = Post(self.submitted, type_, user, ordered=type_ in self.ordered)
        free = {
            link: hand.credit - len(hand.held) for link, hand in self.hands.items()
            if type_ in hand.types and not hand.leaving
        }  # fmt: skip
        waiting = any(post.type == type_ for id_, post in self.posts.items() if not self.where(id_))
        self.stand.say(self.bridge, Submit(self.submitted, session, type_, b"1"))
        given = [link for link in self.hands if any(type(m) is Request for m in self.stand.inbox.get(link, ()))]
        if given and type_ not in self.ordered and not waiting:
            assert free[given[0]] == max(free.values())

    def where(self, id_: str) -> list[Link]:
        return [link for link, hand in self.hands.items() if id_ in hand.held.values()]

    def some_hand(self, at: int, *, busy: bool = False) -> Iterator[tuple[Link, Hand]]:
        hands = [item for item in self.hands.items() if item[1].held or not busy]
        if hands:
            yield hands[at % len(hands)]

    @rule(at=st.integers(0, 99), which=st.integers(0, 99), status=st.sampled_from([0, 0, 0, 1]))
    def reply(self, at: int, which: int, status: int) -> None:
        for link, hand in self.some_hand(at, busy=True):
            token = list(hand.held)[which % len(hand.held)]
            id_ = hand.held.pop(token)
            self.clear_of_suspicion(self.posts[id_])
            self.forget_if_ended(id_)
            hand.over = min(hand.over, len(hand.held))
            self.stand.say(link, Reply(token, status, []))
            assert not self.stand.heard_of(link, Error)
            if hand.leaving and not hand.held:
                del self.hands[link]

    def forget_if_ended(self, id_: str) -> None:
        if self.posts[id_].ended:
            del self.posts[id_]

    @rule(at=st.integers(0, 99))
    def say_goodbye(self, at: int) -> None:
        for link, hand in self.some_hand(at):
            hand.leaving = True
            self.stand.say(link, Goodbye(None))

    @rule(at=st.integers(0, 99), types=TYPE_SETS, credit=st.integers(1, 4), ordered=st.sets(st.sampled_from(TYPES)))
    def say_hello_again(self, at: int, types: set[str], credit: int, ordered: set[str]) -> None:
        for link, hand in self.some_hand(at):
            if not hand.leaving:
                again = Hand(types, credit)
                again.held, again.over = hand.held, len(hand.held)
                self.greet(link, again, ordered)

    @rule(at=st.integers(0, 99))
    def die(self, at: int) -> None:
        for link, hand in self.some_hand(at):
            del self.hands[link]
            self.dead_tokens += [(link, token) for token in hand.held]
            held = [self.posts[id_] for id_ in hand.held.values()]
            for id_ in hand.held.values():
                self.forget_if_ended(id_)
            if len(held) == 1:
                (post,) = held
                for other in list(post.group):
                    self.clear_of_suspicion(other)
                post.deaths += 1
            alive = [post for post in held if not post.ended]
            if len(alive) > 1 or (alive and not alive[0].group):
                for post in alive:
                    post.group = alive
            if len(held) == 1 and alive and alive[0].deaths >= ATTEMPTS:
                alive[0].group = []
            self.stand.take(self.stand.router.on_undeliverable(link, Heartbeat(), self.stand.now))

    @precondition(lambda self: self.dead_tokens)
    @rule(at=st.integers(0, 99))
    def reply_from_the_grave(self, at: int) -> None:
        link, token = self.dead_tokens[at % len(self.dead_tokens)]
        before = len(self.posts)
        for other in [link, *self.hands]:
            self.stand.say(other, Reply(token, 0, []))
        assert len(self.posts) == before

    @rule(seconds=st.sampled_from([0.5, 2.0, 7.0, 31.0]))
    def let_time_pass(self, seconds: float) -> None:
        self.patient = True
        for link in self.hands:
            self.stand.alive[link] = None
        for link in [link for link in self.stand.alive if link != self.bridge and link not in self.hands]:
            del self.stand.alive[link]
        while seconds > 0:  # in parts: a request that times out within one would be heard of after its report
            self.stand.wait(min(seconds, 7.0))
            self.listen()
            seconds -= 7.0
        self.patient = False

    def all_answer(self) -> None:
        while any(hand.held for hand in self.hands.values()):
            self.listen()
            self.reply(0, 0, 0)
            self.listen()

    def teardown(self) -> None:
        """Let a last handler come and all answer: every message is reported once, and no state is left."""
        if not hasattr(self, "stand"):
            return
        self.listen()
        self.join(set(TYPES), 4, set())
        self.listen()
        for hand in self.hands.values():
            assert len(hand.held) <= max(hand.credit, hand.over)
        self.all_answer()
        self.let_time_pass(31.0)
        self.all_answer()  # also the last worker, which became free for a suspect meanwhile
        state = self.stand.state
        assert self.reported == set(range(1, self.submitted + 1))
        assert self.stand.router.idle
        assert (state.jobs, state.job_bytes, state.workers.waiting) == (0, 0, {})
        assert (state.workers.groups, state.workers.queues, state.workers.suspects) == (0, 0, 0)
        assert not any(hand.held for hand in self.hands.values()) or not state.workers.isolated


# Minutes of shrinking would add little to the first failure: its steps are printed, and they are few.
Crews.TestCase.settings = hypothesis_settings(
    max_examples=100, stateful_step_count=40, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate)
)
TestCrews = Crews.TestCase


@pytest.mark.parametrize("seed", range(60))
def test_a_run_of_waiting_jobs_equals_the_jobs_one_by_one(seed: int) -> None:
    random = Random(seed)
    types = random.choice(["t", "t", "t o", "t v"])
    credits_ = [random.choice([1, 2, 5, 30]) for _ in range(random.randint(1, 3))]
    together, apart = (Crew(*credits_, types=types, ordered="o") for _ in range(2))
    for number in range(120):
        chance, of = random.random(), random.randrange(len(credits_))
        if chance < 0.6:
            type_, user = random.choice(types.split()), random.choice(["a", "b", "c"])
            for crew in (together, apart):
                crew.come(job(type_, user, f"m{number}"))
        for crew in (together, apart):
            worker = crew.crew[of]
            if chance >= 0.6:
                for _ in range(min(5, len(worker.inflight))):
                    crew.workers.complete(worker, next(iter(worker.inflight)))
            while run := crew.next_jobs(worker, together=crew is together):
                for each in run:
                    worker.inflight[next(crew.tokens)] = each
                crew.workers.assign(worker, run)
        assert crew_state(together) == crew_state(apart), (seed, number)


def crew_state(crew: Crew) -> list[object]:
    """Return what the workers hold, and every count."""
    held = [([each.id for each in worker.inflight.values()], worker.free) for worker in crew.crew]
    return [held, crew.workers.inspect(crew.crew), crew.workers.queues.total]
