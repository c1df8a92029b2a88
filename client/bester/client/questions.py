"""What a client has asked its server, and is not answered yet: pings, and what became of a message. Pure.

A question belongs to the connection it was asked on: it ends with its answer, or with that connection, and is never
asked again by itself.
"""

from __future__ import annotations

from bester.bridge.frames import frame
from bester.client import frames
from bester.client.errors import ClientError, ServerRefused
from bester.client.events import Answered, Failed, Ponged
from bester.client.reasons import known


class Questions:
    """The unanswered questions of one connection. `server` names the server in errors."""

    def __init__(self, server: str) -> None:
        self._server = server
        self._pings: set[str] = set()
        self._outcomes: set[str] = set()

    def ping(self, number: int) -> tuple[str, bytes]:
        """Return the id and the frame of a sign of life that is asked for. `number` is never given twice."""
        id_ = f"ping-{number}"
        self._pings.add(id_)
        return id_, frame(frames.message("dummy", b"null", id_))

    def outcome(self, number: int, message: str) -> tuple[str, bytes]:
        """Return the id and the frame of the question what became of a message. `number` is never given twice."""
        id_ = f"outcome-{number}"
        self._outcomes.add(id_)
        return id_, frame(frames.command("outcome", message, id_))

    def ponged(self, pong: frames.Pong) -> list[Ponged]:
        """A ping's answer came."""
        if pong.id not in self._pings:
            return []
        self._pings.remove(pong.id)
        return [Ponged(pong.id)]

    def answered(self, answer: frames.Answer) -> list[Answered | Failed]:
        """The answer to a command came."""
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
        """A report came that is about no message: so do servers answer what they cannot be asked."""
        if report.id not in self._outcomes:
            return []
        self._outcomes.remove(report.id)
        return [Failed(report.id, self._refusal(report.reason or "unknown-command"))]

    def void(self, error: ClientError) -> list[Failed]:
        """The connection is gone, and every question on it fails."""
        failed = [Failed(id_, error) for id_ in (*self._pings, *self._outcomes)]
        self._pings.clear()
        self._outcomes.clear()
        return failed

    def _refusal(self, code: str) -> ServerRefused:
        return ServerRefused(*known(code, f"{self._server} does not say what became of messages"))
