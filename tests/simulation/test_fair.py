"""A short form of the simulation of shares; `python -m tests.simulation.fair --seeds 300` is the long one."""

from tests.simulation.fair import play_fair


def test_users_who_always_have_something_to_say_get_equal_shares() -> None:
    assert not play_fair(range(8))
