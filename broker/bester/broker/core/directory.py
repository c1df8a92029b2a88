"""Users with sessions, and the bridge of each session."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from bester.broker.core.effects import Link
from bester.broker.wire.messages import MAX_USER

_NOBODY: Mapping[int, str] = {}
Home = tuple[Link, list[list[int]]]
"""The only bridge of a user, and the targets of a DELIVER to the user's sessions there."""


class Directory:
    """Users ⇄ sessions. A session is known by its bridge's link and its number there."""

    def __init__(self, max_sessions: int = 1_048_576) -> None:
        self._max_sessions = max_sessions
        self._places: dict[str, dict[Link, dict[int, None]]] = {}
        self.places: Callable[[str], dict[Link, dict[int, None]] | None] = self._places.get
        """Function that returns a user's sessions by bridge, oldest first, None where there is none."""
        self._sessions: dict[Link, dict[int, str]] = {}
        self._users: list[str] | None = None  # sorted; None where a user has come or gone since
        self._homes: dict[str, Home] = {}
        self.known_home: Callable[[str], Home | None] = self._homes.get
        """Function that returns what `home` has returned for a user, None where any session has come or gone since."""

    def open(self, link: Link, session: int, user: str) -> bool:
        """Enter a session; one that is known already (a bridge that says HELLO again) is not entered twice. Returns
        False where the bridge has too many sessions, or the user's name is too long for any user."""
        if len(user) > MAX_USER:
            return False
        sessions = self._sessions.setdefault(link, {})
        if session in sessions:
            if sessions[session] == user:
                return True
            self.close(link, session)
            sessions = self._sessions.setdefault(link, {})
        elif len(sessions) >= self._max_sessions:
            return False
        sessions[session] = user
        self._homes.pop(user, None)
        if user not in self._places:
            self._users = None
        self._places.setdefault(user, {}).setdefault(link, {})[session] = None
        return True

    def close(self, link: Link, session: int) -> None:
        """Remove a session, if there is one."""
        sessions = self._sessions.get(link)
        user = sessions.pop(session, None) if sessions else None
        if sessions is not None and not sessions:
            del self._sessions[link]
        if user is None:
            return
        self._homes.pop(user, None)
        places = self._places[user]
        del places[link][session]
        if not places[link]:
            del places[link]
            if not places:
                del self._places[user]
                self._users = None

    def drop(self, link: Link) -> None:
        """Remove every session of a bridge."""
        for session in list(self._sessions.get(link, ())):
            self.close(link, session)

    def user(self, link: Link, session: int) -> str | None:
        """Return the user of a session, None where there is no such session."""
        sessions = self._sessions.get(link)
        return sessions.get(session) if sessions else None

    def users_of(self, link: Link) -> Mapping[int, str]:
        """Return the users of a bridge by session."""
        return self._sessions.get(link, _NOBODY)

    def home(self, user: str) -> Home | None:
        """Return the only bridge on which a user has sessions, and the targets of a DELIVER to them as the first user
        of a command; None where there is none, or several. Both are the same objects until a session of the user comes
        or goes: nobody may change them."""
        home, places = self._homes.get(user), self._places.get(user)
        if home is None and places is not None and len(places) == 1:
            ((link, sessions),) = places.items()
            home = self._homes[user] = (link, [[0, *sessions]])
        return home

    def sessions(self, link: Link) -> int:
        """Return how many sessions a bridge holds."""
        return len(self._sessions.get(link, ()))

    @property
    def user_count(self) -> int:
        """Number of users with a session."""
        return len(self._places)

    @property
    def session_count(self) -> int:
        """Number of sessions of all bridges."""
        return sum(map(len, self._sessions.values()))

    def connected(self) -> list[str]:
        """Return the users with at least one connection, as of this call, in no order that matters."""
        return list(self._places)

    def users(self) -> list[str]:
        """Return the users with at least one connection, sorted: the same list until a user comes or goes, which nobody
        may change. A handler may ask for it a thousand times at once."""
        if self._users is None:
            self._users = sorted(self._places)
        return self._users
