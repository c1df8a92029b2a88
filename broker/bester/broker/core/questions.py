"""Questions that a peer may ask (ASK) about this broker, and their answers."""

from __future__ import annotations

from collections.abc import Iterable, Set
from typing import Any

from bester.broker.core.directory import Directory
from bester.broker.core.effects import Effects, Link
from bester.broker.core.peer import Peer
from bester.broker.core.settings import Settings
from bester.broker.core.trace import Trace
from bester.broker.store_requests import FindOutcomes
from bester.broker.wire.messages import Answer, Ask
from bester.broker.wire.outcomes import MAX_MESSAGE_ID


class Questions:
    """Answers from the broker's memory, and for `outcome` from the store. `names` are those that ids of this server's
    messages may begin with."""

    def __init__(self, settings: Settings, names: Set[str], directory: Directory, trace: Trace, out: Effects) -> None:
        self._settings = settings
        self._names = names
        self._directory = directory
        self._trace = trace
        self._out = out

    def _find_outcomes(self, link: Link, ask: Ask) -> bool:
        """Look up the outcomes of a message of one of a bridge's sessions, and answer then. Returns False where the
        message cannot be that session's."""
        argument = ask.argument
        if type(argument) is not list or len(argument) != 2:
            return False
        session, message = argument
        user = self._directory.user(link, session) if type(session) is int else None
        if user is None or type(message) is not str or not 0 < len(message) <= MAX_MESSAGE_ID:
            return False
        prefix, _, counter = message.rpartition("/")
        if prefix.partition("/")[0] not in self._names or not counter.isdecimal():
            return False

        def on_answer(outcomes: dict[str, str] | None, now: float) -> None:
            value = "overloaded" if outcomes is None else outcomes or None
            self._out.send(link, Answer(ask.token, 0 if outcomes else 1, value))

        self._out.read(FindOutcomes(message, user), on_answer)
        return True

    def answer(self, link: Link, ask: Ask, peers: Iterable[Peer]) -> Answer | None:
        """Answer a question from a link, with status 1 where the argument does not fit the question.

        Returns None where the store must be read first; the answer is sent then.
        """
        question, argument = ask.question, ask.argument
        if question == "outcome" and self._find_outcomes(link, ask):
            return None
        if question == "listClients":
            return Answer(ask.token, 0, self._directory.users())
        if question == "isClient" and type(argument) is str:
            return Answer(ask.token, 0, self._directory.places(argument) is not None)
        if question == "serverInfo":
            return Answer(ask.token, 0, self._server_info(peers))
        if question == "trace" and (argument is None or type(argument) is str):
            root = self._trace.latest() if argument is None else argument
            return Answer(ask.token, 0, [] if root is None else self._trace.of(root))
        return Answer(ask.token, 1, None)

    def _server_info(self, peers: Iterable[Peer]) -> dict[str, Any]:
        listeners = [url for peer in peers for url in peer.listeners]
        return {
            "server": self._settings.name,
            "adminInfo": self._settings.admin_info,
            "clientCount": str(self._directory.user_count),
            "listeners": {f"listener{number}": {"address": url} for number, url in enumerate(listeners)},
        }
