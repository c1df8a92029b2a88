"""Who is where: the users with connections, and the bridge and sessions that hold each of them."""

from __future__ import annotations

from bester.broker.core.effects import Link


class Directory:
    """Users ⇄ sessions. A session is known by its bridge's link and its number there."""

    def __init__(self) -> None:
        self._places: dict[str, dict[Link, list[int]]] = {}
        self._sessions: dict[Link, dict[int, str]] = {}

    def open(self, link: Link, session: int, user: str) -> None:
        """Enter a session; one that is there already (a bridge that says HELLO again) is not entered twice."""
        sessions = self._sessions.setdefault(link, {})
        if session in sessions:
            if sessions[session] == user:
                return
            self.close(link, session)
            sessions = self._sessions.setdefault(link, {})
        sessions[session] = user
        self._places.setdefault(user, {}).setdefault(link, []).append(session)

    def close(self, link: Link, session: int) -> None:
        """Strike a session out; no harm where it is not there."""
        sessions = self._sessions.get(link)
        user = sessions.pop(session, None) if sessions else None
        if sessions is not None and not sessions:
            del self._sessions[link]
        if user is None:
            return
        places = self._places[user]
        places[link].remove(session)
        if not places[link]:
            del places[link]
            if not places:
                del self._places[user]

    def drop(self, link: Link) -> None:
        """Strike out every session of a bridge."""
        for session in list(self._sessions.get(link, ())):
            self.close(link, session)

    def user(self, link: Link, session: int) -> str | None:
        """Return whose session it is."""
        sessions = self._sessions.get(link)
        return sessions.get(session) if sessions else None

    def places(self, user: str) -> dict[Link, list[int]] | None:
        """Return the user's sessions by bridge, None where there is none."""
        return self._places.get(user)

    def sessions(self, link: Link) -> int:
        """Return how many sessions a bridge holds."""
        return len(self._sessions.get(link, ()))

    @property
    def user_count(self) -> int:
        """How many users have a connection."""
        return len(self._places)

    @property
    def session_count(self) -> int:
        """How many sessions there are, of all bridges."""
        return sum(map(len, self._sessions.values()))

    def users(self) -> list[str]:
        """Return the users with at least one connection, sorted."""
        return sorted(self._places)
