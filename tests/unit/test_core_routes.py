"""Servers by name and by address."""

from __future__ import annotations

from bester.broker.core.routes import Routes
from bester.broker.core.settings import Route


def test_server_is_found_by_name_and_by_address() -> None:
    fabric = Route("s2", fabric="tcp://10.0.0.2:2225")
    native = Route("s3", native="s3.example:2223")
    local = Route("s4", fabric="ipc:///run/s4.sock")
    routes = Routes({route.name: route for route in (fabric, native, local)})
    assert routes.find("s2") is fabric
    assert routes.find("10.0.0.2:2225") is fabric
    assert routes.find("s3") is native
    assert routes.find("s3.example:2223") is native
    assert routes.find("s4") is local


def test_address_is_found_in_every_spelling() -> None:
    here, six = Route("here", native="localhost:2223"), Route("six", native="[2001:db8:0:0::1]:2223")
    routes = Routes({"here": here, "six": six})
    assert routes.find("127.0.0.1:2223") is routes.find("localhost:2223") is here
    assert routes.find("[2001:DB8::1]:2223") is six
    assert routes.find("127.0.0.1:2224") == Route("", native="127.0.0.1:2224")


def test_other_address_is_a_native_server_without_a_name() -> None:
    assert Routes({}).find("10.1.1.1:2223") == Route("", native="10.1.1.1:2223")
    assert Routes({}).find("[::1]:2223") == Route("", native="[::1]:2223")


def test_unreadable_target_is_no_server() -> None:
    for target in ("s9", "", "host:", "host:99999", "a b:1"):
        assert Routes({}).find(target) is None
