"""The broker's credit at a bridge: what is sent, what is held, who is not read from, and what the broker is told."""

from __future__ import annotations

from typing import Any

import pytest

from bester.bridge.intake import CROWD
from bester.bridge.submissions import LITTLE_BYTES, LITTLE_ROOM_BYTES
from bester.bridge.window import OVERHEAD_BYTES
from bester.broker.wire.messages import Goodbye, Heartbeat, Report, Submit, Welcome
from tests.unit.bridge_stand import ListConnection, Scene
from tests.unit.test_intake import good, message

LARGE_BYTES = 500_000
FEW = 5_000
"""Connections at most, where some messages of a sender are less than a fair share of the room."""


def told(credit: int, number: int = 1, *stuck: str, size_bytes: int = 2**28) -> Heartbeat:
    return Heartbeat({"credit": credit, "credit_bytes": size_bytes, "number": number, "stuck": list(stuck)})


def write(scene: Scene, connection: ListConnection, *types: str, body: str = "1") -> None:
    """Let a client send a message of each type; its id is its place."""
    data = b"".join(message(f"{place}{type_}", body, type_) for place, type_ in enumerate(types))
    scene.bridge.on_bytes(connection, data)
    scene.turn()


def types_of(scene: Scene) -> list[str]:
    return [submit.type for submit in scene.take(Submit)]


def reports(scene: Scene) -> list[dict[str, Any]]:
    """Return what the broker was told since the last time."""
    scene.now += 0.5
    scene.bridge.tick()
    scene.turn()
    return [beat.options for beat in scene.take(Heartbeat) if beat.options is not None]


class TestCredit:
    def test_no_more_than_the_credit_is_sent_and_the_rest_follows_reports(self) -> None:
        scene = Scene(max_connections=FEW)
        alice = scene.log_in()
        scene.broker(told(5))
        write(scene, alice, *"t" * 30)
        sent = scene.take(Submit)
        assert len(sent) == 5
        scene.broker(*good(*sent[:4]))
        sent[:4] = scene.take(Submit)
        assert len(sent) == 5
        scene.broker(told(12, 2))
        unreported = [*sent, *scene.take(Submit)]
        while unreported:
            assert len(unreported) <= 12
            scene.broker(*good(*unreported))
            unreported = scene.take(Submit)
        assert len(alice.lines()) == 30

    def test_sender_who_has_much_leaves_half_of_the_credit_to_others(self) -> None:
        scene = Scene()
        alice, bob = scene.log_in("alice"), scene.log_in("bob")
        scene.broker(told(200))
        write(scene, alice, *"t" * 300)
        assert len(scene.take(Submit)) == 100
        write(scene, bob, *"t" * 300)
        assert len(scene.take(Submit)) == 50

    def test_lower_credit_holds_at_once_for_a_sender_with_much(self) -> None:
        scene = Scene(max_connections=5)
        alice = scene.log_in()
        scene.broker(told(200))
        write(scene, alice, *"t" * 190)
        sent = scene.take(Submit)
        scene.broker(told(5, 2))
        write(scene, alice, *"t" * 30)
        assert scene.take(Submit) == []
        assert not alice.reading
        scene.broker(*good(*sent[:100]))
        assert scene.take(Submit) == []
        assert reports(scene)[0]["unreported"] == 90 + 64, "a little room is kept beside what fills the credit"
        scene.broker(*good(*sent[100:]))
        for _ in range(8):
            scene.broker(*good(*scene.take(Submit)))
        assert len(alice.lines()) == 220

    def test_sender_with_little_is_served_while_a_lower_credit_is_not_reached_yet(self) -> None:
        scene = Scene(max_connections=FEW)
        alice, bob = scene.log_in("alice"), scene.log_in("bob")
        scene.broker(told(400))
        write(scene, alice, *"t" * 500)
        assert len(scene.take(Submit)) == 200
        scene.broker(told(50, 2))
        for _ in range(5):
            assert len(reports(scene)) <= 1
            write(scene, bob, "t")
            assert [submit.session for submit in scene.take(Submit)] == [bob.session.number]
        assert not alice.reading

    def test_credit_is_never_exceeded_by_what_the_broker_counts(self) -> None:
        scene = Scene()
        users = [scene.log_in(name) for name in ("alice", "bob", "carol")]
        sent: list[Submit] = []
        counted = granted = 300
        scene.broker(told(granted))
        for turn in range(60):
            granted = (300, 100, 20, 250, 1)[turn % 5]
            counted = max(counted, granted)
            scene.broker(told(granted, turn + 2))
            write(scene, users[turn % 3], *"t" * (7 * turn % 90))
            sent += scene.take(Submit)
            assert len(sent) <= counted
            done, sent = sent[: turn % 40], sent[turn % 40 :]
            scene.broker(*good(*done))
            sent += scene.take(Submit)
            for report in reports(scene):
                counted = max(granted, min(counted, report["unreported"]))
            sent += scene.take(Submit)
            assert len(sent) <= counted

    @pytest.mark.parametrize(("credit", "most"), [(0, 1), (3, 2), (8, 4)])
    def test_bytes_are_bounded_and_one_message_always_passes(self, credit: int, most: int) -> None:
        """A sender leaves half of the credit to others."""
        scene = Scene(max_connections=FEW)
        alice = scene.log_in()
        scene.broker(told(1000, size_bytes=credit * LITTLE_BYTES or 1))
        write(scene, alice, *"t" * 30, body="1" * LITTLE_BYTES)
        sent = scene.take(Submit)
        assert len(sent) == most
        for _ in range(40):
            scene.broker(*good(*sent))
            sent = scene.take(Submit)
        assert len(alice.lines()) == 30, "all are served in the end"

    @pytest.mark.parametrize("are_several", [False, True])
    def test_large_message_that_is_all_of_the_credit_keeps_no_short_one_waiting(self, *, are_several: bool) -> None:
        scene = Scene(max_connections=1_000)
        eve, bob = scene.log_in("eve"), scene.log_in("bob")
        scene.broker(told(10_000, size_bytes=LARGE_BYTES))
        write(scene, eve, "t", body="1" * LARGE_BYTES)
        (large,) = scene.take(Submit)
        for count in range(1, 6):
            write(scene, bob, *("mm" if are_several else "m"))
            assert len(scene.take(Submit)) == 1 + are_several, f"{count} are unreported"
        scene.broker(*good(large))

    def test_room_for_short_messages_above_the_credit_is_bounded(self) -> None:
        scene = Scene(max_connections=1_000)
        eve, users = scene.log_in("eve"), [scene.log_in(f"u{number}") for number in range(50)]
        scene.broker(told(10_000, size_bytes=LARGE_BYTES))
        write(scene, eve, "t", body="1" * LARGE_BYTES)
        sent = scene.take(Submit)
        for user in users:
            write(scene, user, *"m" * 40)
        short = scene.take(Submit)
        assert LITTLE_ROOM_BYTES // 2 < sum(len(each.body) + OVERHEAD_BYTES for each in short) <= LITTLE_ROOM_BYTES
        write(scene, users[0], "m", body="1" * LITTLE_BYTES)
        assert scene.take(Submit) == []
        sent += short
        while sent:
            scene.broker(*good(*sent))
            sent = scene.take(Submit)
        assert [len(user.lines()) for user in users] == [41] + [40] * 49

    def test_sender_above_its_share_is_not_read_from_and_is_read_again(self) -> None:
        scene = Scene(max_connections=1_000_000)
        alice = scene.log_in()
        scene.broker(told(40))
        write(scene, alice, *"t" * 100)
        assert not alice.reading
        served = 0
        while sent := scene.take(Submit):
            served += len(sent)
            scene.broker(*good(*sent))
        assert served == 100
        assert alice.reading

    def test_small_credit_starves_nobody(self) -> None:
        scene = Scene(max_connections=1_000_000)
        users = [scene.log_in(name) for name in ("alice", "bob", "carol")]
        scene.broker(told(3))
        for user in users:
            write(scene, user, *"t" * 20)
        while sent := scene.take(Submit):
            assert len(sent) <= 3
            scene.broker(*good(*sent))
        assert [len(user.lines()) for user in users] == [20, 20, 20]

    def test_sender_that_waits_for_each_answer_passes_those_that_wait_for_credit(self) -> None:
        scene = Scene(max_connections=FEW)
        greedy = [scene.log_in(name) for name in ("alice", "carol", "dan", "eve", "frank")]
        bob = scene.log_in("bob")
        scene.broker(told(64))
        for user in greedy:
            write(scene, user, *"t" * 60)
        sent = scene.take(Submit)
        for _ in range(7):
            done, sent = sent[:8], sent[8:]
            scene.broker(*good(*done))  # the others' messages stay unreported, and fill all but the spare part
            sent += scene.take(Submit)
        for _ in range(3):
            write(scene, greedy[-1], "t")
            write(scene, bob, "m")
            asked = scene.take(Submit)
            assert [submit.type for submit in asked].count("m") == 1, "greedy users may have some room, too"
            scene.broker(*good(*asked))
            sent += scene.take(Submit)
        for _ in range(30):
            scene.broker(*good(*sent))
            sent = scene.take(Submit)
            assert len(sent) <= 64
        assert [len(user.lines()) for user in greedy] == [60, 60, 60, 60, 63]

    def test_order_of_a_connection_holds(self) -> None:
        scene = Scene()
        alice = scene.log_in()
        scene.broker(told(3))
        write(scene, alice, *map(str, range(20)))
        seen: list[str] = []
        while sent := scene.take(Submit):
            seen += [submit.type for submit in sent]
            scene.broker(*good(*sent))
        assert seen == list(map(str, range(20)))

    def test_broker_without_credit_gets_everything(self) -> None:
        scene = Scene()
        alice = scene.log_in()
        scene.broker(Heartbeat(), Heartbeat({"other": 1}), Heartbeat({"credit": "x", "credit_bytes": 1, "number": 1}))
        write(scene, alice, *"t" * 50)
        assert len(scene.take(Submit)) == 50
        assert reports(scene) == []

    def test_new_link_begins_with_the_credit_of_its_welcome(self) -> None:
        scene = Scene()
        alice = scene.log_in()
        scene.broker(told(2))
        write(scene, alice, *"t" * 9)
        assert len(scene.take(Submit)) == 2
        scene.broker(Goodbye("restart"))
        scene.broker(Welcome(1, "s", told(4).options or {}))
        again = scene.take(Submit)
        assert [submit.meta.get("attempt", 1) for submit in again] == [2, 2, 1, 1]
        scene.broker(Goodbye("restart"))
        scene.broker(Welcome(1, "s", {}))
        assert len(scene.take(Submit)) == 9, "a broker that tells no credit"

    def test_messages_of_a_client_that_went_count_until_their_report(self) -> None:
        scene = Scene(max_connections=FEW)
        alice, bob = scene.log_in("alice"), scene.log_in("bob")
        scene.broker(told(4))
        write(scene, alice, *"t" * 6)
        write(scene, bob, "u")
        sent = scene.take(Submit)
        scene.bridge.on_connection_lost(alice)
        scene.turn()
        assert scene.take(Submit) == []
        scene.broker(*good(*sent))
        assert types_of(scene) == ["t", "t", "u"]


class TestStuckTypes:
    def test_connection_waits_at_a_stuck_type_and_others_go_on(self) -> None:
        scene = Scene()
        alice, bob = scene.log_in("alice"), scene.log_in("bob")
        scene.broker(told(1000, 1, "slow"))
        write(scene, alice, "echo", "slow", "echo")
        write(scene, bob, "echo", "echo")
        assert types_of(scene) == ["echo"] * 3
        assert (alice.reading, bob.reading) == (False, True)
        assert scene.bridge.inspect().intake.stuck == 1
        scene.broker(told(1000, 2))
        assert types_of(scene) == ["slow", "echo"]
        assert alice.reading

    def test_another_connection_of_the_same_user_goes_on(self) -> None:
        scene = Scene()
        first, second = scene.log_in("alice"), scene.log_in("alice")
        scene.broker(told(1000, 1, "slow"))
        write(scene, first, "slow")
        write(scene, second, "echo")
        assert types_of(scene) == ["echo"]

    def test_stuck_messages_leave_the_credit_to_other_types(self) -> None:
        scene = Scene(max_connections=FEW)
        alice, bob = scene.log_in("alice"), scene.log_in("bob")
        scene.broker(told(8))
        write(scene, alice, *["slow"] * 8)
        write(scene, bob, *["echo"] * 30)
        assert types_of(scene) == ["slow"] * 8
        scene.broker(told(8, 2, "slow"))
        assert types_of(scene) == ["echo"] * 8
        assert reports(scene)[0]["unreported"] == 8, "the broker need not count what is stuck"
        scene.broker(told(4, 3, "slow"))
        assert types_of(scene) == []

    @pytest.mark.parametrize("stuck", [3, 4])
    def test_stuck_messages_count_again_when_they_move(self, stuck: int) -> None:
        scene = Scene()
        alice, bob = scene.log_in("alice"), scene.log_in("bob")
        write(scene, alice, *["slow"] * stuck)
        slow = scene.take(Submit)
        scene.broker(told(4, 1, "slow"))
        write(scene, bob, *["echo"] * 9)
        echo = scene.take(Submit)
        assert len(echo) == 4
        scene.broker(told(4, 2))
        scene.broker(*good(*echo[:stuck]))
        assert scene.take(Submit) == []
        scene.broker(*good(*echo[stuck:], *slow))
        assert len(scene.take(Submit)) == 4

    def test_still_stuck_after_other_news(self) -> None:
        scene = Scene()
        alice = scene.log_in()
        write(scene, alice, "echo")
        (earlier,) = scene.take(Submit)
        scene.broker(told(1000, 1, "slow", "other"))
        write(scene, alice, "slow")
        scene.broker(*good(earlier))
        scene.broker(told(900, 2, "slow"))
        assert types_of(scene) == []
        scene.broker(told(900, 3, "other"))
        assert types_of(scene) == ["slow"]

    def test_acknowledgements_are_read_behind_a_stuck_type(self) -> None:
        scene = Scene()
        alice = scene.log_in(acks=True)
        scene.broker(told(1000, 1, "slow"))
        write(scene, alice, "slow")
        assert alice.reading

    @pytest.mark.parametrize("end", ["link lost", "client gone", "given up", "shut down"])
    def test_nothing_stays_behind(self, end: str) -> None:
        scene = Scene()
        alice = scene.log_in()
        scene.broker(told(1000, 1, "slow"))
        write(scene, alice, "slow", "echo")
        match end:
            case "link lost":
                scene.broker(Goodbye("restart"))
                scene.broker(Welcome(1, "s", {}))
                assert types_of(scene) == ["slow", "echo"]
            case "client gone":
                scene.bridge.on_connection_lost(alice)
            case "given up":
                scene.bridge.give_up()
                scene.turn()
                assert sorted(alice.lines()) == ["bad 0slow timeout", "bad 1echo timeout"]
            case "shut down":
                scene.bridge.shut_down()
                scene.turn()
                assert types_of(scene) == []
                scene.broker(told(1000, 2))
                assert types_of(scene) == ["slow", "echo"]
        assert scene.bridge.inspect().intake.stuck == 0


class TestReports:
    @pytest.mark.parametrize("users", [CROWD - 1, CROWD])
    def test_broker_is_told_whether_a_crowd_waits(self, users: int) -> None:
        scene = Scene(max_connections=FEW)
        crowd = [scene.log_in(f"user{number}") for number in range(users)]
        scene.broker(told(4))
        for user in crowd:
            write(scene, user, *"t" * 40)
        (report,) = reports(scene)
        assert report["crowd"] is (users == CROWD)

    def test_broker_is_told_what_is_unreported_once(self) -> None:
        scene = Scene()
        alice = scene.log_in()
        scene.broker(told(2, 7))
        write(scene, alice, "t", "t", "t")
        (report,) = reports(scene)
        assert (report["unreported"], report["more"], report["number"]) == (2, True, 7)
        assert report["unreported_bytes"] > 2 * 256
        assert reports(scene) == []
        assert [len(reports(scene)) for _ in range(8)] == [0, 0, 1, 0, 0, 0, 1, 0], "again, should one have been lost"
        scene.broker(*good(*scene.take(Submit)))
        scene.broker(*good(*scene.take(Submit)))
        (report,) = reports(scene)
        assert (report["unreported"], report["unreported_bytes"], report["more"]) == (0, 0, False)
        scene.broker(told(2, 8))
        assert [each["number"] for each in reports(scene)] == [8]

    def test_bridge_with_senders_above_their_share_has_more(self) -> None:
        scene = Scene(max_connections=1_000_000)
        alice = scene.log_in()
        scene.broker(told(10))
        write(scene, alice, *"t" * 6)
        assert len(scene.take(Submit)) < 6
        assert reports(scene)[0]["more"] is True

    def test_refusal_frees_credit_as_well(self) -> None:
        scene = Scene()
        alice = scene.log_in()
        scene.broker(told(1))
        write(scene, alice, "t", "t")
        (sent,) = scene.take(Submit)
        scene.broker(Report(sent.token, 1, "overloaded", None, {}))
        assert len(scene.take(Submit)) == 1


class TestBriefTurns:
    """Whether turns of the process are brief, for a sender who says little."""

    @staticmethod
    def is_brief(scene: Scene) -> bool:
        """Return whether a part of the process has a part of its time now; it asks again in the next turns."""
        return scene.brief.part(1.0, scene.now) < 1.0

    def test_message_of_a_sender_makes_them_brief(self) -> None:
        scene = Scene()
        alice = scene.log_in()
        assert not self.is_brief(scene)
        scene.bridge.on_bytes(alice, message("1"))
        assert self.is_brief(scene)

    def test_bytes_of_a_stranger_do_not(self) -> None:
        scene = Scene()
        stranger = scene.connect()
        assert not self.is_brief(scene)
        for byte in b'{"header"':
            scene.bridge.on_bytes(stranger, bytes([byte]))
            scene.turn()
        assert not self.is_brief(scene)

    def test_pieces_of_a_large_message_do_not(self) -> None:
        scene = Scene()
        alice = scene.log_in()
        assert not self.is_brief(scene)
        data = message("1", f'"{"x" * 100_000}"')
        for at in range(0, 90_000, 1_400):
            scene.bridge.on_bytes(alice, data[at : at + 1_400])
            scene.turn()
        assert not self.is_brief(scene)

    def test_piece_of_a_message_that_waits_for_its_turn_does_not(self) -> None:
        scene = Scene(turn_units=32, turn_quantum=16)
        greedy, alice = scene.log_in("greedy"), scene.log_in("alice")
        assert not self.is_brief(scene)
        scene.bridge.on_bytes(greedy, message("1") * 400)
        scene.bridge.on_bytes(alice, message("1")[:-5])
        scene.one_turn()
        assert not alice.session.has_waiting and not self.is_brief(scene)
        scene.bridge.on_bytes(alice, message("1")[-5:])
        scene.turn()
        assert self.is_brief(scene)
