"""Stock sub-protocols against liars, odd names, repeats, and files that cannot be used."""

from __future__ import annotations

import asyncio
import json
import resource
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import pytest

from bester.handlers import App, Outcome, send_clients
from bester.handlers.stock import chat, joined, kitchen, mail, presence, rooms, subjects
from bester.handlers.stock import store as stock_store
from bester.handlers.stock.kitchen import Kitchen
from bester.handlers.stock.mail import Mail
from bester.handlers.stock.outbox import Outbox
from bester.handlers.stock.presence import Presence
from bester.handlers.stock.rooms import Rooms
from bester.handlers.stock.store import Store
from bester.handlers.testing import Result, Sent, Tester

ROOMS, SUBJECTS = rooms.SCHEMA + joined.SCHEMA, subjects.SCHEMA


class Post:
    """A protocol of server s1 without a server: `handle` behind a Tester, messages numbered unless an id is given."""

    def __init__(self, type_: str, handle: Callable[..., Any]) -> None:
        app = App()
        app.handler(type_, inline=True)(handle)
        self._type = type_
        self._tester = Tester(app, server="s1")
        self._ids = count()

    def send(self, data: Any, *, user: str | None = None, peer: str | None = None, id_: str | None = None) -> Result:
        """Send a message of a user, or of a server."""
        meta = {"peer": peer} if peer else {}
        return self._tester.run(self._type, data, user=user, id=id_ or f"s1/{self._type}/{next(self._ids)}", **meta)

    def note(self, data: Any, *, user: str | None = None, peer: str | None = None) -> str:
        """Send a message that must be refused; return the note for its sender."""
        result = self.send(data, user=user, peer=peer)
        assert (result.status, result.commands) == (2, []), result
        return str(result.note)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with closing(Store("stock", ROOMS + SUBJECTS + mail.SCHEMA + kitchen.SCHEMA + presence.SCHEMA, tmp_path)) as store:
        yield store


@pytest.fixture
def room(store: Store) -> Post:
    """The chat, with the room `lobby` and its member `a`."""
    post = Post("chat", Rooms(store, clock=lambda: 9.0).handle)
    assert post.send({"room": "lobby", "do": "join"}, user="a").status == 0
    return post


@pytest.fixture
def letters(store: Store) -> Post:
    return Post("mail", Mail(store, clock=lambda: 9.0).handle)


@pytest.fixture
def devices(store: Store) -> Post:
    return Post("kitchen", Kitchen(store, clock=lambda: 9.0).handle)


# --- repeats ---


def test_repeated_text_counts_once_and_gets_its_first_reply(room: Post) -> None:
    first = room.send({"room": "lobby", "text": "hi"}, user="a", id_="s1/x/1")
    room.send({"room": "lobby", "user": "t", "ask": {"do": "join"}}, peer="s2")
    assert room.send({"room": "lobby", "text": "hi"}, user="a", id_="s1/x/1") == first
    [here, there] = room.send({"room": "lobby", "text": "next"}, user="a").commands
    assert (here.data["n"], here.targets, there.targets) == (2, ["a"], ["s2"])


def test_id_that_another_server_claims_hides_no_message(room: Post) -> None:
    room.send({"room": "lobby", "user": "t", "ask": {"do": "join"}}, peer="s2", id_="s3/x/1")
    result = room.send({"room": "lobby", "user": "v", "ask": {"do": "join"}}, peer="s3", id_="s3/x/1")
    assert result.commands[0].targets == ["s3"]


def test_repeated_letter_is_delivered_once(letters: Post, store: Store) -> None:
    for id_ in ("s2/x/1", "s2/x/1", "s2/y/1"):  # the last: sent anew, under the same id of the letter
        assert letters.send({"id": "L", "from": "g", "to": ["a"], "text": "x"}, peer="s2", id_=id_).status == 0
    assert len(store.waiting(10)) == 1


def test_two_workers_on_one_file_count_one_room(room: Post, store: Store) -> None:
    with closing(Store("stock", ROOMS, store.path.parent)) as other:
        second = Post("chat", Rooms(other).handle)
        numbers = [
            post.send({"room": "lobby", "text": "x"}, user="a", id_=f"s1/{n}").commands[0].data["n"]
            for n, post in enumerate([room, second, second, room, second])
        ]
    assert numbers == [1, 2, 3, 4, 5]


# --- liars ---


@pytest.mark.parametrize("name", ["t@s1", "t@s3", "@", "", " t", "t\n", "x" * 129, None, 7, ["t"]])
def test_server_speaks_for_no_users_but_its_own(room: Post, letters: Post, devices: Post, name: Any) -> None:
    for post, data in (
        (room, {"room": "lobby", "user": name, "ask": {"do": "join"}}),
        (letters, {"id": "L", "from": name, "to": ["a"], "text": "x"}),
        (devices, {"user": name, "ask": {"subscribe": "oven"}}),
    ):
        assert "without @" in post.note(data, peer="s2")


def test_user_whose_name_looks_like_another_servers_takes_no_part(room: Post, letters: Post, devices: Post) -> None:
    for post, data in ((room, {"room": "lobby", "do": "join"}), (letters, {"to": "a", "text": "x"}),
                       (devices, {"state": {}})):  # fmt: skip
        assert "without @" in post.note(data, user="g@s2")


def test_handler_that_sends_for_nobody_is_refused(room: Post, letters: Post, devices: Post) -> None:
    for post, data in ((room, {"room": "lobby", "do": "join"}), (letters, {"to": "a", "text": "x"}),
                       (devices, {"state": {}})):  # fmt: skip
        assert "not of handlers" in post.note(data)


def test_server_reaches_no_user_who_has_not_asked(room: Post, devices: Post) -> None:
    tells: list[Any] = [{"joined": "a@s1"}, {"history": []}, {"left": "a@s1"}]
    for tell in tells:
        assert room.send({"room": "x", "user": "a", "tell": tell}, peer="s2").commands == []
    said = {"room": "x", "tell": {"n": 1, "from": "g", "text": "buy!"}}
    gone = [Sent("sendServers", ["s2"], {"room": "x", "user": "-", "ask": {"do": "gone"}})]
    assert room.send(said, peer="s2").commands == gone
    room.send({"room": "x@s2", "do": "join"}, user="a")
    assert room.send(said, peer="s2").commands == []  # asked, and not let in yet
    room.send({"room": "x", "user": "a", "tell": {"joined": "a@s1"}}, peer="s2")
    assert room.send(said, peer="s3").commands != gone  # x of s3 is another room
    [command] = room.send(said, peer="s2").commands
    assert (command.targets, command.data["from"], command.data["room"]) == (["a"], "g@s2", "x@s2")
    notice = {"device": "oven", "state": {}, "version": 1, "to": "a"}
    assert devices.send(notice, peer="s2").commands == []


def test_client_cannot_speak_as_a_server(room: Post, letters: Post, devices: Post, store: Store) -> None:
    assert "send" in room.note({"room": "lobby", "do": "gone"}, user="b")
    assert "send" in room.note({"room": "lobby@s2", "do": "gone"}, user="b")
    room.note({"room": "lobby", "tell": {"n": 1}}, user="b")
    letters.note({"receipt": "L", "to": "a", "outcome": "read"}, user="b")
    letters.send({"to": "a", "text": "x", "from": "c", "id": "L", "at": 1}, user="b")
    [emit] = store.waiting(10)
    assert b'"from":"b"' in emit.commands[0].body
    assert b'"at":9' in emit.commands[0].body
    devices.note({"device": "oven", "version": 1, "gone": "oven"}, user="b")


def test_receipts_come_from_the_recipients_server_alone(letters: Post) -> None:
    id_ = "s1/x/1"
    letters.send({"to": ["g@s2", "h@s3"], "text": "x"}, user="a", id_=id_)
    assert "no letter" in letters.note({"receipt": id_, "to": "g", "outcome": "read"}, peer="s3")
    assert "no letter" in letters.note({"receipt": "s1/x/2", "to": "g", "outcome": "read"}, peer="s2")
    [command] = letters.send({"receipt": id_, "to": "g", "outcome": "read"}, peer="s2").commands
    assert command == Sent("sendClients", ["a"], {"receipt": id_, "to": "g@s2", "outcome": "read"})
    assert "no letter" in letters.note({"read": id_}, user="a")


def test_letters_of_another_server_are_not_passed_on(letters: Post) -> None:
    letters.note({"id": "L", "from": "g", "to": ["h@s3"], "text": "x"}, peer="s2")
    letters.note({"id": "L", "from": "g", "to": [{"a": 1}], "text": "x"}, peer="s2")


def test_device_is_set_only_by_those_it_allows(devices: Post) -> None:
    devices.send({"state": {"on": True}}, user="oven")
    ask = {"user": "g", "ask": {"set": "oven", "state": {}}}
    assert "does not allow" in devices.note(ask, peer="s2")
    devices.send({"allow": ["g@s2"]}, user="oven")
    assert devices.send(ask, peer="s2").commands == [Sent("sendClients", ["oven"], {"set": {}, "from": "g@s2"})]
    for who, data in (("g", {"subscribe": "oven"}), ("a", {"get": "oven"}), ("a", {"set": "oven", "state": {}})):
        assert "does not allow" in devices.note(data, user=who)


# --- bounds, odd names ---


@pytest.mark.parametrize("name", ["ø ☕", "'; DROP TABLE rooms;--", "%", "\\", "-", "a" * 128, "__proto__", "🙂"])
def test_odd_names_of_rooms_are_names(room: Post, name: str) -> None:
    [command] = room.send({"room": name, "do": "join"}, user="b").commands
    assert command.data == {"room": name, "joined": "b", "members": 1}
    assert room.send({"room": name, "text": name}, user="b").commands[0].data["text"] == name
    [command] = room.send({"room": f"{name}@s1", "do": "leave"}, user="b").commands  # its own server's name
    assert command.data == {"room": name, "left": "b"}
    assert "join it first" in room.note({"room": name, "do": "history"}, user="b")


@pytest.mark.parametrize("name", ["", " x", "x\n", "a" * 129, "@s2", "x@", "x@ s2", "x@\t", 7, None, ["lobby"], {}])
def test_names_that_are_none_are_refused(room: Post, name: Any) -> None:
    room.note({"room": name, "do": "join"}, user="b")
    room.note({"room": name, "user": "t", "ask": {"do": "join"}}, peer="s2")


@pytest.mark.parametrize(
    "ask",
    [{"text": ""}, {"text": "x" * 4001}, {"text": 7}, {"do": "fly"}, {"do": ["join"]}, {"do": "history", "count": 51},
     {"do": "history", "count": True}, {"do": "history", "before": 1 << 70}, {"do": "remove"}, {}],
)  # fmt: skip
def test_questions_that_are_none_are_refused(room: Post, ask: Any) -> None:
    room.note({"room": "lobby"} | ask, user="a")
    room.note({"room": "lobby", "user": "t", "ask": ask}, peer="s2")


def test_bounds_of_rooms(room: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms, "MAX_MEMBERS", 2)
    monkeypatch.setattr(rooms, "MAX_ROOMS_OF_ONE", 2)
    monkeypatch.setattr(rooms, "MAX_HISTORY", 3)
    monkeypatch.setattr(joined, "MAX_JOINED", 1)
    room.send({"room": "lobby", "do": "join"}, user="b")
    assert "full" in room.note({"room": "lobby", "do": "join"}, user="c")
    room.send({"room": "second", "do": "join"}, user="a")
    assert "2 rooms a user" in room.note({"room": "third", "do": "join"}, user="a")
    room.send({"room": "x@s2", "do": "join"}, user="a")
    assert "1 rooms of other servers" in room.note({"room": "y@s2", "do": "join"}, user="a")
    for _ in range(5):
        room.send({"room": "lobby", "text": "x"}, user="a")
    [command] = room.send({"room": "lobby", "do": "history"}, user="a").commands
    assert [each["n"] for each in command.data["history"]] == [3, 4, 5]


def test_writer_fills_no_mailbox(letters: Post, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mail, "MAX_A_DAY", 2)
    for n in range(2):
        assert letters.send({"id": f"L{n}", "from": f"g{n}", "to": ["a"], "text": "x"}, peer="s2").status == 0
    assert "2 letters a day from s2" in letters.note({"id": "L2", "from": "g2", "to": ["a"], "text": "x"}, peer="s2")
    assert letters.send({"to": "a", "text": "x"}, user="b").status == 0
    assert len(store.waiting(10)) == 3


def test_old_chat_goes_on_beside_rooms() -> None:
    result = Tester(chat.app).run("chat", {"to": "b", "text": "hi", "room": "ignored"}, user="a")
    assert result.commands == [Sent("sendClients", ["b"], {"from": "a", "text": "hi"})]


def test_nothing_is_left_of_names_that_another_server_has_made_up(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subjects, "MAX_OF_SERVER", 2)
    post, place = Mail(store), Kitchen(store)
    Post("mail", post.handle).send({"id": "L", "from": "g", "to": ["nobody"], "text": "x"}, peer="s2")
    post.outbox.settle((store.waiting(1)[0], Outcome(False, {"nobody": "failed:unknown-user"}, "unknown-user")))
    [receipt] = store.waiting(10)
    assert b'"outcome":"failed:unknown-user"' in receipt.commands[0].body
    devices = Post("kitchen", place.handle)
    for n in range(2):
        devices.send({"user": "g", "ask": {"subscribe": f"d{n}"}}, peer="s2")
    assert "2 subscriptions already" in devices.note({"user": "g", "ask": {"subscribe": "d2"}}, peer="s2")
    for verb in ("get", "subscribe", "unsubscribe"):
        devices.send({verb: "oven@s2"}, user="a")
        devices.send({"device": "oven", "state": {}, "version": 7, "to": "a"}, peer="s2")
    with store.turn() as db:
        for name in ("got", "states", "subscribers"):
            assert db.execute(f"SELECT COUNT(*) FROM {name}").fetchone() == (0,), name  # noqa: S608 (the names above)


# --- away ---


def test_subscriber_who_is_away_gets_one_notice_and_the_newest_state_at_the_return(store: Store) -> None:
    place = Kitchen(store, clock=lambda: 9.0)
    post = Post("kitchen", place.handle)
    post.send({"subscribe": "oven"}, user="a")
    for n in range(3):
        post.send({"state": {"n": n}}, user="oven")
        for emit in store.waiting(10):
            place.outbox.settle((emit, Outcome(True, {"a": "queued"})))
            assert n == 0
    for connected in ([], ["oven"], ["a"], ["a"]):
        with store.turn() as db:
            place.devices.notices.back(db, connected)
        assert len(store.waiting(10)) == (connected == ["a"])
    assert b'{"n":2}' in store.waiting(10)[0].commands[0].body
    place.outbox.settle((store.waiting(1)[0], Outcome(False, {"a": "failed:unknown-user"}, "unknown-user")))
    post.send({"state": {"n": 9}}, user="oven")
    assert store.waiting(10) == []


@pytest.mark.parametrize(
    ("how", "at_once", "later"),
    [("queued", 0, 1), ("failed:refused", 0, 1), ("failed:unknown-type", 0, 0), ("failed:not-allowed", 0, 0),
     ("delivered", 1, 0)],
)  # fmt: skip
def test_server_that_takes_no_notice_gets_the_newest_a_minute_later_or_none(
    store: Store, how: str, at_once: int, later: int
) -> None:
    now = [9.0]
    place = Kitchen(store, clock=lambda: now[0])
    post = Post("kitchen", place.handle)
    post.send({"user": "g", "ask": {"subscribe": "oven"}}, peer="s2")
    post.send({"state": {"n": 1}}, user="oven")
    [emit] = store.waiting(10)
    outcome = Outcome(not how.startswith("failed"), {} if how == "delivered" else {"s2": how})
    place.outbox.settle((emit, outcome))
    post.send({"state": {"n": 2}}, user="oven")
    assert len(store.waiting(10)) == at_once
    for seconds, expected in ((59, at_once), (2, at_once + later), (60, at_once + later)):
        now[0] += seconds
        with store.turn() as db:
            place.devices.notices.back(db, [])
        waiting = store.waiting(10)
        assert len(waiting) == expected
        assert not waiting or b'{"n":2}' in waiting[0].commands[0].body


def test_presence_ends_with_time_and_with_the_connection(store: Store) -> None:
    now = [9.0]
    people = Presence(store, clock=lambda: now[0])
    post = Post("presence", people.handle)

    def seen() -> Any:
        return post.send({"who": "a"}, user="b").commands[0].data["state"]

    assert seen() is None
    post.send({"here": "desk", "ttl_s": 60}, user="a")
    assert seen() == {"here": True, "status": "desk"}
    people.look(["b"])
    assert seen() == {"here": True, "status": "desk"}  # perhaps just come
    people.look(["b"])
    assert seen() == {"here": False}
    people.look(["a", "b"])
    assert seen() == {"here": True, "status": "desk"}
    now[0] += 61
    people.look(["a", "b"])
    assert seen() == {"here": False}
    here: list[Any] = [7, "x" * 201, None]
    ttl_s: list[Any] = [0, 1e9, True, "60", -1]
    for bad in [{}, [], *({"here": each} for each in here), *({"here": "", "ttl_s": each} for each in ttl_s)]:
        post.note(bad, user="a")


def settle_all(store: Store, outbox: Outbox) -> list[Any]:
    """Settle the emits that wait, as delivered; return their data."""
    emits = store.waiting(1000)
    outbox.settle(*((emit, Outcome(True, {})) for emit in emits))
    return [json.loads(emit.commands[0].body) for emit in emits]


def test_more_users_go_at_once_than_notices_may_wait(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stock_store, "EMITS", 8)
    monkeypatch.setattr(stock_store, "EMITS_OF_LOOK", 3)
    now = [9.0]
    people = Presence(store, clock=lambda: now[0])
    post = Post("presence", people.handle)
    users = [f"u{number}" for number in range(20)]
    for user in users:
        post.send({"watch": user}, user="w")
        post.send({"here": "", "ttl_s": 60}, user=user)
        settle_all(store, people.outbox)

    def told_by_look(connected: list[str]) -> list[Any]:
        """Look once; return the notices of that look."""
        people.look(connected)
        return settle_all(store, people.outbox)

    people.look(["w"])  # a bridge has ended, and they with it
    looks = [told_by_look(["w"]) for _ in range(8)]
    assert [len(shown) for shown in looks] == [3] * 6 + [2, 0]
    told = [(each["user"], each["state"]) for shown in looks for each in shown]
    assert sorted(told, key=str) == sorted(((user, {"here": False}) for user in users), key=str)
    for _ in range(3):
        people.look([*users, "w"])
    assert len(store.waiting(100)) == 4  # nothing is settled: half of the places are left to what users say
    post.send({"gone": True}, user="u19")
    while settle_all(store, people.outbox):
        people.look([*users, "w"])
    now[0] += 61
    looks = [told_by_look([*users, "w"]) for _ in range(8)]
    assert [len(shown) for shown in looks] == [3] * 6 + [1, 0]
    with store.turn() as db:
        assert db.execute("SELECT COUNT(*) FROM said").fetchone() == (0,)


def test_server_that_was_away_gets_more_notices_than_may_wait(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stock_store, "EMITS", 8)
    monkeypatch.setattr(stock_store, "EMITS_OF_LOOK", 3)
    now = [9.0]
    place = Kitchen(store, clock=lambda: now[0])
    post = Post("kitchen", place.handle)
    devices = [f"d{number}" for number in range(10)]
    for device in devices:
        post.send({"user": "g", "ask": {"subscribe": device}}, peer="s2")
        post.send({"user": "h", "ask": {"subscribe": device}}, peer="s2")
        post.send({"state": {"n": 1}}, user=device)
        settle_all(store, place.outbox)
    with store.turn() as db:
        place.devices.notices.on_outcome(db, {"server": "s2", "subject": "d0"}, Outcome(True, {"s2": "queued"}))
    for device in devices:
        post.send({"state": {"n": 2}}, user=device)
    assert store.waiting(10) == []
    now[0] += 61
    for user in ("g", "h"):
        post.send({"user": user, "ask": {"unsubscribe": "d1"}}, peer="s2")
    looks = []
    for number in range(5):
        place.look([])
        if number == 0:
            post.send({"state": {"n": 3}}, user="d9")  # the newest state is pushed once
        looks.append(settle_all(store, place.outbox))
    assert [len(shown) for shown in looks] == [4, 3, 2, 0, 0]
    told = sorted((each["device"], each["state"]["n"]) for shown in looks for each in shown)
    assert told == sorted((device, 3 if device == "d9" else 2) for device in devices if device != "d1")
    with store.turn() as db:
        assert db.execute("SELECT COUNT(*) FROM behind").fetchone() == (0,)


def test_look_leaves_the_places_to_messages_where_few_are_free(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stock_store, "EMITS", 8)
    now = [9.0]
    place = Kitchen(store, clock=lambda: now[0])
    post = Post("kitchen", place.handle)
    for device in (devices := [f"d{number}" for number in range(5)]):
        post.send({"user": "g", "ask": {"subscribe": device}}, peer="s2")
        post.send({"state": {"n": 1}}, user=device)
    settle_all(store, place.outbox)
    with store.turn() as db:
        place.devices.notices.on_outcome(db, {"server": "s2", "subject": "d0"}, Outcome(True, {"s2": "queued"}))
        for _ in range(5):
            store.emit_later(db, "kitchen", send_clients(["a"], {}), {"subject": "x", "server": None})
    now[0] += 61
    place.look([])
    assert len(store.waiting(10)) == 5
    settle_all(store, place.outbox)
    told = []
    for _ in devices:
        place.look([])
        told += [each["device"] for each in settle_all(store, place.outbox)]
    assert sorted(told) == devices


def test_letters_that_fill_all_places_are_settled_together(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each makes room for its receipt."""
    monkeypatch.setattr(stock_store, "EMITS", 3)
    letters = Mail(store, clock=lambda: 9.0)
    post = Post("mail", letters.handle)
    post.send({"to": ["b", "c", "d"], "text": "x"}, user="a")
    assert "too many notices" in post.note({"to": "e", "text": "x"}, user="a")
    emits = store.waiting(10)
    letters.outbox.settle(*((emit, Outcome(True, {})) for emit in emits))
    receipts = [json.loads(emit.commands[0].body) for emit in store.waiting(10)]
    assert sorted(receipt["to"] for receipt in receipts) == ["b", "c", "d"]


def steps(store: Store, act: Callable[[], object]) -> int:
    """Return how many steps SQLite takes for something, in tens."""
    taken = count()
    with store.turn() as db:
        db.set_progress_handler(lambda: next(taken) < 0, 10)
    act()
    with store.turn() as db:
        db.set_progress_handler(None, 0)
    return next(taken)


class Broker:
    """Stand-in for a running app, whose emits end once `is_open`; `most_at_once` is how many waited then."""

    def __init__(self) -> None:
        self.is_open = asyncio.Event()
        self.waiting = self.most_at_once = 0

    async def emit(self, *_: object, **__: object) -> Outcome:
        """Wait with the others; return that all got it."""
        self.waiting += 1
        self.most_at_once = max(self.most_at_once, self.waiting)
        await self.is_open.wait()
        self.waiting -= 1
        return Outcome(True, {})


async def test_outcomes_that_come_at_once_are_settled_at_once(store: Store) -> None:
    """A transaction for each would hold the loop as often as long as the disk takes."""
    place, broker = Kitchen(store, clock=lambda: 9.0), Broker()
    with store.turn() as db:
        for number in range(50):
            about = {"subject": f"d{number}", "server": None}
            store.emit_later(db, "kitchen", send_clients(["a"], {"n": number}), about)
    running = asyncio.create_task(place.outbox.run(broker))  # type: ignore[arg-type]
    async with asyncio.timeout(10):
        while broker.most_at_once < 50:
            await asyncio.sleep(0.01)
        deleted: list[str] = []
        with store.turn() as db:
            db.set_trace_callback(deleted.append)
        broker.is_open.set()
        while store.waiting(1):
            await asyncio.sleep(0.01)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    with store.turn() as db:
        db.set_trace_callback(None)
    assert sum(text.startswith("DELETE FROM emits") for text in deleted) == 50
    begun = [text for text in deleted if text.startswith(("BEGIN", "DELETE FROM emits"))]
    assert len([1 for first, then in pairwise(begun) if first.startswith("BEGIN") and then.startswith("DELETE")]) == 1


def test_a_change_costs_no_more_beside_many_subscribers_of_others(store: Store) -> None:
    place = Kitchen(store, clock=lambda: 9.0)
    post = Post("kitchen", place.handle)
    post.send({"subscribe": "oven"}, user="a")
    post.send({"state": {"n": 0}}, user="oven")
    few = steps(store, lambda: post.send({"state": {"n": 1}}, user="oven"))
    for number in range(300):
        post.send({"subscribe": f"d{number}"}, user=f"u{number}")
    settle_all(store, place.outbox)
    assert steps(store, lambda: post.send({"state": {"n": 2}}, user="oven")) <= few + 5


def test_a_letter_costs_little_more_beside_many_old_ones(store: Store) -> None:
    now = [9.0]
    letters = Mail(store, clock=lambda: now[0])
    post = Post("mail", letters.handle)
    new = {"to": "b", "text": "x"}
    post.send(new, user="a")
    few = steps(store, lambda: post.send(new, user="a"))
    for number in range(300):
        post.send(new, user=f"u{number}")
    while settle_all(store, letters.outbox):
        pass
    now[0] += 2 * mail.DAY_S
    assert steps(store, lambda: post.send(new, user="a")) <= few + 300 * 5 // 10


# --- the file ---


def test_full_disk_refuses_and_changes_nothing(room: Post) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        assert "cannot keep this now" in room.note({"room": "lobby", "text": "x" * 4000}, user="a")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert room.send({"room": "lobby", "text": "y"}, user="a").commands[0].data["n"] == 1


def test_damaged_file_refuses_until_it_is_moved_away(tmp_path: Path) -> None:
    (tmp_path / "chat.db").write_bytes(b"no database at all, " * 100)
    with closing(Store("chat", ROOMS, tmp_path)) as store:
        post = Post("chat", Rooms(store).handle)
        assert "cannot keep this now" in post.note({"room": "lobby", "do": "join"}, user="a")
        (tmp_path / "chat.db").unlink()
        assert post.send({"room": "lobby", "do": "join"}, user="a").status == 0


def test_state_is_in_the_directory_that_the_server_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BESTER_DATA", str(tmp_path / "handlers/chat"))
    with closing(Store("chat", ROOMS)) as store, store.turn():
        assert store.path == tmp_path / "handlers/chat/chat.db"
        assert store.path.parent.stat().st_mode & 0o777 == 0o700


def test_every_file_is_short_enough_to_be_read_and_copied() -> None:
    files = sorted(Path(chat.__file__).parent.glob("*.py"))
    assert len(files) >= 5
    assert [file.name for file in files if len(file.read_text(encoding="utf-8").splitlines()) >= 200] == []
