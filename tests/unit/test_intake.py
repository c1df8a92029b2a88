"""The bridge's input among senders: shares of the room for unreported messages, and turns of a loop with a budget."""

from __future__ import annotations

from random import Random

import pytest

from bester.bridge.frames import frame
from bester.bridge.intake import SHORT_S
from bester.bridge.limits import Limits
from bester.bridge.senders import FREE_COPIES
from bester.bridge.window import OVERHEAD_BYTES
from bester.broker.wire.messages import Answer, Ask, Deliver, Heartbeat, Report, Submit
from tests.unit.bridge_stand import ListConnection, Scene

PING = frame(b'{"payload":{"type":"dummy","data":1,"id":"p"}}')
LARGE = '"' + "x" * 2000 + '"'


def message(id_: str, data: str = "1", type_: str = "t") -> bytes:
    return frame(f'{{"payload":{{"type":"{type_}","data":{data},"id":"{id_}"}}}}'.encode())


def write(scene: Scene, connection: ListConnection, *ids: str, data: str = "1") -> None:
    scene.bridge.on_bytes(connection, b"".join(message(id_, data) for id_ in ids))
    scene.turn()


def write_many(scene: Scene, connection: ListConnection, count: int) -> None:
    write(scene, connection, *map(str, range(count)))


def credit(messages: int, number: int, *stuck: str) -> Heartbeat:
    return Heartbeat({"credit": messages, "credit_bytes": 1 << 28, "number": number, "stuck": list(stuck)})


def good(*submits: Submit) -> list[Report]:
    return [Report(submit.token, 0, None, f"s/{submit.token}", {}) for submit in submits]


def crowded(**limits: int) -> Scene:
    """Return a bridge with small bounds, at which one message is more than a fair share."""
    return Scene(max_connections=1_000_000, **limits)


class TestRoom:
    def test_sender_alone_gets_half_of_the_room(self) -> None:
        scene = crowded(held_messages=100)
        alice = scene.log_in("alice")
        write_many(scene, alice, 200)
        taken = scene.take(Submit)
        assert len(taken) == 50
        assert not alice.reading
        scene.broker(*good(*taken))
        assert len(scene.take(Submit)) == 50

    def test_connections_of_one_user_share(self) -> None:
        scene = crowded(held_messages=100)
        several = [scene.log_in("alice") for _ in range(5)]
        for connection in several:
            write_many(scene, connection, 100)
        assert len(scene.take(Submit)) == 50
        bob = scene.log_in("bob")
        write_many(scene, bob, 100)
        assert len(scene.take(Submit)) == 25

    def test_report_on_one_connection_makes_room_for_another_of_the_user(self) -> None:
        scene = crowded(held_messages=100)
        first, second = scene.log_in("alice"), scene.log_in("alice")
        write_many(scene, first, 50)
        write_many(scene, second, 10)
        taken = scene.take(Submit)
        assert len(taken) == 51, "one message may enter before the share of the sender is looked at"
        assert (first.reading, second.reading) == (True, False)
        scene.broker(*good(*taken[:4]))
        assert scene.take(Submit) == [], "there is room for a few alone: they are handled together, later"
        scene.broker(*good(*taken[4:14]))
        assert [submit.session for submit in scene.take(Submit)] == [second.session.number] * 9
        assert second.reading

    def test_report_to_one_user_makes_room_for_another(self) -> None:
        scene = crowded(held_messages=90)
        alice, bob = scene.log_in("alice"), scene.log_in("bob")
        write_many(scene, alice, 90)
        of_alice = scene.take(Submit)
        write_many(scene, bob, 90)
        of_bob = scene.take(Submit)
        scene.broker(*good(*of_alice))
        submits = scene.take(Submit)
        scene.broker(*good(*submits))
        submits += scene.take(Submit)
        of_each = [sum(submit.session == user.session.number for submit in submits) for user in (alice, bob)]
        assert min(of_each) >= max(of_each) // 2
        assert len(of_bob) < len(of_alice)

    def test_bytes_are_shared_as_well(self) -> None:
        scene = crowded(held_bytes=20_000)
        alice, bob = scene.log_in("alice"), scene.log_in("bob")
        write(scene, alice, *"abcdefgh", data=LARGE)
        assert 4 <= len(scene.take(Submit)) <= 5
        write(scene, bob, *"abcdefgh", data=LARGE)
        assert 2 <= len(scene.take(Submit)) <= 3

    def test_sender_with_less_than_a_fair_share_is_never_kept_waiting(self) -> None:
        scene = Scene(held_bytes=10 * OVERHEAD_BYTES, max_connections=5)
        greedy, modest = scene.log_in("alice"), scene.log_in("bob")
        write_many(scene, greedy, 50)
        assert len(scene.take(Submit)) < 10
        for name in ("carol", "dan", "eve"):
            write_many(scene, scene.log_in(name), 50)
        scene.take(Submit)
        write(scene, modest, "m")
        assert len(scene.take(Submit)) == 1

    @pytest.mark.parametrize("link", ["kept", "lost"])
    def test_messages_of_a_client_that_goes_make_room_where_they_are_dropped(self, link: str) -> None:
        scene = crowded(held_messages=6, gone_messages=0)
        alice, bob = scene.log_in("alice"), scene.log_in("bob")
        if link == "lost":
            scene.bridge.on_link_lost("gone")
        write_many(scene, alice, 3)
        write_many(scene, bob, 3)
        assert not bob.reading
        scene.bridge.on_connection_lost(alice)
        scene.turn()
        assert bob.reading

    def test_acknowledgements_are_read_from_a_sender_without_room(self) -> None:
        scene = crowded(held_messages=4)
        bob = scene.log_in("bob", acks=True)
        write(scene, bob, "a", "b", "c")
        first, second = scene.take(Submit)
        targets = [[0, bob.session.number]]
        scene.broker(Deliver(1, "s/1.0", "t", b"1", targets, first.token, {"message": "s/1"}))
        assert "good a" not in bob.lines()
        scene.command(bob, "ack", ["s/1.0.0"])
        assert "good a" in bob.lines()
        assert len(scene.take(Submit)) == 1
        assert second.token > first.token

    def test_questions_count(self) -> None:
        scene = crowded(held_messages=100, held_bytes=8 * OVERHEAD_BYTES)
        alice = scene.log_in("alice")
        for number in range(10):
            scene.command(alice, "outcome", f"s/{number}", str(number))
        asked = scene.take(Ask)
        assert 3 <= len(asked) < 10
        scene.broker(*(Answer(ask.token, 0, {}) for ask in asked))
        assert scene.take(Ask)

    def test_nothing_is_left_of_senders_that_are_gone(self) -> None:
        scene = crowded(held_messages=10)
        connections = [scene.log_in(user) for user in ("alice", "alice", "bob")]
        for connection in connections:
            write_many(scene, connection, 20)
        assert scene.bridge.inspect().intake.blocked == 3
        for connection in connections:
            scene.bridge.on_connection_lost(connection)
        scene.turn()
        left = scene.bridge.inspect()
        assert (left.senders, *left.intake) == (0, 0, 0, 0, 0, 0)


class TestTurns:
    def test_turn_handles_no_more_than_its_budget(self) -> None:
        scene = Scene(turn_units=10, turn_quantum=4)
        alice = scene.log_in("alice")
        scene.bridge.on_bytes(alice, PING * 100)
        for turn in range(1, 10):
            assert not alice.reading
            scene.one_turn()
            assert alice.count("p") <= 10 * (turn + 1)
        scene.turn()
        assert alice.count("p") == 100
        assert alice.reading

    def test_sender_that_comes_waits_for_one_round_at_most(self) -> None:
        scene = Scene(turn_units=10, turn_quantum=4)
        greedy = [scene.log_in("greedy") for _ in range(20)]
        bob = scene.log_in("bob")
        for connection in greedy:
            scene.bridge.on_bytes(connection, PING * 100)
        scene.bridge.on_bytes(bob, PING)
        calls = 0
        while not bob.count("p"):
            scene.one_turn()
            calls += 1
            assert calls <= 3
        scene.turn()

    @pytest.mark.parametrize(("frames", "handled"), [(1, 16), (32, 32)])
    def test_turns_are_short_for_a_while_after_a_sender_with_little_to_say(self, frames: int, handled: int) -> None:
        scene = Scene(turn_units=32, turn_quantum=16)
        greedy, bob = scene.log_in("greedy"), scene.log_in("bob")

        def of_a_turn() -> int:
            before = greedy.count("p")
            scene.one_turn()
            return greedy.count("p") - before

        scene.bridge.on_bytes(greedy, PING * 400)
        while not of_a_turn():
            pass
        assert of_a_turn() == 32
        scene.bridge.on_bytes(bob, PING * frames)
        while bob.count("p") < frames:
            of_a_turn()
        of_a_turn()
        assert of_a_turn() == handled
        scene.now += SHORT_S
        of_a_turn()
        assert of_a_turn() == 32

    def test_large_frames_cost_more(self) -> None:
        scene = Scene(turn_units=64, turn_quantum=32)
        alice = scene.log_in("alice")
        body = "x" * 100_000
        scene.bridge.on_bytes(alice, message("a", f'"{body}"') * 8)
        assert len(scene.take(Submit)) < 8
        scene.turn()
        assert len(scene.take(Submit)) > 0

    def test_end_of_the_stream_waits_behind_frames_that_wait(self) -> None:
        scene = Scene(turn_units=3, turn_quantum=1)
        alice, bob = scene.log_in("alice"), scene.log_in("bob")
        scene.bridge.on_bytes(alice, PING * 5)
        scene.bridge.on_bytes(bob, message("m")[:-5])
        scene.bridge.on_bytes(bob, message("m")[-5:])
        scene.bridge.on_peer_ended(bob)
        scene.turn()
        (submit,) = scene.take(Submit)
        scene.broker(*good(submit))
        assert "good m" in bob.lines()

    def test_limits_of_a_turn_are_sound(self) -> None:
        limits = Limits()
        assert 0 < limits.turn_quantum <= limits.turn_units


def rate_of_each(scene: Scene, users: dict[str, list[ListConnection]], rounds: int) -> dict[str, int]:
    """Let all users flood a broker that reports on 20 messages a turn; return the reports to each user."""
    served = dict.fromkeys(users, 0)
    waiting: list[Submit] = []
    owner = {each.session.number: user for user, several in users.items() for each in several}
    for _ in range(rounds):
        for several in users.values():
            for connection in several:
                if connection.reading:
                    scene.bridge.on_bytes(connection, message("m") * 60)
        scene.one_turn()
        waiting += scene.take(Submit)
        done, waiting = waiting[:20], waiting[20:]
        for submit in done:
            assert submit.session is not None
            served[owner[submit.session]] += 1
        scene.bridge.receive(good(*done))
    return served


@pytest.mark.parametrize("connections", [(1, 1, 1), (1, 10, 40), (3, 1, 2)])
def test_users_who_always_have_something_to_send_get_equal_shares(connections: tuple[int, ...]) -> None:
    scene = Scene(held_messages=200, turn_units=20, turn_quantum=4, max_connections=1_000_000)
    users = {f"u{n}": [scene.log_in(f"u{n}") for _ in range(count)] for n, count in enumerate(connections)}
    rate_of_each(scene, users, 50)
    for _ in range(3):  # any stretch of time
        served = rate_of_each(scene, users, 60)
        fair = sum(served.values()) / len(served)
        assert all(abs(each - fair) <= 0.1 * fair for each in served.values()), served


def test_sender_that_says_little_is_not_behind_those_who_wait_for_room() -> None:
    """A crowd that fills the room again and again has had its share; who says little comes before it."""
    scene = Scene(held_messages=320, turn_units=64, turn_quantum=16, max_connections=1_000_000)
    crowd = {f"u{n}": [scene.log_in(f"u{n}")] for n in range(40)}
    zoe = scene.log_in("zoe")
    waiting: list[Submit] = []
    for number in range(60):
        for (connection,) in crowd.values():
            if connection.reading:
                scene.bridge.on_bytes(connection, message("m") * 60)
        if number % 10 == 9:
            scene.bridge.on_bytes(zoe, message("z"))
        scene.one_turn()
        submits = scene.take(Submit)
        if number % 10 == 9:
            sessions = [submit.session for submit in submits]
            assert number < 20 or sessions.index(zoe.session.number) <= scene.limits.turn_quantum, (
                "behind the turn that has begun"
            )
        waiting += submits
        done, waiting = waiting[:60], waiting[60:]
        scene.bridge.receive(good(*done))


def test_sender_that_waits_for_room_is_served_again_by_reports_alone() -> None:
    """A connection that waits for its sender's room stays where it is while reports make some."""
    scene = Scene(held_messages=64, turn_units=20, turn_quantum=4, max_connections=1_000_000)
    several = [scene.log_in("alice") for _ in range(3)]
    for connection in several:
        scene.bridge.on_bytes(connection, b"".join(message(str(number)) for number in range(40)))
    scene.turn()
    done = 0
    while submits := scene.take(Submit):
        for submit in submits:
            done += 1
            scene.broker(*good(submit))
    assert done == 120
    assert all(connection.reading for connection in several)
    assert scene.bridge.inspect().intake == (0, 0, 0, 0, 0)


@pytest.mark.parametrize("seed", range(220))
def test_no_order_of_events_leaves_a_sender_behind(seed: int) -> None:
    """Users write, are reported to, log in and go, types are stuck and free again, in any order: in the end everything
    is served, and every connection is read."""
    random = Random(seed)
    scene = crowded(
        held_messages=random.randint(4, 40), turn_units=random.randint(3, 30), turn_quantum=random.randint(1, 8)
    )
    connections: list[ListConnection] = []
    unreported: list[Submit] = []
    told = 0
    for step in range(300):
        what = random.random()
        if len(connections) < 2 or (what < 0.05 and len(connections) < 8):
            connections.append(scene.log_in(random.choice(("alice", "bob")), acks=random.random() < 0.3))
        elif what < 0.1:
            scene.bridge.on_connection_lost(connections.pop(random.randrange(len(connections))))
        elif what < 0.7:
            connection = random.choice(connections)
            if connection.reading:
                made = random.choice(
                    (PING, message(str(step)), message(str(step), type_="s"), message(str(step)) + PING)
                )
                scene.bridge.on_bytes(connection, made * random.randint(1, 12))
        elif what < 0.75:
            told += 1
            scene.bridge.receive(
                [credit(random.randint(4, 40), told, *random.sample(("s", "t"), random.randint(0, 1)))]
            )
        else:
            random.shuffle(unreported)
            reported = [unreported.pop() for _ in range(random.randint(0, len(unreported)))]
            scene.bridge.receive(good(*reported))
        scene.one_turn()
        unreported += scene.take(Submit)
    scene.broker(credit(40, told + 1))
    while unreported := unreported + scene.take(Submit):
        scene.broker(*good(*unreported))
        unreported = []
    assert all(connection.reading for connection in connections)
    assert not any(connection.session.has_more for connection in connections)
    assert scene.bridge.inspect().intake == (0, 0, 0, 0, 0)


class TestCopies:
    """Messages to several connections cost the bridge their copies."""

    def stand(self) -> tuple[Scene, ListConnection, list[ListConnection]]:
        scene = Scene(unreported_bytes=500_000)
        alice, *others = [scene.log_in("alice") for _ in range(8)]
        return scene, alice, others

    def answer(self, scene: Scene, submit: Submit, connections: list[ListConnection]) -> None:
        targets = [[0, *(connection.session.number for connection in connections)]]
        serial = submit.token
        scene.broker(
            Deliver(serial, f"s/{serial}.0", "t", submit.body, targets, submit.token, {"message": f"s/{serial}"})
        )

    def test_fewer_are_on_their_way_at_once(self) -> None:
        first, later = self.two_runs('"' + "x" * 10_000 + '"')
        assert first > 40, "nobody knows yet"
        assert 5 <= later <= 500_000 / (8 * 10_000 - FREE_COPIES) + 1

    def test_of_small_bodies_the_number_of_messages_is_the_bound(self) -> None:
        assert self.two_runs('"' + "x" * 1000 + '"') == (60, 60)

    def two_runs(self, data: str) -> tuple[int, int]:
        """Write 60 messages whose answers go to eight connections, twice; return how many are submitted of each run."""
        scene, alice, others = self.stand()
        write(scene, alice, *map(str, range(60)), data=data)
        first = scene.take(Submit)
        for submit in first:
            self.answer(scene, submit, [alice, *others])
        later = scene.take(Submit)
        write(scene, alice, *map(str, range(60)), data=data)
        later += scene.take(Submit)
        return len(first), len(later)

    def test_answers_to_one_connection_are_cheap_again(self) -> None:
        scene, alice, others = self.stand()
        write(scene, alice, "a", data=LARGE)
        self.answer(scene, scene.take(Submit)[0], [alice, *others])
        sender = alice.session.window.sender
        assert sender.fan == 8
        for number in range(500):
            write(scene, alice, str(number), data=LARGE)
            self.answer(scene, scene.take(Submit)[0], [alice])
        assert sender.fan == 1

    def test_own_connections_without_room_slow_their_sender_and_others_do_not(self) -> None:
        scene = Scene(out_queue=10_000)
        alice, other, bob = scene.log_in("alice"), scene.log_in("alice"), scene.log_in("bob")
        sender = alice.session.window.sender
        for to, fan in (([bob], 1), ([alice, other], 4)):
            for connection in to:
                connection.blocked = True
            for number in range(12):
                write(scene, alice, str(number), data=LARGE)
                self.answer(scene, scene.take(Submit)[0], to)
                if sender.fan > len(to):
                    break
            assert sender.fan == fan
