"""Scenes in which handlers fail, freeze, leave or send without measure: each sender learns the outcome."""

from __future__ import annotations

from bester.broker.wire.messages import HOP_LIMIT, MAX_RESULTS, Command
from bester.handlers import HandlerError, Message, send_clients, send_handler
from tests.scenes.stage import Stage


def echo(message: Message) -> Command:
    return message.reply(message.data)


def tell(message: Message) -> Command:
    return message.reply({"text": message.data, "id": message.id, "attempt": message.attempt})


async def test_a_handler_that_fails_harms_one_message_alone(stage: Stage) -> None:
    def moody(message: Message) -> Command:
        if message.data == "nonsense":
            raise HandlerError("it makes no sense")
        return message.reply(message.data)

    s1 = await stage.server("s1", {"english": moody})
    t = await stage.user("t", at=s1)
    report = await t.sends("english", "nonsense")
    assert not report.good and report.reason == "refused"
    assert (await t.sends("english", "sense")).good
    assert (await t.receives()).data == "sense"


async def test_unknown_command_voids_its_whole_reply(stage: Stage) -> None:
    reply = [send_clients(["t"], "hi"), Command("sendEverybody", ["t"], b'"hi"')]
    s1 = await stage.server("s1", {"english": lambda message: reply})
    t = await stage.user("t", at=s1)
    report = await t.sends("english", "hello")
    assert not report.good and report.reason == "unknown-command"


async def test_job_of_a_frozen_handler_goes_to_another(stage: Stage) -> None:
    s1 = await stage.server("s1")
    frozen = await s1.handler({"english": tell}, credit=8)  # most credit: the message goes to this handler
    await s1.handler({"english": tell}, credit=1)
    t = await stage.user("t", at=s1)
    await frozen.freezes()
    report = await t.sends("english", "hello")
    assert report.good
    assert (await t.receives()).data == {"text": "hello", "id": report.message, "attempt": 2}


async def test_thawed_handler_loses_its_job_and_serves_again(stage: Stage) -> None:
    s1 = await stage.server("s1")
    frozen = await s1.handler({"english": tell}, credit=8)
    other = await s1.handler({"english": tell}, credit=1)
    t = await stage.user("t", at=s1)
    await frozen.freezes()
    assert (await t.sends("english", "hello")).good
    assert (await t.receives()).data["attempt"] == 2
    await frozen.thaws()
    await other.leaves()
    assert (await t.sends("english", "hello again")).good
    assert (await t.receives()).data["text"] == "hello again"


async def test_a_user_s_messages_keep_their_order_when_their_handler_freezes(stage: Stage) -> None:
    s1 = await stage.server("s1")
    frozen = await s1.handler({"english": echo}, credit=8, ordered=True)
    await s1.handler({"english": echo}, credit=4, ordered=True)
    t = await stage.user("t", at=s1)
    await frozen.freezes()
    sent = [t.submits("english", number) for number in range(20)]
    assert [(await t.receives()).data for _ in sent] == list(range(20))
    assert all([(await report).good for report in sent])


async def test_frozen_handler_without_a_second_costs_its_message(stage: Stage) -> None:
    s1 = await stage.server("s1")
    only = await s1.handler({"english": tell})
    t = await stage.user("t", at=s1)
    await only.freezes()
    report = await t.sends("english", "hello")
    assert not report.good and report.reason == "handler-lost"


async def test_when_a_handler_leaves_the_other_takes_over(stage: Stage) -> None:
    s1 = await stage.server("s1")
    leaver, _ = await s1.handler({"english": echo}, credit=8), await s1.handler({"english": tell}, credit=1)
    t = await stage.user("t", at=s1)
    sent = [t.submits("english", number) for number in range(20)]
    await leaver.leaves()
    assert all([(await report).good for report in sent])
    assert [(await t.receives()).type for _ in sent] == ["english"] * 20
    assert (await t.sends("english", "last")).good
    last = await t.receives()
    assert (last.data["text"], last.data["attempt"]) == ("last", 1)


async def test_when_the_last_handler_has_left_its_type_is_known_but_not_served(stage: Stage) -> None:
    s1 = await stage.server("s1")
    only = await s1.handler({"english": echo})
    t = await stage.user("t", at=s1)
    await only.leaves()
    report = await t.sends("english", "hello")
    assert not report.good and report.reason == "no-handler"


async def test_a_message_waits_for_a_handler_that_comes_back(stage: Stage) -> None:
    s1 = await stage.server("s1")
    first = await s1.handler({"english": tell})
    t = await stage.user("t", at=s1)
    await first.leaves()
    sent = t.submits("english", "hello")
    await s1.handler({"english": tell})
    assert (await sent).good
    assert (await t.receives()).data["text"] == "hello"


async def test_an_endless_pipeline_is_cut(stage: Stage) -> None:
    calls: list[str] = []

    def again(message: Message) -> Command:
        calls.append(message.id)
        return send_handler("english", message.data)

    s1 = await stage.server("s1", {"english": again})
    t = await stage.user("t", at=s1)
    report = await t.sends("english", "on and on")
    assert not report.good and report.reason == "too-many-hops"
    assert calls == [f"{report.message}{'.0.0' * n}" for n in range(HOP_LIMIT)]


async def test_results_beyond_the_bound_are_cut(stage: Stage) -> None:
    consumed: list[int] = []
    many = [send_handler("sink", number) for number in range(MAX_RESULTS + 1)]
    s1 = await stage.server(
        "s1", {"burst": lambda message: many, "sink": lambda message: consumed.append(message.data)}
    )
    t = await stage.user("t", at=s1)
    report = await t.sends("burst", None)
    assert not report.good and report.reason == "too-many-results"
    assert report.recipients == {"sink": "failed:too-many-results"}
    assert consumed == list(range(MAX_RESULTS))
