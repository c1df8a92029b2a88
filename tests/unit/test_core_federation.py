"""Other servers: by name and by address; and the books of what is on its way to them."""

from __future__ import annotations

from itertools import count

from bester.broker.core.cases import Case, Kind
from bester.broker.core.federation import Leg, Legs, Routes
from bester.broker.core.values import Link, Route
from bester.broker.kept import Entry, lane

OUT = Link("server", b"s2")
OTHER = Link("server", b"s3")
numbers = count(1)


def leg(link: Link = OUT, *, type_: str = "t", deadline: float = 10.0, kept: bool = False) -> Leg:
    number, server = next(numbers), link.key.decode()
    entry = Entry(number, lane(server, type_), f"m.{number}", server, type_, b"1", None, 0.0, {})
    case = None if kept else Case(Kind.SUBMIT, Link("ipc", b"b"), 1, "m", "m")
    return Leg(entry, server, link, Route(server, fabric="ipc:///x"), deadline, case)


def test_a_server_is_found_by_its_name_and_by_its_addresses() -> None:
    fabric = Route("s2", fabric="tcp://10.0.0.2:2225")
    native = Route("s3", native="s3.example:2223")
    local = Route("s4", fabric="ipc:///run/s4.sock")
    routes = Routes({route.name: route for route in (fabric, native, local)})
    assert routes.find("s2") is fabric
    assert routes.find("10.0.0.2:2225") is fabric
    assert routes.find("s3") is native
    assert routes.find("s3.example:2223") is native
    assert routes.find("s4") is local


def test_an_address_may_be_written_in_several_ways() -> None:
    here, six = Route("here", native="localhost:2223"), Route("six", native="[2001:db8:0:0::1]:2223")
    routes = Routes({"here": here, "six": six})
    assert routes.find("127.0.0.1:2223") is routes.find("localhost:2223") is here
    assert routes.find("[2001:DB8::1]:2223") is six
    assert routes.find("127.0.0.1:2224") == Route("", native="127.0.0.1:2224")


def test_another_address_is_a_server_without_a_name() -> None:
    assert Routes({}).find("10.1.1.1:2223") == Route("", native="10.1.1.1:2223")
    assert Routes({}).find("[::1]:2223") == Route("", native="[::1]:2223")


def test_neither_a_name_nor_an_address_is_nothing() -> None:
    for target in ("s9", "", "host:", "host:99999", "a b:1"):
        assert Routes({}).find(target) is None


def test_an_answer_ends_a_leg_once_and_only_on_its_link() -> None:
    legs = Legs(10)
    one = leg()
    legs.add(1, one)
    assert legs.end(1, OTHER) is None
    assert legs.end(2, OUT) is None
    assert legs.end(1, OUT) is one
    assert legs.end(1, OUT) is None
    assert legs.count == 0


def test_a_lane_is_full_by_itself_and_has_room_again() -> None:
    legs = Legs(2)
    legs.add(1, leg())
    legs.add(2, leg())
    assert legs.full(lane("s2", "t"))
    assert not legs.full(lane("s2", "other"))
    assert not legs.full(lane("s3", "t"))
    legs.end(1, OUT)
    assert not legs.full(lane("s2", "t"))
    legs.drop(OUT)
    assert legs.count == 0
    assert not legs._lanes


def test_a_link_that_is_lost_takes_only_its_own_with_it() -> None:
    legs = Legs(10)
    mine, others = leg(), leg(OTHER)
    legs.add(1, mine)
    legs.add(2, others)
    assert legs.drop(OUT) == [mine]
    assert legs.drop(OUT) == []
    assert legs.end(2, OTHER) is others


def test_what_is_late_is_given_up_in_order() -> None:
    legs = Legs(10)
    late = [leg(deadline=1.0), leg(deadline=2.0)]
    for token, one in enumerate([*late, leg(deadline=3.0)]):
        legs.add(token, one)
    assert legs.overdue(2.0) == [(0, late[0]), (1, late[1])]
    assert legs.overdue(2.0) == []
    assert legs.count == 1


def test_what_comes_out_of_a_box_has_a_deadline_of_its_own() -> None:
    legs = Legs(10)
    kept, quick, patient = leg(deadline=60.0, kept=True), leg(deadline=5.0), leg(deadline=5.0)
    for token, one in enumerate((kept, quick, patient)):
        legs.add(token, one)
    assert legs.overdue(4.0) == []
    assert legs.overdue(5.0) == [(1, quick), (2, patient)]
    patient.case = None
    legs.prolong(2, patient, 70.0)
    assert legs.overdue(59.0) == []
    assert legs.overdue(60.0) == [(0, kept)]
    assert legs.end(2, OUT) is patient
    assert legs.overdue(100.0) == []


def test_the_floor_of_a_lane_is_its_lowest_number_on_the_way() -> None:
    legs = Legs(10)
    first, second, other = leg(), leg(), leg(OTHER)
    for token, one in enumerate((first, second, other)):
        legs.add(token, one)
    assert legs.floor(lane("s2", "t")) == first.entry.number
    legs.end(0, OUT)
    assert legs.floor(lane("s2", "t")) == second.entry.number
    assert legs.under_way(second.entry.id)
    assert not legs.under_way(first.entry.id)
