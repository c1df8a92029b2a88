"""Transfers: answers, deadlines, lanes that are full, and links that are lost."""

from __future__ import annotations

from itertools import count

from bester.broker.core.cases import Case, Kind
from bester.broker.core.effects import Link
from bester.broker.core.lane_shares import LaneShares
from bester.broker.core.settings import Route
from bester.broker.core.transfers import Transfer, Transfers
from bester.broker.store_requests import Entry, lane

OUT = Link("server", b"s2")
OTHER = Link("server", b"s3")
numbers = count(1)


def transfer(link: Link = OUT, *, type_: str = "t", deadline: float = 10.0, kept: bool = False) -> Transfer:
    number, server = next(numbers), link.key.decode()
    entry = Entry(number, lane(server, type_), f"m.{number}", server, type_, b"1", None, 0.0, {})
    case = None if kept else Case(Kind.SUBMIT, Link("ipc", b"b"), 1, "m", "m")
    return Transfer(entry, server, link, Route(server, fabric="ipc:///x"), deadline, case)


def test_answer_ends_a_transfer_once_and_only_on_its_link() -> None:
    transfers = Transfers(10, LaneShares(128))
    one = transfer()
    transfers.add(1, one)
    assert transfers.end(1, OTHER) is None
    assert transfers.end(2, OUT) is None
    assert transfers.end(1, OUT) is one
    assert transfers.end(1, OUT) is None
    assert transfers.count == 0


def test_lane_is_full_by_itself_and_has_room_after_an_answer() -> None:
    transfers = Transfers(2, LaneShares(128))
    transfers.add(1, transfer())
    transfers.add(2, transfer())
    assert transfers.is_full(lane("s2", "t"))
    assert not transfers.is_full(lane("s2", "other"))
    assert not transfers.is_full(lane("s3", "t"))
    transfers.end(1, OUT)
    assert not transfers.is_full(lane("s2", "t"))
    transfers.drop_link(OUT)
    assert transfers.count == 0
    assert not transfers._lanes


def test_lost_link_drops_its_own_transfers_alone() -> None:
    transfers = Transfers(10, LaneShares(128))
    mine, others = transfer(), transfer(OTHER)
    transfers.add(1, mine)
    transfers.add(2, others)
    assert transfers.drop_link(OUT) == [mine]
    assert transfers.drop_link(OUT) == []
    assert transfers.end(2, OTHER) is others


def test_overdue_transfers_are_given_up_in_order() -> None:
    transfers = Transfers(10, LaneShares(128))
    late = [transfer(deadline=1.0), transfer(deadline=2.0)]
    for token, one in enumerate([*late, transfer(deadline=3.0)]):
        transfers.add(token, one)
    assert transfers.overdue(2.0) == [(0, late[0]), (1, late[1])]
    assert transfers.overdue(2.0) == []
    assert transfers.count == 1


def test_transfer_of_a_kept_message_has_a_deadline_of_its_own() -> None:
    transfers = Transfers(10, LaneShares(128))
    kept, quick, patient = transfer(deadline=60.0, kept=True), transfer(deadline=5.0), transfer(deadline=5.0)
    for token, one in enumerate((kept, quick, patient)):
        transfers.add(token, one)
    assert transfers.overdue(4.0) == []
    assert transfers.overdue(5.0) == [(1, quick), (2, patient)]
    patient.case = None
    transfers.extend(2, patient, 70.0)
    assert transfers.overdue(59.0) == []
    assert transfers.overdue(60.0) == [(0, kept)]
    assert transfers.end(2, OUT) is patient
    assert transfers.overdue(100.0) == []


def test_floor_of_a_lane_is_the_number_of_its_first_transfer() -> None:
    transfers = Transfers(10, LaneShares(128))
    first, second, other = transfer(), transfer(), transfer(OTHER)
    for token, one in enumerate((first, second, other)):
        transfers.add(token, one)
    assert transfers.floor(lane("s2", "t")) == first.entry.number
    transfers.end(0, OUT)
    assert transfers.floor(lane("s2", "t")) == second.entry.number
    assert transfers.is_inflight(second.entry.id)
    assert not transfers.is_inflight(first.entry.id)
