"""Figures of a broker: each is moved by the event that it counts, and the status holds them all."""

from __future__ import annotations

import pytest

from bester.broker.core import types_state
from bester.broker.core.figures import BUCKETS_S, FOLD_AT, MAX_TYPES, OTHERS, Figures, Histogram
from bester.broker.core.settings import Route, Settings
from bester.broker.core.status import MAX_TYPES_OF_ONE, figures_of
from bester.broker.core.types_state import MAX_ROWS
from bester.broker.wire.messages import Ask, Confirm, Deliver, Goodbye, Heartbeat, Reply, Request
from tests.unit.core_stand import Stand, clients


def stand() -> Stand:
    settings = Settings("s1", routes={"s2": Route("s2", fabric="ipc:///s2")})
    return Stand(settings, accounts=frozenset({"alice", "bob"}))


def test_each_event_of_a_type_is_counted() -> None:
    scene = stand()
    bridge, chat = scene.bridge("alice"), scene.handler("chat")
    scene.submit(bridge, "chat")
    scene.now += 0.03
    scene.answer(chat, clients("alice"), clients("bob"))
    scene.submit(bridge, "chat")
    scene.say(chat, Reply(scene.request(chat).token, 2, [], "no"))
    scene.submit(bridge, "nobody")
    status = scene.router.status(scene.now)
    row = status["types"]["chat"]
    assert (row["received"], row["answered"], row["results"], row["workers"]) == (2, 2, 2, 1)
    assert row["failed"] == {"refused": 1}
    assert (row["took"][BUCKETS_S.index(0.05)], row["took"][0]) == (1, 1)
    assert row["took_s"] == pytest.approx(0.03)
    assert status["types"][OTHERS]["failed"] == {"unknown-type": 1}
    assert status["queued"]["mailboxes"] == 1


def test_requests_after_the_first_and_dead_letters_are_counted() -> None:
    scene = stand()
    bridge, chat = scene.bridge("alice"), scene.handler("chat")
    scene.submit(bridge, "chat")
    for _ in range(3):
        scene.request(chat)
        scene.take(scene.router.on_undeliverable(chat, Heartbeat(), scene.now))
        chat = scene.handler("chat")
    row = scene.router.status(scene.now)["types"]["chat"]
    assert (row["received"], row["again"], row["dead"], row["failed"]) == (1, 2, 1, {"handler-lost": 1})


@pytest.mark.parametrize("at_once", [1, 64])
def test_times_of_a_busy_second_are_counted_in_small_parts(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    scene = stand()
    bridge, chat = scene.bridge("alice"), scene.handler("chat", credit=at_once)
    sizes: list[int] = []
    count = Histogram.take

    def take(self: Histogram, times_s: list[float]) -> None:
        sizes.append(len(times_s))
        count(self, times_s)

    monkeypatch.setattr(Histogram, "take", take)
    messages = 0
    while messages < 3 * FOLD_AT:
        for _ in range(at_once):
            scene.submit(bridge, "chat")
        scene.say(chat, *(Reply(each.token, 0, [clients("alice")]) for each in scene.heard_of(chat, Request)))
        scene.say(bridge, *(Confirm(each.serial, [], []) for each in scene.heard_of(bridge, Deliver)))
        messages += at_once
    scene.wait(2)
    row = scene.router.status(scene.now)["types"]["chat"]
    assert (sum(row["took"]), sum(row["whole"])) == (messages, messages)
    assert max(sizes) <= FOLD_AT


def test_types_beyond_the_bound_share_their_figures() -> None:
    figures = Figures()
    for number in range(MAX_TYPES + 10):
        figures.of(f"t{number}").received += 1
    assert len(figures.types) <= MAX_TYPES + 1
    assert figures.types[OTHERS].received == 10


def test_types_beyond_the_bound_share_a_row_of_the_status() -> None:
    scene = stand()
    types = [f"t{number:04}" for number in range(MAX_TYPES + 10)]
    many, chat = scene.handler(*types, credit=1), scene.handler("chat", types[0])
    scene.say(chat, Heartbeat())
    bridge = scene.bridge("alice")
    for type_ in (types[0], *types):
        scene.submit(bridge, type_)
    rows = scene.router.status(scene.now)["types"]
    assert len(rows) <= MAX_TYPES + 1
    assert rows[OTHERS]["workers"] == 2  # each once, for whatever types of these it serves
    assert rows[types[0]]["workers"] == 2
    assert sum(row["inflight"] for row in rows.values()) == sum(
        len(scene.heard_of(each, Request)) for each in (many, chat)
    )
    assert sum(row["waiting"] + row["inflight"] for row in rows.values()) == len(types) + 1


def test_status_lists_some_types_of_a_handler_and_counts_the_others() -> None:
    scene = stand()
    scene.handler(*(f"t{number:03}" for number in range(MAX_TYPES_OF_ONE + 5)))
    (row,) = scene.router.status(scene.now)["handlers"]
    assert (row["types"][:2], len(row["types"]), row["more_types"]) == (["t000", "t001"], MAX_TYPES_OF_ONE, 5)


def test_types_are_told_page_by_page() -> None:
    scene = stand()
    operator = scene.join("operator", "o", {})
    types = sorted(f"t{number}" for number in range(2 * MAX_ROWS + 1))
    scene.handler(*types)
    seen: list[str] = []
    pages = 0
    argument: dict[str, str] | None = None
    while pages == 0 or argument is not None:
        page = scene.ask(operator, "types", argument).value
        seen += [row["type"] for row in page["types"]]
        pages += 1
        argument = {"from": page["next"]} if page["left"] else None
    assert (seen, pages) == (types, 3)


def test_page_of_types_is_bounded_by_its_workers() -> None:
    scene = stand()
    operator = scene.join("operator", "o", {})
    many = types_state.MAX_BYTES // types_state.WORKER_BYTES // 60 + 1
    for number in range(60):
        scene.handler(*(f"t{number:03}" for number in range(2 * many)), name=f"h{number}")
    page = scene.ask(operator, "types").value
    assert (len(page["types"]), page["left"]) == (many, many)
    page = scene.ask(operator, "types", {"from": page["next"]}).value
    assert (len(page["types"]), page["left"]) == (many, 0)


def test_schemas_of_a_type_that_are_too_long_for_one_answer_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = stand()
    operator = scene.join("operator", "o", {})
    schema = {"type": "string"}
    scene.handler("t", schema={"t": schema})
    (row,) = scene.ask(operator, "types").value["types"]
    assert row["contracts"] == [schema]
    monkeypatch.setattr(types_state, "MAX_CONTRACT_BYTES", 10)
    (row,) = scene.ask(operator, "types").value["types"]
    assert row["contracts"] == []


@pytest.mark.parametrize("argument", ["t1", 3, [], {"from": 3}, {"from": None}])
def test_question_for_a_page_that_is_none_is_refused(argument: object) -> None:
    scene = stand()
    assert scene.ask(scene.join("operator", "o", {}), "types", argument).status == 1


@pytest.mark.parametrize(
    "argument", [None, [], {"a": "1"}, {"a": 1.5}, {1: 1}, {"x" * 65: 1}, {str(n): n for n in range(129)}]
)
def test_bridge_may_tell_names_and_whole_numbers_alone(argument: object) -> None:
    assert figures_of(argument) is None


def test_counts_of_a_bridge_are_in_the_status_until_it_goes() -> None:
    scene = stand()
    bridge = scene.bridge("alice")
    scene.say(bridge, Ask(1, "figures", {"connections": 7}))
    scene.say(bridge, Ask(2, "figures", {"connections": "many"}))
    assert scene.router.status(scene.now)["bridges"][0]["figures"] == {"connections": 7}
    scene.say(bridge, Goodbye(None))
    assert scene.router.status(scene.now)["bridges"] == []


def test_question_of_an_operator_gets_the_status_and_of_nobody_else() -> None:
    scene = stand()
    operator, handler = scene.join("operator", "o", {}), scene.handler("chat")
    assert scene.ask(operator, "status").value["server"] == "s1"
    assert scene.ask(operator, "sessions").value == {"users": [], "left": 0}
    assert scene.ask(handler, "status").status == 1
