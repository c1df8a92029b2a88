"""Clients' questions: what became of a message, and the wish for another password, passed on to the brokers. Pure."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from bester.bridge.broker_link import UNANSWERED
from bester.bridge.brokers import Broker, Brokers
from bester.bridge.ports import ClientConnection
from bester.bridge.steps import NewPassword, Step, refusal
from bester.bridge.window import Question


class Questions:
    """Questions on their way to the brokers. `apply` carries out the step of a connection's session that an answer
    leads to; `clock` returns monotonic seconds."""

    def __init__(
        self, brokers: Brokers, clock: Callable[[], float], apply: Callable[[ClientConnection, Step, float], None]
    ) -> None:
        self._brokers = brokers
        self._clock = clock
        self._apply = apply

    def ask(self, connection: ClientConnection, question: Question | NewPassword) -> bool:
        """Send a client's question to a broker; False where there is no broker, or no room on the link."""
        home = self._brokers.of(connection.session.window.submissions)
        if isinstance(question, NewPassword):
            return self._change_password(connection, question, home)
        return self._ask_outcome(connection, question, [home, *self._brokers.others(home)], "")

    def _ask_outcome(self, connection: ClientConnection, question: Question, brokers: list[Broker], doubt: str) -> bool:
        """Ask the first of these brokers that takes a question about a message; the others may have had the message.
        `doubt` is the reason why a broker did not tell, empty where each did."""
        while brokers:
            broker = brokers.pop(0)
            answered = partial(self._on_outcome, connection, question, brokers, doubt)
            if broker.link.ask("outcome", [question.session, question.message], answered):
                return True
            doubt = "unreachable"
        return False

    def _change_password(self, connection: ClientConnection, wish: NewPassword, home: Broker) -> bool:
        token, session, _ = wish.question
        argument = [session, wish.old, wish.new, wish.address]
        return home.link.ask("passwd", argument, partial(self._on_password, connection, token))

    def _on_password(self, connection: ClientConnection, token: int, status: int, value: Any) -> None:
        session, now = connection.session, self._clock()
        if not session.window.is_asking(token):
            return  # gone, or refused because its time was up
        if not status:
            self._apply(connection, session.on_password_changed(token, now), now)
            return
        known = type(value) is list and value and type(value[0]) is str
        reason = "unreachable" if status == UNANSWERED else value[0] if known else "overloaded"
        self._apply(connection, session.on_report(refusal(token, reason), now), now)

    def _on_outcome(
        self, connection: ClientConnection, question: Question, left: list[Broker], doubt: str, status: int, value: Any
    ) -> None:
        session, token, now = connection.session, question.token, self._clock()
        if not session.window.is_asking(token):
            return  # gone, or refused because its time was up
        if status == UNANSWERED:
            doubt = "unreachable"
        elif status and value == "overloaded":
            doubt = "overloaded"
        if status and left and self._ask_outcome(connection, question, left, doubt):
            return
        if status and doubt:
            self._apply(connection, session.on_report(refusal(token, doubt), now, 0), now)
        else:
            recipients = value if not status and type(value) is dict else None
            self._apply(connection, session.on_answer(token, recipients, now, 0), now)
