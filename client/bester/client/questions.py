"""Unanswered questions of a client to its server: pings, and questions for a message's outcome. Pure.

A question belongs to the connection on which it was sent, ends with its answer or with that connection, and is never
sent again.
"""

from __future__ import annotations

from bester.bridge.frames import frame
from bester.client import frames
from bester.client.errors import ClientError, ServerRefused
from bester.client.events import Answered, Failed, Ponged
from bester.client.reasons import known


class Questions:
    """Unanswered questions of one connection. `server` names the server in errors."""

    def __init__(self, server: str) -> None:
        self._server = server
        self._pings: set[str] = set()
        self._outcomes: set[str] = set()

    def ping(self, number: int) -> tuple[str, bytes]:
        """Return the id and the frame of a ping. `number` is never given twice."""
        id_ = f"ping-{number}"
        self._pings.add(id_)
        return id_, frame(frames.message("dummy", b"null", id_))

    def outcome(self, number: int, message: str) -> tuple[str, bytes]:
        """Return the id and the frame of a question for a message's outcome. `number` is never given twice."""
        id_ = f"outcome-{number}"
        self._outcomes.add(id_)
        return id_, frame(frames.command("outcome", message, id_))

    def ponged(self, pong: frames.Pong) -> list[Ponged]:
        """Match the answer to a ping."""
        if pong.id not in self._pings:
            return []
        self._pings.remove(pong.id)
        return [Ponged(pong.id)]

    def answered(self, answer: frames.Answer) -> list[Answered | Failed]:
        """Match the answer to a command."""
        if answer.id not in self._outcomes:
            return []
        self._outcomes.remove(answer.id)
        if not answer.good:
            return [Answered(answer.id, None)]
        recipients = answer.recipients()
        if recipients is None:
            return [Failed(answer.id, self._refusal("malformed"))]
        return [Answered(answer.id, recipients)]

    def reported(self, report: frames.Report) -> list[Failed]:
        """Match a report to a question: servers so answer a question that they do not know."""
        if report.id not in self._outcomes:
            return []
        self._outcomes.remove(report.id)
        return [Failed(report.id, self._refusal(report.reason or "unknown-command"))]

    def fail_all(self, error: ClientError) -> list[Failed]:
        """Fail every question of a lost connection."""
        failed = [Failed(id_, error) for id_ in (*self._pings, *self._outcomes)]
        self._pings.clear()
        self._outcomes.clear()
        return failed

    def _refusal(self, code: str) -> ServerRefused:
        return ServerRefused(*known(code, f"{self._server} does not give the outcomes of messages"))
