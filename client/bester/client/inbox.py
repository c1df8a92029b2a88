"""Which messages a client has received, and which of them it has to acknowledge now. Pure.

A message that comes again is told from a new one by its id, over any number of connections. Where acknowledgements are
asked for, one counts only on the connection that delivered the message: after a loss the server delivers again what it
did not hear about, and that repeat is acknowledged at once if the application is done with the message, or else when it
is. It must never acknowledge what the application did not say it was done with.
"""

from __future__ import annotations


class Inbox:
    """The ids of one client's messages. `remembered`: how many are kept of each kind, done with and not."""

    def __init__(self, remembered: int, acknowledge: bool) -> None:
        self._remembered = remembered
        self._acknowledge = acknowledge
        self._done: dict[str, None] = {}
        self._open: dict[str, bool] = {}  # given to the application; True: delivered on this connection
        self._due: dict[str, None] = {}

    def came(self, id_: str) -> bool:
        """A message was delivered; False: it was before, and is not for the application again."""
        if id_ in self._open:
            self._open[id_] = True
            return False
        if id_ in self._done:
            if self._acknowledge:
                self._due[id_] = None
            return False
        if self._acknowledge:
            self._open[id_] = True
            # Who never acknowledges must not fill the memory; what is forgotten is delivered again, and passed on.
            if len(self._open) > self._remembered:
                del self._open[next(iter(self._open))]
        else:
            self._finish(id_)
        return True

    def done(self, id_: str) -> None:
        """The application is done with a message. Saying so twice does nothing."""
        delivered_here = self._open.pop(id_, None)
        if delivered_here is None:
            return
        self._finish(id_)
        if delivered_here:
            self._due[id_] = None

    def take(self) -> list[str]:
        """Return the ids to acknowledge now; they count as acknowledged on this connection."""
        due, self._due = list(self._due), {}
        return due

    def void(self) -> None:
        """The connection is gone, and what was not acknowledged on it will be delivered again."""
        self._due.clear()
        self._open = dict.fromkeys(self._open, False)

    def _finish(self, id_: str) -> None:
        self._done[id_] = None
        if len(self._done) > self._remembered:
            del self._done[next(iter(self._done))]
