"""Counts of messages and connections that were refused, dropped or cut at a bound, and the operator's view of them."""

from __future__ import annotations

import re

import msgpack  # type: ignore[import-untyped]  # it ships no types
import pytest

from bester.bridge.frames import frame
from bester.bridge.limits import ALSO_COUNTED, COUNTED, Limits
from bester.broker.core.effects import Link
from bester.broker.core.settings import COUNTED as BROKER_COUNTED
from bester.broker.core.settings import Route, Settings
from bester.broker.core.status import MAX_FIGURES
from bester.broker.operator.metrics import pieces_of
from bester.broker.store_requests import Committed
from bester.broker.wire.codec import decode
from bester.broker.wire.messages import Deliver, Error, Malformed
from bester.cli.status import reached_bounds
from tests.bounds_page import page
from tests.unit.bridge_stand import ListConnection, Scene
from tests.unit.core_stand import Stand


def test_figures_of_a_bridge_have_every_counter_of_the_page() -> None:
    figures = Scene().bridge.inspect().figures()
    assert {f"reached_{name}" for name in COUNTED} | set(ALSO_COUNTED.values()) <= figures.keys()
    assert {*COUNTED, *ALSO_COUNTED} <= set(Limits.__dataclass_fields__)
    assert len(figures) <= MAX_FIGURES
    named = re.findall(r"\| `(\w+)` \|$", page(), re.MULTILINE)
    assert len(named) == len(COUNTED) + len(ALSO_COUNTED)
    assert set(named) <= figures.keys()


def test_status_and_metrics_have_every_counter_of_the_broker() -> None:
    stand = Stand()

    status = stand.router.status(stand.now)
    assert status["reached"] == dict.fromkeys(BROKER_COUNTED, 0)
    assert page().count("| reached |") == len(BROKER_COUNTED)
    text = b"".join(pieces_of(status)).decode()
    for name in BROKER_COUNTED:
        assert f'bester_bound_reached_total{{bound="{name}"}} 0.0' in text


@pytest.mark.parametrize("forgotten", [{"outcomes": 2}, {"dead_letters": 1}, {"outcomes": 3, "dead_letters": 4}])
def test_counts_of_the_store_are_among_those_of_the_broker(forgotten: dict[str, int]) -> None:
    stand = Stand()
    for _ in range(2):
        stand.take(stand.router.on_committed([], Committed(True, forgotten=forgotten), stand.now))
    reached = stand.router.status(stand.now)["reached"]
    assert {name: count for name, count in reached.items() if count} == {
        name: 2 * count for name, count in forgotten.items()
    }


@pytest.mark.parametrize(
    ("state", "bound"), [("new", "first_frame_s"), ("login", "login_s"), ("server", "server_s"), ("drain", "drain_s")]
)
def test_connection_whose_time_is_up_is_counted(state: str, bound: str) -> None:
    scene = Scene(first_frame=10_000)
    if state == "new":
        scene.connect()
    elif state == "login":
        scene.start_login()
    elif state == "server":
        server = scene.connect()
        message = b'{"header":{"scope":"server","id":"x","name":"s9"},"payload":{"type":"t","data":1,"id":"x"}}'
        scene.bridge.on_bytes(server, frame(message))
    else:
        client = scene.log_in()
        scene.submit(client)
        scene.bridge.on_peer_ended(client)
    scene.now += max(getattr(scene.limits, bound), 1.0)
    scene.bridge.tick()
    assert scene.bridge.reached == {bound: 1}


@pytest.mark.parametrize("size", [101, 5_000, 1 << 20])
def test_frame_that_is_too_large_is_counted(size: int) -> None:
    scene = Scene(max_frame=100)
    client = scene.log_in()
    scene.bridge.on_bytes(client, frame(b"x" * size))
    assert scene.bridge.reached == {"max_frame": 1}


def letter(serial: int, reader: ListConnection) -> Deliver:
    return Deliver(serial, f"s/{serial}.0", "t", b'"' + b"x" * 900 + b'"', [[0, reader.session.number]])


def slow_reader(scene: Scene, user: str = "bob") -> ListConnection:
    connection = scene.log_in(user)
    connection.blocked = True
    return connection


@pytest.mark.parametrize(("limits", "count"), [({"out_queue": 3000}, 5), ({"out_total": 3000, "out_pause": 1000}, 5)])
def test_frames_that_a_slow_reader_does_not_get_are_counted(limits: dict[str, int], count: int) -> None:
    scene = Scene(**limits)
    bob = slow_reader(scene)
    for serial in range(1, 9):
        scene.broker(letter(serial, bob))
    assert scene.bridge.reached == {next(iter(limits)): count}


def test_readers_that_are_cut_are_counted() -> None:
    scene = Scene(out_answers=3000, out_queue=3000)
    for user in ("ann", "bob"):
        scene.broker(letter(1, slow_reader(scene, user)))
    scene.now += scene.limits.stalled_s + 1
    scene.bridge.tick()
    assert scene.bridge.reached == {"stalled_s": 2}
    carol = slow_reader(scene, "carol")
    scene.bridge.on_bytes(carol, frame(b'{"payload":{"type":"dummy","data":0,"id":"%b"}}' % (b"x" * 1000)) * 4)
    assert carol.aborted is not None
    assert scene.bridge.reached == {"stalled_s": 2, "out_answers": 1}


def test_login_above_the_bound_is_counted() -> None:
    scene = Scene(logins_in_flight=1)
    scene.start_login("a")
    assert scene.start_login("b").lines() == ["bad auth_special overloaded"]
    assert scene.bridge.reached == {"logins_in_flight": 1}


def test_held_messages_that_no_broker_takes_are_counted() -> None:
    scene = Scene()
    client = scene.log_in()
    scene.submit(client)
    scene.bridge.on_link_lost("gone")
    scene.now += scene.limits.hold_s
    scene.bridge.tick()
    assert scene.bridge.reached == {"hold_s": 1}


def test_message_of_more_values_than_its_sender_may_send_is_counted() -> None:
    stand = Stand(Settings("s1", routes={"s2": Route("s2", fabric="tcp://10.0.0.2:1")}))
    handler = stand.handler("t")
    (heavy,) = decode([msgpack.packb([[12, 1, "t", [], {"m": [[0] * 500] * 40}]])], 10_000)
    assert isinstance(heavy, Malformed)
    stand.say(handler, heavy)
    assert heavy.text in stand.one(handler, Error).text
    for link in (Link("curve", b"0:1", "a key"), Link("server", b"s2")):
        stand.take(stand.router.receive_all(link, [heavy, Malformed("malformed", "of another kind")], stand.now))
    assert stand.router.inspect().reached["max_values"] == 3


def test_status_names_the_bounds_that_were_reached() -> None:
    found = {
        "reached": {"max_waiting": 3, "max_lane": 0},
        "bridges": [{"name": "b\n1", "figures": {"reached_out_queue": 2, "reached_ack_s": 0, "sessions": 4}}],
    }
    assert reached_bounds(found) == "max_waiting (3), out_queue of b\\n1 (2)"
    assert reached_bounds({"bridges": []}) == ""
