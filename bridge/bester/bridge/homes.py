"""Moves of users from one broker to another, when a broker goes or comes. Pure.

A sender moves with all its connections and unreported messages when its broker is lost: these are submitted again at
the new home, in their order. When its home is back, a sender moves once nothing of it is unreported elsewhere, so that
its messages keep their order. A bridge with one broker moves nobody.
"""

from __future__ import annotations

from collections.abc import Mapping

from bester.bridge.brokers import Broker, Brokers
from bester.bridge.ports import ClientConnection
from bester.bridge.senders import Sender, Senders
from bester.bridge.session import Session
from bester.bridge.submission import Submission
from bester.bridge.window import Window
from bester.broker.wire.messages import Open


class Homes:
    """The brokers of the senders in `senders`, and of the windows of `connections`, by session."""

    def __init__(self, brokers: Brokers, senders: Senders, connections: Mapping[int, ClientConnection]) -> None:
        self._brokers = brokers
        self._senders = senders
        self._connections = connections
        self._strays: dict[Sender, None] = {}  # senders that are not at their home, and may move there

    def of_user(self, user: str) -> Broker:
        """Return the broker for a login of a user: that of the user's other connections and unreported messages, else
        the user's home."""
        brokers = self._brokers
        if not brokers.are_several:
            return brokers.first
        sender = self._senders.find(("user", user))
        broker = None if sender is None else brokers.of(sender.submissions)
        if broker is None or not broker.link.is_ready:
            broker = brokers.departed_at(user) or brokers.home(user)
        return broker

    def move_from(self, lost: Broker) -> list[tuple[Broker, Open]]:
        """Move everything from a broker that is lost to the live ones, if there are any. Return the sessions to be
        announced before the messages: those of clients that have gone."""
        if not self._brokers.live:
            return []
        for sender in self._senders:
            if sender.submissions is lost.submissions:
                sender.submissions = self._home(sender).submissions
        for connection in self._connections.values():
            window = connection.session.window
            if window.submissions is lost.submissions:
                window.move(self._place(connection.session).submissions)
        moved: dict[Broker, list[Submission]] = {}
        for submission in lost.submissions.give():
            moved.setdefault(self._target(submission), []).append(submission)
        return [(broker, opened) for broker, each in moved.items() for opened in broker.submissions.take(each)]

    def _target(self, submission: Submission) -> Broker:
        """Return the broker that gets a message of a lost one."""
        connection = self._connections.get(submission.session)
        if connection is not None:
            return self._brokers.of(connection.session.window.submissions)
        if submission.user is not None:
            return self.of_user(submission.user)
        return self._brokers.home(str(submission.session))

    def _place(self, session: Session) -> Broker:
        """Return the broker of a connection whose broker is lost."""
        sender = session.window.sender
        if sender.key[0] == "user":  # with the sender, which has moved
            return self._brokers.of(sender.submissions)
        return self.of_address(session.address, is_listed=sender.key[0] == "host")

    def of_address(self, host: str, *, is_listed: bool) -> Broker:
        """Return the broker for a message of a native server, or of a stranger, from this host."""
        return self._brokers.home_of_host(host) if is_listed else self._brokers.home(f"\0{host}")

    def _home(self, sender: Sender) -> Broker:
        kind, *name = sender.key
        if kind == "user":
            return self._brokers.home(name[0])
        return self._brokers.home_of_host(name[0]) if kind == "host" else self._brokers.home("")

    def on_joined(self) -> list[tuple[Broker, Open]]:
        """Let everybody move who is not at home, now that another broker is live. Return as `move_from` does, for what
        was held while no broker was live."""
        if not self._brokers.are_several:
            return []
        lost = [broker for broker in self._brokers.all if not broker.link.is_ready]
        opens = [each for broker in lost for each in self.move_from(broker)]
        self._strays = dict.fromkeys(
            sender
            for sender in self._senders
            if sender.key[0] == "user" and sender.submissions is not self._home(sender).submissions
        )
        self.tick()
        return opens

    def on_user_joined(self, window: Window) -> None:
        """Let the sender of a user who has logged in move home where it is not there: a broker may have come, or may
        have been asked for the user's earlier messages, while the login was under way. Nobody else is looked at: many
        may log in at once, and many may be on their way."""
        sender = window.sender
        if not self._brokers.are_several or sender.submissions is self._home(sender).submissions:
            return
        if sender.connections == 1 and self._may_go(sender):
            sender.submissions = self._home(sender).submissions
            window.move(sender.submissions)
        else:
            self._strays[sender] = None

    @staticmethod
    def _may_go(sender: Sender) -> bool:
        """Return whether nothing of a user is unreported where the user's sender is."""
        return not sender.count and not sender.submissions.departed_of[sender.key[1]]

    def tick(self) -> None:
        """Move senders to their homes of which nothing is unreported."""
        if not self._strays:
            return
        going: dict[Sender, list[Window]] = {}
        for sender in list(self._strays):
            if not sender.connections or sender.submissions is self._home(sender).submissions:
                del self._strays[sender]
            elif self._may_go(sender):
                del self._strays[sender]
                going[sender] = []
        if not going:
            return
        for connection in self._connections.values():
            window = connection.session.window
            if window.sender in going:
                going[window.sender].append(window)
        for sender, windows in going.items():
            sender.submissions = self._home(sender).submissions
            for window in windows:
                window.move(sender.submissions)
