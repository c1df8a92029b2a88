"""A short form of the simulation of shares; `make simulate ARGS="--fair"` is the long one."""

from tests.simulation.fair import play_fair
from tests.simulation.fair_bridge import Flood
from tests.simulation.fair_broker import Crowd


def test_users_and_strangers_who_always_have_something_to_say_get_equal_shares() -> None:
    assert not play_fair(range(3), Flood)


def test_users_of_several_bridges_get_equal_shares_of_a_handler() -> None:
    assert not play_fair(range(3), Crowd)
