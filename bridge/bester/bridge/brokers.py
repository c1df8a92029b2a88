"""The brokers of one server, as a bridge sees them: what the bridge has of each, and which of them is whose home. Pure.

Every broker is told of every session, and may deliver to it. Messages, logins and questions of a user go to one broker,
the user's home: the live broker that rendezvous hashing of the user's name gives, so that all bridges choose the same
one. Nothing is hashed for a message: a window is at its home until the live brokers change.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from hashlib import blake2b

from bester.bridge.backlog import Backlog
from bester.bridge.broker_link import BrokerLink
from bester.bridge.confirmations import Confirmations
from bester.bridge.limits import Limits
from bester.bridge.submission import Submission
from bester.bridge.submissions import Submissions
from bester.broker.wire.messages import Deliver, Meta

MAX_BROKERS = 64
"""Brokers that one bridge may be linked to; each costs a socket and heartbeats, and a server has a few."""
MAX_HOSTS = 1_024
"""Hosts of native servers whose broker is remembered: more than an operator lists. Above it the one that was seen
longest ago may change its broker, and a message that it repeats may be carried out again."""


class Broker:
    """A broker. `name` is that of its WELCOME, or else that of its place in the configuration.

    `confirmations` are those of its present link; in `backlog` are messages of it that earlier turns have left.
    `user_of` returns the user of a session.
    """

    __slots__ = ("backlog", "confirmations", "link", "name", "place", "submissions")

    def __init__(
        self, place: str, link: BrokerLink, submissions: Submissions, user_of: Callable[[int], str | None]
    ) -> None:
        self.name = self.place = place
        self.link = link
        self.submissions = submissions
        self.confirmations = Confirmations()
        self.backlog = Backlog(user_of, self._postpone)

    def _postpone(self, message: Deliver) -> None:
        """Count a delivery as under way until its turn comes, perhaps behind later ones."""
        self.confirmations.postpone(message.serial)

    def on_link_ready(self, options: Meta) -> None:
        """Take in the name in the options of a WELCOME."""
        name = options.get("broker")
        self.name = name if type(name) is str and name else self.place
        self.link.on_link_ready()

    def on_link_lost(self, why: str) -> None:
        """Forget what belongs to a lost link, and hold every message that was on it."""
        self.link.on_link_lost(why)
        self.backlog.clear()  # as if the link had lost them: the broker sends them again
        self.confirmations.is_lost = True
        self.confirmations = Confirmations()
        self.submissions.on_link_lost()

    def drain(self) -> bool:
        """Send what waited for room on the link; return whether the link keeps up."""
        keeps_up = self.link.flush()
        self.submissions.send_held()
        return keeps_up


class Brokers:
    """All brokers that a bridge is linked to, one at least.

    `limits` are those of the bridge, `limits_of_one` those for the messages at one broker: the bounds for all are
    divided among the brokers, since the messages of one that goes move to the others. `user_of` returns the user of a
    session.
    """

    def __init__(
        self, places: Sequence[str], limits: Limits, tokens: Iterator[int], notice: Callable[[str], None],
        wake: Callable[[], None], reached: Counter[str], user_of: Callable[[int], str | None],
    ) -> None:  # fmt: skip
        count = len(places)
        if not 1 <= count <= MAX_BROKERS:
            raise ValueError(f"a bridge is linked to 1 to {MAX_BROKERS} brokers, not {count}")
        self.limits_of_one = _divided(limits, count)
        self.all: list[Broker] = []
        for number, place in enumerate(places):
            link = BrokerLink(limits, tokens, self._noticing(number, notice) if count > 1 else notice, reached)
            submissions = Submissions(self.limits_of_one, link, wake, reached)
            self.all.append(Broker(place, link, submissions, user_of))
        self.first = self.all[0]
        self.are_several = count > 1
        self._hosts: OrderedDict[str, Broker] = OrderedDict()

    def _noticing(self, number: int, notice: Callable[[str], None]) -> Callable[[str], None]:
        return lambda text: notice(f"{text} (broker {self.all[number].name})")

    @property
    def live(self) -> list[Broker]:
        """Brokers that have answered, in the order of the configuration."""
        return [broker for broker in self.all if broker.link.is_ready]

    @property
    def is_ready(self) -> bool:
        """Return whether there is a broker that has answered."""
        return any(broker.link.is_ready for broker in self.all)

    def others(self, broker: Broker) -> list[Broker]:
        """Return the live brokers but for this one."""
        return [each for each in self.all if each is not broker and each.link.is_ready]

    def of(self, submissions: Submissions) -> Broker:
        """Return the broker to which these messages go."""
        return next(broker for broker in self.all if broker.submissions is submissions)

    def home(self, key: str) -> Broker:
        """Return the live broker that is the home of a user, or of another key; the first broker where none is
        live."""
        if not self.are_several:
            return self.first
        return max(self.live, key=lambda broker: (weight(broker.name, key), broker.place), default=self.first)

    def home_of_host(self, host: str) -> Broker:
        """Return the broker of a listed server's host: the same one as long as it lives, since it recognizes what the
        server repeats."""
        if not self.are_several:
            return self.first
        broker = self._hosts.pop(host, None)
        if broker is None or not broker.link.is_ready:
            broker = self.home(f"\0{host}")
        self._hosts[host] = broker
        if len(self._hosts) > MAX_HOSTS:
            self._hosts.popitem(last=False)
        return broker

    def departed_at(self, user: str) -> Broker | None:
        """Return the live broker with unreported messages of a user whose connections have gone, if there is one."""
        return next((each for each in self.live if each.submissions.departed_of[user]), None)

    def take(self, token: int) -> tuple[Submissions, Submission] | None:
        """Take an unreported message out of the table that holds it."""
        for broker in self.all:
            submission = broker.submissions.by_token.pop(token, None)
            if submission is not None:
                return broker.submissions, submission
        return None


def weight(broker: str, key: str) -> bytes:
    """Return the weight of a broker for a key: the broker with the largest one is the home. The same in every process
    and on every machine."""
    return blake2b(f"{broker}\0{key}".encode(errors="surrogatepass"), digest_size=8).digest()


def _divided(limits: Limits, count: int) -> Limits:
    """Return the bounds of the messages at one of so many brokers."""
    if count == 1:
        return limits
    return replace(
        limits,
        held_messages=max(limits.held_messages // count, 1),
        held_bytes=max(limits.held_bytes // count, 1),
        gone_messages=limits.gone_messages // count,
        gone_bytes=limits.gone_bytes // count,
    )
