"""Links to the brokers: what the bridge tells a broker that has answered, and what becomes of all that a lost link had.
Pure."""

from __future__ import annotations

from collections.abc import Callable

from bester.bridge.brokers import Broker, Brokers
from bester.bridge.homes import Homes
from bester.bridge.incoming import Incoming
from bester.bridge.intake import Intake
from bester.bridge.logins import Logins
from bester.bridge.ports import ClientConnection
from bester.bridge.registry import Registry
from bester.broker.wire.messages import Login, Meta, Open


class Links:
    """Beginnings and ends of the links of one bridge. `clock` returns monotonic seconds; `wake` makes held messages be
    sent at the end of this turn."""

    def __init__(
        self, brokers: Brokers, homes: Homes, registry: Registry, logins: Logins, intake: Intake, incoming: Incoming,
        clock: Callable[[], float], wake: Callable[[], None],
    ) -> None:  # fmt: skip
        self._brokers = brokers
        self._homes = homes
        self._targets = registry.targets
        self._logins = logins
        self._intake = intake
        self._incoming = incoming
        self._clock = clock
        self._wake = wake

    def on_ready(self, options: Meta, broker: Broker) -> None:
        """Announce the sessions to a broker that has answered (again), and send the held messages. `options` are those
        of its WELCOME."""
        logins: list[tuple[Login, ClientConnection]] = []
        if broker.link.is_ready:
            logins = self._lose(broker, "the broker was started again")
        broker.on_link_ready(options)
        self._incoming.on_credit(broker, options)
        for number, connection in self._targets.items():
            assert connection.session.user is not None
            broker.link.send(Open(number, connection.session.user, connection.session.account))
        for announcement in broker.submissions.on_link_ready():
            broker.link.send(announcement)
        for each, announcement in self._homes.on_joined():
            each.link.send(announcement)
        self._logins.send_again(logins, self._clock())
        for each in self._brokers.all:
            each.drain()

    def on_lost(self, why: str, broker: Broker) -> None:
        """Hold the unreported messages of a lost link, or submit them to another broker, as the pending logins; these
        are refused where there is no other, and may be tried again. Clients stay connected."""
        logins = self._lose(broker, why)
        if self._brokers.are_several:
            for each, announcement in self._homes.move_from(broker):
                each.link.send(announcement)
            self._intake.on_credit()
            self._wake()
        self._logins.send_again(logins, self._clock())

    def _lose(self, broker: Broker, why: str) -> list[tuple[Login, ClientConnection]]:
        """Take in that a link is lost; return the logins that its broker has not answered."""
        broker.on_link_lost(why)
        self._incoming.on_link_lost(broker)
        self._incoming.on_credit(broker, {})
        return self._logins.take_from(broker)
