"""The directory of sessions against a naive model: a set of (bridge, session, user)."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from bester.broker.core.directory import Directory
from bester.broker.core.effects import Link

LINKS = [Link("ipc", b"1"), Link("ipc", b"2"), Link("direct", b"1")]
USERS = ["alice", "bob", ""]


class Places(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.directory = Directory()
        self.model: dict[tuple[Link, int], str] = {}

    @rule(link=st.sampled_from(LINKS), session=st.integers(1, 12), user=st.sampled_from(USERS))
    def open(self, link: Link, session: int, user: str) -> None:
        self.directory.open(link, session, user)
        self.model[link, session] = user

    @rule(link=st.sampled_from(LINKS), session=st.integers(1, 13))
    def close(self, link: Link, session: int) -> None:
        self.directory.close(link, session)
        self.model.pop((link, session), None)

    @rule(link=st.sampled_from(LINKS))
    def drop(self, link: Link) -> None:
        self.directory.drop(link)
        self.model = {place: user for place, user in self.model.items() if place[0] != link}

    @invariant()
    def agree(self) -> None:
        directory = self.directory
        assert directory.users() == sorted(set(self.model.values()))
        for link in LINKS:
            assert directory.sessions(link) == sum(place[0] == link for place in self.model)
            for session in range(1, 14):
                assert directory.user(link, session) == self.model.get((link, session))
        for user in USERS:
            places = directory.places(user)
            found = {(link, session) for link, sessions in (places or {}).items() for session in sessions}
            assert found == {place for place, whose in self.model.items() if whose == user}
            assert places is None or all(places.values())
            home = directory.home(user)
            if places is None or len(places) > 1:
                assert home is None
            else:
                ((link, sessions),) = places.items()
                assert home == (link, [[0, *sessions]])
            assert directory.home(user) is home is directory.known_home(user)

    def teardown(self) -> None:
        for link, session in list(self.model):
            self.directory.close(link, session)
        assert not self.directory._places
        assert not self.directory._sessions
        assert not self.directory._homes


TestPlaces = Places.TestCase


def test_targets_of_a_user_are_others_once_a_session_has_come_or_gone() -> None:
    directory, link = Directory(), LINKS[0]
    homes = []
    for session in (1, 2, 3, -1):
        if session < 0:
            directory.close(link, 1)
        else:
            directory.open(link, session, "alice")
        homes.append(directory.home("alice"))
    assert homes[-1] == (link, [[0, 2, 3]])
    assert homes[-2] == (link, [[0, 1, 2, 3]])  # what was handed out stays as it was


def test_a_session_announced_twice_is_one_target() -> None:
    directory = Directory()
    directory.open(LINKS[0], 1, "alice")
    directory.open(LINKS[0], 1, "alice")
    assert directory.places("alice") == {LINKS[0]: {1: None}}


def test_a_session_that_changes_hands_is_no_target_of_the_first_user() -> None:
    directory = Directory()
    directory.open(LINKS[0], 1, "alice")
    directory.open(LINKS[0], 1, "bob")
    assert directory.places("alice") is None
    assert directory.places("bob") == {LINKS[0]: {1: None}}


def test_list_of_users_is_made_once_until_a_user_comes_or_goes() -> None:
    directory, link = Directory(), LINKS[0]
    directory.open(link, 1, "bob")
    first = directory.users()
    directory.open(link, 2, "bob")
    directory.close(link, 1)
    assert directory.users() is first
    directory.open(link, 3, "alice")
    assert (first, directory.users()) == (["bob"], ["alice", "bob"])
    directory.drop(link)
    assert directory.users() == []
