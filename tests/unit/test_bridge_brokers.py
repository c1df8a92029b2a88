"""A bridge with several brokers: homes of users, and moves of their messages when a broker goes and comes back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, TypeVar

import pytest

from bester.bridge.brokers import MAX_BROKERS, MAX_HOSTS, Broker, weight
from bester.bridge.frames import frame
from bester.bridge.states import State
from bester.broker.wire.messages import (
    Answer,
    Ask,
    Close,
    Confirm,
    Deliver,
    Forward,
    Forwarded,
    Heartbeat,
    LoggedIn,
    Login,
    Message,
    Open,
    Report,
    Submit,
)
from tests.unit.bridge_stand import ListConnection, Noted, Scene

M = TypeVar("M")
NAMES = ("b1", "b2", "b3")


class Port:
    """Way to one broker: a list."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.full = False

    def send(self, message: Message) -> bool:
        if not self.full:
            self.sent.append(message)
        return not self.full

    def send_all(self, messages: Sequence[Message]) -> int:
        return sum(self.send(message) for message in messages)

    def give_up(self) -> None:
        raise AssertionError("these links have room enough")


class Cluster(Scene):
    """Bridge of three brokers, all of which are live."""

    places = tuple(f"tcp://{name}:2225" for name in NAMES)

    def begin(self) -> None:
        self.ports = {name: Port() for name in NAMES}
        self.of = dict(zip(NAMES, self.bridge.brokers.all, strict=True))
        for name, port in self.ports.items():
            self.bridge.connect(port, self.of[name])
            self.come(name)

    def come(self, name: str, **options: Any) -> None:
        self.bridge.on_link_ready({"broker": name, **options}, self.of[name])
        self.turn()

    def go(self, name: str) -> None:
        self.bridge.on_link_lost("gone", self.of[name])
        self.turn()

    def tell(self, name: str, *messages: Message) -> None:
        self.bridge.receive(list(messages), self.of[name])
        self.turn()

    def taken(self, name: str, kind: type[M]) -> list[M]:
        """Return the messages of one type that a broker got, and forget them."""
        port = self.ports[name]
        found: list[M] = [message for message in port.sent if isinstance(message, kind)]
        port.sent = [message for message in port.sent if not isinstance(message, kind)]
        return found

    def user(self, home: str, number: int = 0, among: Sequence[str] = NAMES) -> str:
        """Return a user with this home among these brokers."""
        users = (f"user{each}" for each in range(10_000))
        found = [user for user, _ in zip(users, range(200), strict=False) if home_of(user, among) == home]
        return found[number]

    def enter(self, user: str, *, acks: bool = False) -> ListConnection:
        """Log a user in, at whichever broker is asked."""
        connection = self.start_login(user, acks=acks)
        (name,) = [name for name in NAMES if self.taken(name, Login)]
        self.tell(name, LoggedIn(connection.session.number, 0, account="a1"))
        assert connection.lines() == ["good auth_special"]
        return connection

    def write(self, connection: ListConnection, *ids: str, **options: Any) -> None:
        payloads = [{"type": "t", "data": 1, "id": id_, **options} for id_ in ids]
        frames = [frame(json.dumps({"payload": payload}).encode()) for payload in payloads]
        self.bridge.on_bytes(connection, b"".join(frames))
        self.turn()

    def submitted(self, name: str) -> list[tuple[int, int]]:
        """Return tokens and attempts of the messages that a broker got, and forget them."""
        return [(submit.token, submit.meta.get("attempt", 1)) for submit in self.taken(name, Submit)]


def home_of(user: str, names: Sequence[str]) -> str:
    return max(names, key=lambda name: weight(name, user))


def left_behind() -> tuple[Cluster, str, str, int]:
    """Return a scene in which a user of `b1`, which was lost and is back, has gone and left a message unreported at
    another broker: the scene, the user, that broker, and the message's token there."""
    scene = Cluster()
    user = scene.user("b1")
    new = home_of(user, ("b2", "b3"))
    scene.go("b1")
    gone = scene.enter(user)
    scene.write(gone, "a")
    ((token, _),) = scene.submitted(new)
    scene.bridge.on_connection_lost(gone)
    scene.come("b1")
    return scene, user, new, token


def good(*tokens: int) -> list[Report]:
    return [Report(token, 0, None, f"s/{token}", {}) for token in tokens]


class TestHomes:
    def test_weights_are_the_same_on_every_machine(self) -> None:
        assert weight("b1", "alice").hex() == "ed2c7230ce487e1d"
        assert weight("b1", "\ud800")  # any name hashes

    def test_users_are_shared_evenly_and_only_those_of_a_lost_broker_move(self) -> None:
        users = [f"user{number}" for number in range(3000)]
        before = [home_of(user, NAMES) for user in users]
        assert all(900 < before.count(name) < 1100 for name in NAMES)
        after = [home_of(user, NAMES[:2]) for user in users]
        assert all(new == old for old, new in zip(before, after, strict=True) if old != "b3")

    def test_messages_go_home_and_every_broker_knows_every_session(self) -> None:
        scene = Cluster()
        for home in NAMES:
            connection = scene.enter(scene.user(home))
            scene.write(connection, "a", "b")
            assert [name for name in NAMES if scene.submitted(name)] == [home]
            number = connection.session.number
            told = {name: scene.taken(name, Open) for name in NAMES}
            assert told.pop(home) == []
            assert all(opens == [Open(number, connection.session.user or "", "a1")] for opens in told.values())
            scene.bridge.on_connection_lost(connection)
            assert {name: scene.taken(name, Close) for name in NAMES} == {name: [Close(number)] for name in NAMES}

    def test_name_of_a_broker_counts_and_not_its_address(self) -> None:
        scene = Cluster()
        scene.go("b1")
        scene.bridge.on_link_ready({"broker": "other"}, scene.of["b1"])
        names = ("other", "b2", "b3")
        for user in ("ann", "bob", "eve", "dan", "ida", "joe"):
            assert scene.bridge.brokers.home(user) is scene.of[home_of(user, names).replace("other", "b1")]
        scene.bridge.on_link_ready({"broker": 7}, scene.of["b1"])  # started again, by a broker without a name
        assert scene.of["b1"].name == "tcp://b1:2225"

    def test_number_of_brokers_is_bounded(self) -> None:
        class Lonely(Cluster):
            places: tuple[str, ...] = ()

        class Many(Cluster):
            places = tuple(map(str, range(MAX_BROKERS + 1)))

        for kind in (Lonely, Many):
            with pytest.raises(ValueError, match=f"1 to {MAX_BROKERS} brokers"):
                kind()

    def test_bounds_of_messages_are_divided_and_credit_is_per_broker(self) -> None:
        scene = Cluster(held_messages=30)
        assert scene.bridge.brokers.limits_of_one.held_messages == 10
        scene.come("b1", credit=2, credit_bytes=1 << 20, number=1)
        first, second = scene.enter(scene.user("b1")), scene.enter(scene.user("b2"))
        scene.write(first, *"abc")
        scene.write(second, *"abc")
        assert (len(scene.submitted("b1")), len(scene.submitted("b2"))) == (2, 3)
        scene.bridge.tick()
        (beat,) = scene.taken("b1", Heartbeat)
        assert beat.options is not None
        assert beat.options["unreported"] == 2
        assert scene.taken("b2", Heartbeat) == []


class TestLostBroker:
    def test_messages_without_a_report_go_on_at_another_broker_marked_and_in_order(self) -> None:
        scene = Cluster()
        mine, others = scene.enter(scene.user("b1")), scene.enter(scene.user("b2"))
        scene.write(mine, "a", "b", "c")
        (a, _), (b, _), (c, _) = scene.submitted("b1")
        scene.tell("b1", *good(b))
        scene.write(others, "x")
        scene.submitted("b2")
        scene.go("b1")
        scene.write(mine, "d")
        new = home_of(mine.session.user or "", ("b2", "b3"))
        d = c + 2
        assert scene.submitted(new) == [(a, 2), (c, 2), (d, 1)]
        assert all(scene.submitted(name) == [] for name in NAMES)
        scene.tell(new, *good(a, c, d))
        assert mine.lines() == ["good b", "good a", "good c", "good d"]
        assert scene.bridge.inspect().submissions == (
            1,
            0,
            0,
            0,
            0,
            scene.bridge.inspect().submissions.unreported_bytes,
        )

    def test_messages_that_were_never_sent_are_not_marked(self) -> None:
        scene = Cluster()
        connection = scene.enter(scene.user("b1"))
        scene.ports["b1"].full = True
        scene.write(connection, "a")
        scene.go("b1")
        new = home_of(connection.session.user or "", ("b2", "b3"))
        assert [attempt for _, attempt in scene.submitted(new)] == [1]

    def test_moved_messages_come_before_later_ones_of_the_living_broker_that_wait(self) -> None:
        scene = Cluster()
        mine = scene.enter(scene.user("b1"))
        new = home_of(mine.session.user or "", ("b2", "b3"))
        other = scene.enter(scene.user(new))
        scene.write(mine, "a")
        ((first, _),) = scene.submitted("b1")
        scene.ports[new].full = True
        scene.write(other, "x")
        scene.go("b1")
        scene.write(mine, "b")
        scene.ports[new].full = False
        scene.bridge.tick()
        assert scene.submitted(new) == [(first, 2), (first + 1, 1), (first + 2, 1)]

    def test_everything_waits_where_no_broker_is_live_and_goes_to_the_first_that_comes(self) -> None:
        scene = Cluster()
        mine = scene.enter(scene.user("b1"))
        for name in ("b3", "b2", "b1"):
            scene.go(name)
        scene.write(mine, "a")
        assert not scene.bridge.is_ready
        refused = scene.start_login("late")
        assert refused.lines() == ["bad auth_special unreachable"]
        for port in scene.ports.values():
            port.sent.clear()
        scene.come("b3")
        assert [type(message) for message in scene.ports["b3"].sent] == [Open, Submit]
        (token, attempt) = scene.submitted("b3")[0]
        assert attempt == 1
        scene.tell("b3", *good(token))
        assert mine.lines() == ["good a"]

    def test_messages_of_clients_that_have_gone_move_within_their_session(self) -> None:
        scene = Cluster()
        mine = scene.enter(scene.user("b1"))
        number, user = mine.session.number, mine.session.user or ""
        scene.write(mine, "a", "b")
        scene.submitted("b1")
        scene.bridge.on_connection_lost(mine)
        new = home_of(user, ("b2", "b3"))
        scene.ports[new].sent.clear()
        scene.go("b1")
        sent = scene.ports[new].sent
        assert [type(message) for message in sent] == [Open, Submit, Submit, Close]
        assert (sent[0], sent[-1]) == (Open(number, user, "a1"), Close(number))
        assert scene.bridge.brokers.of(scene.of[new].submissions).submissions.departed_of == {user: 2}
        scene.tell(new, *good(*(token for token, _ in scene.submitted(new))))
        assert scene.of[new].submissions.departed_of == {}
        assert scene.bridge.inspect().submissions == (0, 0, 0, 0, 0, 0)

    def test_login_under_way_goes_on_at_a_living_broker_and_others_stay(self) -> None:
        scene = Cluster()
        user = scene.user("b1")
        moved, fine = scene.start_login(user), scene.start_login(scene.user("b2"))
        (login,) = scene.taken("b1", Login)
        new = home_of(user, ("b2", "b3"))
        scene.taken("b2", Login)
        scene.go("b1")
        assert scene.taken(new, Login) == [login]
        assert moved.lines() == []
        scene.tell(new, LoggedIn(moved.session.number, 0))
        scene.tell("b2", LoggedIn(fine.session.number, 0))
        assert (moved.lines(), fine.lines()) == (["good auth_special"], ["good auth_special"])

    def test_login_under_way_is_refused_where_no_broker_lives(self) -> None:
        scene = Cluster()
        scene.go("b2")
        scene.go("b3")
        lost = scene.start_login("late")
        scene.go("b1")
        assert lost.lines() == ["bad auth_special unreachable"]
        assert scene.bridge.inspect().logins == 0

    def test_login_under_way_is_sent_again_to_a_broker_that_was_started_again(self) -> None:
        scene = Cluster()
        user = scene.user("b1")
        late = scene.start_login(user)
        first = scene.taken("b1", Login)
        scene.come("b1")
        assert [*scene.taken("b1", Login), *scene.taken("b2", Login), *scene.taken("b3", Login)] == first
        assert late.lines() == []

    def test_report_of_the_lost_broker_that_is_back_counts(self) -> None:
        scene = Cluster()
        mine = scene.enter(scene.user("b1"))
        scene.write(mine, "a")
        ((token, _),) = scene.submitted("b1")
        scene.go("b1")
        scene.come("b1")
        scene.tell("b1", *good(token))
        assert mine.lines() == ["good a"]
        scene.tell(home_of(mine.session.user or "", ("b2", "b3")), *good(token))
        assert mine.lines() == []

    def test_deliveries_of_the_lost_link_are_confirmed_to_nobody(self) -> None:
        scene = Cluster()
        mine = scene.enter(scene.user("b1"))
        mine.blocked = True
        number = mine.session.number
        scene.tell("b1", Deliver(5, "s/1.0", "t", b"1", [[0, number]]))
        scene.tell("b2", Deliver(900, "s/2.0", "t", b"2", [[0, number]]))
        scene.go("b1")
        scene.come("b1")
        for name in NAMES:
            scene.taken(name, Confirm)
        mine.unblock()
        scene.turn()
        assert (scene.taken("b1", Confirm), [each.upto for each in scene.taken("b2", Confirm)]) == ([], [900])

    def test_message_of_a_native_server_moves_with_its_connection(self) -> None:
        scene = Cluster()
        connection = scene.connect("10.0.0.9")
        body = b'{"header":{"scope":"server"},"payload":{"data":1,"type":"m","id":"x"}}'
        scene.bridge.on_bytes(connection, frame(body))
        (name,) = [name for name in NAMES if any(isinstance(each, Submit) for each in scene.ports[name].sent)]
        scene.go(name)
        others = [each for each in NAMES if each != name]
        (new,) = [each for each in others if any(isinstance(sent, Submit) for sent in scene.ports[each].sent)]
        ((token, attempt),) = scene.submitted(new)
        assert attempt == 2
        scene.tell(new, *good(token))
        assert connection.lines() == ["good x"]
        assert connection.session.state is State.CLOSING


class TestBrokerIsBack:
    def test_idle_user_goes_home_and_a_busy_one_when_nothing_is_unreported(self) -> None:
        scene = Cluster()
        user = scene.user("b1")
        first, second = scene.enter(user), scene.enter(user)
        idle = scene.enter(scene.user("b1", 1))
        new = home_of(user, ("b2", "b3"))
        scene.go("b1")
        scene.write(first, "a")
        ((a, _),) = scene.submitted(new)
        scene.come("b1")
        scene.write(idle, "i")
        assert len(scene.submitted("b1")) == 1
        scene.write(second, "b")
        ((b, _),) = scene.submitted(new)  # the user's messages stay together, on whichever connection
        scene.tell(new, *good(a))
        scene.bridge.tick()
        scene.write(second, "c")
        ((c, _),) = scene.submitted(new)
        scene.tell(new, *good(b, c))
        scene.bridge.tick()
        scene.write(first, "d")
        scene.write(second, "e")
        assert len(scene.submitted("b1")) == 2
        assert scene.submitted(new) == []

    def test_user_whose_login_was_under_way_when_a_broker_came_goes_home(self) -> None:
        scene = Cluster()
        user = scene.user("b1")
        new = home_of(user, ("b2", "b3"))
        scene.go("b1")
        client = scene.start_login(user)
        assert scene.taken(new, Login)
        scene.come("b1")
        scene.tell(new, LoggedIn(client.session.number, 0))
        assert client.lines() == ["good auth_special"]
        scene.write(client, "a")
        assert len(scene.submitted("b1")) == 1
        assert scene.submitted(new) == []

    def test_user_who_logged_in_where_the_earlier_messages_were_goes_home_after_them(self) -> None:
        scene, user, new, a = left_behind()
        again = scene.start_login(user)
        scene.tell(new, LoggedIn(again.session.number, 0))
        scene.tell(new, *good(a))
        scene.bridge.tick()
        scene.write(again, "b")
        assert len(scene.submitted("b1")) == 1

    def test_login_goes_where_the_user_has_unreported_messages(self) -> None:
        scene, user, new, a = left_behind()
        again = scene.start_login(user)
        assert [name for name in NAMES if scene.taken(name, Login)] == [new]
        scene.tell(new, LoggedIn(again.session.number, 0))
        scene.write(again, "b")
        ((b, _),) = scene.submitted(new)
        scene.tell(new, *good(b))
        scene.bridge.tick()
        scene.write(again, "c")
        ((c, _),) = scene.submitted(new)
        scene.tell(new, *good(a, c))
        third = scene.start_login(user)
        assert [name for name in NAMES if scene.taken(name, Login)] == [new]  # with the other connection
        scene.bridge.on_connection_lost(third)

    def test_listed_server_stays_where_it_is_recognized(self) -> None:
        scene = Cluster()
        host = next(
            host for host in (f"10.0.0.{n}" for n in range(250)) if scene.bridge.brokers.home(f"\0{host}").name == "b1"
        )
        brokers = scene.bridge.brokers
        scene.go("b1")
        before = brokers.home_of_host(host)
        scene.come("b1")
        assert brokers.home_of_host(host) is before
        assert brokers.home(f"\0{host}") is scene.of["b1"]
        for number in range(MAX_HOSTS):
            brokers.home_of_host(f"other{number}")
        assert brokers.home_of_host(host) is scene.of["b1"]  # forgotten

    def test_stuck_type_of_one_broker_holds_nobody_up_at_another(self) -> None:
        scene = Cluster()
        scene.come("b1", credit=100, credit_bytes=1 << 20, number=1, stuck=["t"])
        mine = scene.enter(scene.user("b1"))
        scene.write(mine, "a")
        assert scene.submitted("b1") == []
        scene.go("b1")
        new = home_of(mine.session.user or "", ("b2", "b3"))
        assert [attempt for _, attempt in scene.submitted(new)] == [1]
        assert mine.reading


class TestQuestions:
    def ask(self, scene: Cluster, connection: ListConnection) -> None:
        scene.command(connection, "outcome", "s/1")

    def answer(self, scene: Cluster, name: str, status: int, value: Any) -> None:
        ((token, *_),) = scene.taken(name, Ask)
        scene.tell(name, Answer(token, status, value))

    def test_outcome_is_asked_of_one_broker_after_the_other(self) -> None:
        scene = Cluster()
        connection = scene.enter(scene.user("b2"))
        self.ask(scene, connection)
        self.answer(scene, "b2", 1, None)
        self.answer(scene, "b1", 0, {"bob": "queued"})
        assert scene.taken("b3", Ask) == []
        assert connection.frames()[-1]["payload"]["data"] == {"message": "s/1", "recipients": {"bob": "queued"}}

    def test_outcome_is_unknown_only_where_every_broker_has_told_so(self) -> None:
        scene = Cluster()
        connection = scene.enter(scene.user("b2"))
        self.ask(scene, connection)
        for name in ("b2", "b1", "b3"):
            self.answer(scene, name, 1, None)
        (unknown,) = connection.lines()
        self.ask(scene, connection)
        self.answer(scene, "b2", 1, None)
        scene.go("b1")
        self.answer(scene, "b3", 1, None)
        (doubtful,) = connection.lines()
        assert (unknown == doubtful, doubtful) == (False, "bad c unreachable")

    def test_forwards_of_two_brokers_with_one_token_are_told_apart(self) -> None:
        scene = Cluster()
        forwards: list[Forward] = []
        scene.bridge.forwards.carry = forwards.append
        for name in ("b1", "b2"):
            scene.tell(name, Forward(7, "h:1", "t", name.encode(), {}))
        for forward in reversed(forwards):
            scene.bridge.forwards.on_forwarded(forward.token, f"failed:{forward.body.decode()}")
        assert scene.taken("b1", Forwarded) == [Forwarded(7, "failed:b1", {})]
        assert scene.taken("b2", Forwarded) == [Forwarded(7, "failed:b2", {})]

    def test_anybody_is_asked_what_every_broker_knows(self) -> None:
        scene = Cluster()
        answers: list[tuple[int, Any]] = []
        scene.go("b1")
        scene.bridge.ask("listClients", None, lambda status, value: answers.append((status, value)))
        self.answer(scene, "b2", 0, ["ann"])
        for name in ("b2", "b3"):
            scene.go(name)
        scene.bridge.ask("listClients", None, lambda status, value: answers.append((status, value)))
        assert answers == [(0, ["ann"]), (-1, None)]


def test_acknowledgement_of_a_delivery_is_confirmed_to_its_broker() -> None:
    scene = Cluster()
    connection = scene.enter(scene.user("b1"), acks=True)
    number = connection.session.number
    scene.tell("b3", Deliver(30, "s/3.0", "t", b"3", [[0, number]]))
    scene.tell("b1", Deliver(10, "s/1.0", "t", b"1", [[0, number]]))
    for name in NAMES:
        scene.taken(name, Confirm)
    scene.command(connection, "ack", ["s/3.0.0"])
    assert {name: [each.upto for each in scene.taken(name, Confirm)] for name in NAMES} == {
        "b1": [], "b2": [], "b3": [30],
    }  # fmt: skip


def test_delivery_that_completes_a_message_reports_it_though_another_broker_was_heard_since() -> None:
    scene = Cluster()
    connection = scene.enter(scene.user("b1"))
    scene.write(connection, "a", dedup="d")  # its frame needs a mark
    ((token, _),) = scene.submitted("b1")
    connection.blocked = True
    deliver = Deliver(1, "s/1.0", "t", b"1", [[0, connection.session.number]], token, {"message": "s/1"})
    scene.tell("b1", deliver)
    scene.tell("b2", Heartbeat())
    connection.unblock()
    scene.turn()
    assert connection.lines() == ["s/1.0.0=1", "good a"]


def test_notices_name_the_broker() -> None:
    scene = Cluster()
    scene.go("b2")
    scene.come("b2")
    assert scene.notices == ["link to the broker lost: gone (broker b2)", "the broker is back (broker b2)"]


def test_broker_that_was_started_again_keeps_its_users() -> None:
    scene = Cluster()
    mine = scene.enter(scene.user("b1"))
    scene.write(mine, "a")
    scene.submitted("b1")
    scene.come("b1")
    assert [attempt for _, attempt in scene.submitted("b1")] == [2]
    assert isinstance(scene.of["b1"], Broker)


def test_message_is_alone_where_none_is_under_way_to_any_broker() -> None:
    """Send a message on in its reading where it is alone in the bridge; beside one at another broker it waits for those
    that are read in the same turn, so that they leave together."""

    class NotedCluster(Cluster):
        reading = Noted()

    scene, reads = NotedCluster(), NotedCluster.reading
    here, there = scene.enter(scene.user("b1")), scene.enter(scene.user("b2"))
    reads.take()
    scene.write(here, "1")
    assert reads.take() == ["begin", "end"]
    scene.write(there, "2")
    assert reads.take() == []
    for name in ("b1", "b2"):
        ((token, _),) = scene.submitted(name)
        scene.tell(name, Report(token, 0, None, "m", {}))
    scene.write(there, "3")
    assert reads.take() == ["begin", "end"]
