"""Scenes in which users and servers are away: their messages wait, over restarts too, and come in order, once."""

from __future__ import annotations

from bester.broker.wire.messages import Command
from bester.handlers import Message, send_clients, send_servers
from tests.scenes.stage import Report, Stage, User


def to_bob(message: Message) -> Command:
    return send_clients(["bob"], message.data)


def to_s2(message: Message) -> Command:
    return send_servers(["s2"], message.data, as_type="inbox")


async def queues(sender: User, type_: str, *letters: int) -> list[Report]:
    """Send these, and see that they wait."""
    reports = [await sender.sends(type_, letter) for letter in letters]
    assert all(report.good for report in reports), reports
    assert {outcome for report in reports for outcome in report.recipients.values()} == {"queued"}
    return reports


async def receives(user: User, *letters: int, on_the_way: int = 0) -> None:
    """See that these come, in this order, each once and for the first time.

    So many of the first were on their way when a server died, and may be marked as redelivered.
    """
    got = [await user.receives() for _ in letters]
    assert [each.data for each in got] == list(letters)
    assert len({each.id for each in got}) == len(letters)
    assert not any(each.redelivered for each in got[on_the_way:])


async def test_returning_user_gets_queued_messages_in_order_and_then_new_ones(stage: Stage) -> None:
    s1 = await stage.server("s1", {"chat": to_bob}, residents=["alice", "bob"])
    alice = await stage.user("alice", at=s1)
    reports = await queues(alice, "chat", 1, 2, 3, 4, 5)
    assert reports[0].recipients == {"bob": "queued"}
    bob = await stage.user("bob", at=s1)
    await receives(bob, 1, 2, 3, 4, 5)
    assert (await alice.sends("chat", 6)).recipients == {}
    await receives(bob, 6)


async def test_more_messages_than_fit_in_flight_come_in_order(stage: Stage) -> None:
    s1 = await stage.server("s1", {"chat": to_bob}, residents=["alice", "bob"])
    alice = await stage.user("alice", at=s1)
    await queues(alice, "chat", *range(150))
    bob = await stage.user("bob", at=s1)
    await receives(bob, *range(150))


async def test_user_who_comes_and_goes_gets_each_message_once(stage: Stage) -> None:
    s1 = await stage.server("s1", {"chat": to_bob}, residents=["alice", "bob"])
    alice = await stage.user("alice", at=s1)
    for day in range(3):
        await queues(alice, "chat", 2 * day, 2 * day + 1)
        bob = await stage.user("bob", at=s1)
        await receives(bob, 2 * day, 2 * day + 1)
        assert (await alice.sends("chat", 100 + day)).recipients == {}
        await receives(bob, 100 + day)
        await bob.leaves()


async def test_queued_messages_survive_a_restart(stage: Stage) -> None:
    s1 = await stage.server("s1", {"chat": to_bob}, residents=["alice", "bob"])
    alice = await stage.user("alice", at=s1)
    before = await queues(alice, "chat", 1, 2, 3)
    await s1.dies()
    s1 = await stage.server("s1", {"chat": to_bob}, residents=["alice", "bob"])
    alice = await stage.user("alice", at=s1)
    after = await queues(alice, "chat", 4)
    assert len({report.message for report in before + after}) == 4
    bob = await stage.user("bob", at=s1)
    await receives(bob, 1, 2, 3, 4)


async def test_a_server_that_was_down_gets_everything_in_order_when_it_comes_back(stage: Stage) -> None:
    everybody = ["alice", "bob"]
    s1 = await stage.server("s1", {"out": to_s2}, peers=["s2"], residents=everybody)
    s2 = await stage.server("s2", peers=["s1"], residents=everybody)
    inbox = await s2.handler({"inbox": to_bob})
    alice = await stage.user("alice", at=s1)
    assert (await alice.sends("out", 0)).recipients == {"s2": "queued"}
    await inbox.leaves()  # or two inboxes would be there when the server comes back, and two keep no order
    await s2.dies()
    reports = await queues(alice, "out", 1, 2, 3)
    assert reports[0].recipients == {"s2": "queued"}
    s2 = await stage.server("s2", {"inbox": to_bob}, peers=["s1"], residents=everybody)
    bob = await stage.user("bob", at=s2)
    await receives(bob, 0, 1, 2, 3, on_the_way=1)


async def test_both_servers_may_go_down_meanwhile(stage: Stage) -> None:
    everybody = ["alice", "bob"]
    s1 = await stage.server("s1", {"out": to_s2}, peers=["s2"], residents=everybody)
    alice = await stage.user("alice", at=s1)
    await queues(alice, "out", 1, 2)
    await s1.dies()
    s1 = await stage.server("s1", {"out": to_s2}, peers=["s2"], residents=everybody)
    alice = await stage.user("alice", at=s1)
    await queues(alice, "out", 3)
    s2 = await stage.server("s2", {"inbox": to_bob}, peers=["s1"], residents=everybody)
    bob = await stage.user("bob", at=s2)
    await receives(bob, 1, 2, 3)
    assert (await alice.sends("out", 4)).recipients == {}
    await receives(bob, 4)
