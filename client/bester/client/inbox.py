"""Ids of the messages that a client has received, and the acknowledgements that are due. Pure.

The id tells a duplicate from a new message, over any number of connections. An acknowledgement counts only on the
connection that delivered the message: after a loss the server redelivers unacknowledged messages, and the duplicate is
acknowledged at once if the application is done with the message, or else as soon as the application is done. A message
is never acknowledged before the application is done with it.
"""

from __future__ import annotations


class Inbox:
    """Ids of one client's messages. `remembered`: bound on the ids kept of each kind, done and open."""

    def __init__(self, remembered: int, acknowledge: bool) -> None:
        self._remembered = remembered
        self._acknowledge = acknowledge
        self._done: dict[str, None] = {}
        self._open: dict[str, bool] = {}  # ids in the application's hands; True: delivered on this connection
        self._due: dict[str, None] = {}

    def register(self, id_: str) -> bool:
        """Register a delivered message; False: a duplicate, not to be passed to the application."""
        if id_ in self._open:
            self._open[id_] = True
            return False
        if id_ in self._done:
            if self._acknowledge:
                self._due[id_] = None
            return False
        if self._acknowledge:
            self._open[id_] = True
            # An application that never acknowledges must not fill the memory; a forgotten id is passed on again.
            if len(self._open) > self._remembered:
                del self._open[next(iter(self._open))]
        else:
            self._finish(id_)
        return True

    def mark_done(self, id_: str) -> None:
        """Mark a message as handled by the application; a second call does nothing."""
        delivered_on_this = self._open.pop(id_, None)
        if delivered_on_this is None:
            return
        self._finish(id_)
        if delivered_on_this:
            self._due[id_] = None

    def take(self) -> list[str]:
        """Return the ids to acknowledge now; they count as acknowledged on this connection."""
        due, self._due = list(self._due), {}
        return due

    def reset_connection(self) -> None:
        """Handle a lost connection: the server will redeliver each message that was not acknowledged on it."""
        self._due.clear()
        self._open = dict.fromkeys(self._open, False)

    def _finish(self, id_: str) -> None:
        self._done[id_] = None
        if len(self._done) > self._remembered:
            del self._done[next(iter(self._done))]
