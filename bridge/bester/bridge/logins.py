"""Logins on their way to the brokers: each goes to the home of its user, and waits for the answer. Pure.

A login whose broker is lost goes to the next home of its user. The answer that lets a user in makes the connection one
of the user's: it shares the user's input, and every broker is told of the session.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from bester.bridge.brokers import Broker, Brokers
from bester.bridge.homes import Homes
from bester.bridge.limits import Limits
from bester.bridge.meter import Meter
from bester.bridge.ports import ClientConnection
from bester.bridge.registry import Registry
from bester.bridge.session import NO_BROKER
from bester.bridge.states import State
from bester.bridge.steps import Step
from bester.broker.wire.messages import Close, LoggedIn, Login, Open


class Logins:
    """Unanswered logins of one bridge. `join` lets a connection share with the others of its user, and `apply` carries
    out the step of a session that an answer leads to. `reached` counts logins for which there was no place."""

    def __init__(
        self, brokers: Brokers, homes: Homes, registry: Registry, limits: Limits, meter: Meter, reached: Counter[str],
        *, join: Callable[[ClientConnection], None], apply: Callable[[ClientConnection, Step, float], None],
    ) -> None:  # fmt: skip
        self._brokers = brokers
        self._homes = homes
        self._registry = registry
        self._limits = limits
        self._meter = meter
        self._reached = reached
        self._join = join
        self._apply = apply
        self._waiting: dict[int, tuple[Login, ClientConnection]] = {}  # by session number

    def __len__(self) -> int:
        return len(self._waiting)

    def send(self, login: Login, connection: ClientConnection, now: float) -> Step | None:
        """Send a login to the home of its user; return the session's step where there is no home, or no room."""
        if self._send(login, connection):
            return None
        reason = "overloaded" if self._brokers.is_ready else NO_BROKER
        return connection.session.on_login_answer(1, reason, now)

    def send_again(self, logins: list[tuple[Login, ClientConnection]], now: float) -> None:
        """Send logins that a broker has left unanswered to one that is live, or refuse them."""
        for login, connection in logins:
            if not self._send(login, connection):
                self._apply(connection, connection.session.on_login_answer(1, NO_BROKER, now), now)

    def take_from(self, broker: Broker) -> list[tuple[Login, ClientConnection]]:
        """Take the logins that a lost broker has left unanswered."""
        lost = broker.submissions
        logins = [each for each in self._waiting.values() if each[1].session.window.submissions is lost]
        for login, _ in logins:
            del self._waiting[login.session]
        return logins

    def forget(self, session: int) -> None:
        """Wait no more for the login of a session, if it has one under way."""
        self._waiting.pop(session, None)

    def on_answer(self, answer: LoggedIn, broker: Broker, now: float) -> None:
        """Take in a broker's answer to a login. A session that has ended meanwhile is closed at the broker."""
        _, connection = self._waiting.pop(answer.session, (None, None))
        if connection is None or connection.session.state is not State.AUTHENTICATING:
            if not answer.status:
                broker.link.send(Close(answer.session))
            return
        session = connection.session
        status, reason = answer.status, answer.reason
        session.account = answer.account
        if not status and not self._registry.log_in(connection):
            status, reason = 1, "overloaded"
            self._meter.sessions += 1
            broker.link.send(Close(answer.session))
        if not status:
            self._join(connection)
            for other in self._brokers.others(broker):
                other.link.send(Open(answer.session, session.user or "", answer.account))
        self._apply(connection, session.on_login_answer(status, reason, now, answer.retry_ms, 0), now)

    def _send(self, login: Login, connection: ClientConnection) -> bool:
        if len(self._waiting) >= self._limits.login_places:
            self._reached["logins_in_flight"] += 1
            return False
        broker = self._homes.of_user(login.user)
        if broker.submissions is not connection.session.window.submissions:
            connection.session.window.move(broker.submissions)
        if not broker.link.login(login):
            return False
        self._waiting[login.session] = login, connection
        return True
