"""Bridges of a server with several brokers, at the level of the fabric's messages, and the devices behind them.

The rules of such a bridge: every session is announced to every broker. A user's messages go to one broker, the user's
home: the one among the living that a hash of the user and the broker ranks first. Where a link is lost, what had no
report there is submitted at another broker under the same token, as another attempt; a user's new messages go to the
home again once nothing of the user is unreported elsewhere. Of two deliveries by two brokers the second is marked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, NamedTuple

from msgspec import Struct

from bester.bridge.marked import Marked
from bester.broker.wire.link_client import LinkClient
from bester.broker.wire.messages import Answer, Ask, Close, Confirm, Deliver, Open, Submit
from bester.broker.wire.messages import Report as WireReport
from bester.broker.wire.outcomes import OUTCOME_TYPE
from bester.client.frames import Report, Terms
from tests.simulation.clients import Arrival, Submission
from tests.world.clock import World
from tests.world.links import SimLink
from tests.world.network import Messages, Weather

if TYPE_CHECKING:
    from tests.world.servers import SimServer

AGAIN_S = 1.0
"""Seconds until a device whose bridge is gone tries another one."""


class Home(NamedTuple):
    """The server of a device."""

    name: str
    crashes: int = 0


class Unreported(Struct, eq=False):
    """A submitted message without a report: its SUBMIT, the broker that has it now, and the attempt."""

    submission: Submission
    submit: Submit
    device: Device
    broker: int | None = None
    attempt: int = 1


class Device:
    """A device of a user at a server; speaks to the bridge that it is connected to by calls."""

    ack = True

    def __init__(self, world: World, bridges: list[ClusterBridge], server: str, name: str, user: str) -> None:
        self.world = world
        self.server = Home(server)
        self.name = name
        self.user = user
        self.life = 0
        self.submissions: list[Submission] = []
        self.arrivals: list[Arrival] = []
        self.outcomes: list[Arrival] = []
        self.lost: list[bytes] = []
        self.wanted = False
        self.bridge: ClusterBridge | None = None
        self.session = 0
        self._bridges = bridges
        self._waiting: dict[int, Submission] = {}  # by number

    @property
    def ready(self) -> bool:
        """Return whether the device is connected."""
        return self.bridge is not None

    @property
    def unreported(self) -> int:
        """Count of the messages that wait for their report."""
        return len(self._waiting)

    def come(self) -> None:
        """Connect, as soon as a bridge is there; what had no report is sent again."""
        self.wanted = True
        if self.bridge is not None:
            return
        bridge = self.world.random.choice(self._bridges)
        if not bridge.up:
            self.world.after(AGAIN_S, lambda: self.come() if self.wanted else None)
            return
        self.life += 1
        self.bridge = bridge
        self.session = bridge.admit(self)
        for submission in list(self._waiting.values()):
            bridge.submit(self, submission, resent=True)

    def go(self) -> None:
        """Disconnect; messages without a report are sent again by the next `come`."""
        self.wanted = False
        bridge, self.bridge = self.bridge, None
        if bridge is not None:
            bridge.dismiss(self)

    def cut_off(self) -> None:
        """The bridge has died."""
        self.bridge = None
        if self.wanted:
            self.world.after(self.world.random.uniform(0.1, 2.0), lambda: self.come() if self.wanted else None)

    def say(self, number: int, type_: str, body: bytes, terms: Terms) -> None:
        """Submit a message, where the device is connected."""
        if self.bridge is None:
            return
        submission = Submission(self, self.life, number, type_, body, terms, self.world.now, 0)  # type: ignore[arg-type]  # a device without bytes
        self.submissions.append(submission)
        self._waiting[number] = submission
        self.bridge.submit(self, submission, resent=False)

    def learn(self, submission: Submission) -> bool:
        """Ask for the outcome of a message of this user's; return whether the question was sent."""
        message = submission.reports[0].message
        return self.bridge is not None and message is not None and self.bridge.ask(self, submission, message)

    def reported(self, submission: Submission, report: Report) -> None:
        """Take a report: the first one counts."""
        if self._waiting.pop(submission.number, None) is not None:
            self.world.tell(self.name, f"is told of number {submission.number}", report)
            submission.reports.append(report)

    def seen(self, arrival: Arrival) -> None:
        """Take a message."""
        self.world.tell(self.name, "GETS", arrival)
        (self.outcomes if arrival.type == OUTCOME_TYPE else self.arrivals).append(arrival)


class ClusterBridge:
    """A bridge with a link to each broker of its server. `slow_s` is the longest time until bytes have left."""

    direct = False

    def __init__(
        self, world: World, brokers: Sequence[SimServer], name: str, *, weather: Weather, slow_s: float
    ) -> None:
        self.world = world
        self.name = name
        self.brokers = brokers
        self.up = True
        self.crashes = 0
        self._slow_s = slow_s
        self._tokens = count(1)
        self._sessions = count(1)
        self._devices: dict[int, Device] = {}
        self._unreported: dict[int, Unreported] = {}
        self._asked: dict[int, tuple[int, Device, Submission, str]] = {}  # the broker, and the question
        self._ready: set[int] = set()
        self._lives = [0] * len(brokers)  # of the links
        self._last_s = [0.0] * len(brokers)  # when the latest delivery of a link is written
        self._marked = Marked()
        self._epoch = self._new_epoch()
        self.links = [
            SimLink(
                world, partial(_itself, broker), self._party(), weather, weather,
                on_messages=partial(self._receive, at), on_ready=partial(self._on_ready, at),
                on_lost=partial(self._on_lost, at),
            )
            for at, broker in enumerate(brokers)
        ]  # fmt: skip

    def _new_epoch(self) -> str:
        return self.world.new_key().decode()

    def _party(self) -> LinkClient:
        return LinkClient("bridge", self.name, {"epoch": self._epoch})

    # --- devices ---

    def admit(self, device: Device) -> int:
        """Open a session, and announce it to all brokers."""
        session = next(self._sessions)
        self._devices[session] = device
        for at in sorted(self._ready):
            self.links[at].send(Open(session, device.user))
        return session

    def dismiss(self, device: Device) -> None:
        """End a session."""
        del self._devices[device.session]
        for at in sorted(self._ready):
            self.links[at].send(Close(device.session))

    def submit(self, device: Device, submission: Submission, *, resent: bool) -> None:
        """Submit a message at the user's home; without a living broker the message waits."""
        token = next(self._tokens)
        meta = {"dedup": f"{device.name}/{submission.number}"}
        terms = submission.terms
        optional = {"ttl_s": terms.ttl_s, "outcome": terms.outcome or None, "resent": resent or None}
        meta |= {key: value for key, value in optional.items() if value is not None}  # type: ignore[misc]  # plain values
        submit = Submit(token, device.session, submission.type, submission.body, meta)
        unreported = self._unreported[token] = Unreported(submission, submit, device)
        self._send(unreported)

    def ask(self, device: Device, submission: Submission, message: str) -> bool:
        """Ask the user's home for outcomes; return whether there is one."""
        home = self._home(device.user)
        if home is None:
            return False
        token = next(self._tokens)
        self._asked[token] = home, device, submission, message
        return self.links[home].send(Ask(token, "outcome", [device.session, message]))

    # --- homes ---

    @property
    def is_linked(self) -> bool:
        """Return whether any broker is there."""
        return bool(self._ready)

    def _home(self, user: str) -> int | None:
        elsewhere = {each.broker for each in self._unreported.values() if each.device.user == user}
        unfinished = sorted(at for at in elsewhere if at is not None and at in self._ready)
        if unfinished:
            return unfinished[0]
        return max(self._ready, key=lambda at: _rank(self.brokers[at].name, user), default=None)

    def _send(self, unreported: Unreported) -> None:
        home = self._home(unreported.device.user)
        unreported.broker = home
        if home is None:
            return
        submit = unreported.submit
        if unreported.attempt > 1:
            submit = submit._replace(meta=submit.meta | {"attempt": unreported.attempt})
        self.links[home].send(submit)

    def _on_ready(self, at: int) -> None:
        self._ready.add(at)
        for session, device in self._devices.items():
            self.links[at].send(Open(session, device.user))
        for unreported in [each for each in self._unreported.values() if each.broker is None]:
            self._send(unreported)

    def _on_lost(self, at: int, why: str) -> None:
        if at in self._ready:
            self.world.tell(self.name, f"loses {self.brokers[at].name}", why)
        self._ready.discard(at)
        self._lives[at] += 1
        lost = [each for each in self._unreported.values() if each.broker == at]
        for unreported in lost:
            unreported.broker = None
            unreported.attempt += 1
        for unreported in lost:
            self._send(unreported)
        for token, (broker, device, submission, message) in list(self._asked.items()):
            if broker == at:
                del self._asked[token]
                self.ask(device, submission, message)

    # --- messages of brokers ---

    def _receive(self, at: int, messages: Messages) -> None:
        for message in messages:
            match message:
                case WireReport():
                    self._report(message.token, message)
                case Deliver():
                    self._deliver(at, message)
                case Answer():
                    asked = self._asked.pop(message.token, None)
                    if asked is not None and type(message.value) is not str:
                        asked[2].answers.append(message.value)

    def _report(self, token: int, report: WireReport) -> None:
        unreported = self._unreported.pop(token, None)
        if unreported is not None:
            told = Report(report.status == 0, str(token), report.reason, report.message, dict(report.recipients))
            unreported.device.reported(unreported.submission, told)

    def _deliver(self, at: int, deliver: Deliver) -> None:
        """Write a delivery to its sessions after a while, and confirm that; in the order of the link."""
        life, chance = self._lives[at], self.world.random
        when = self._last_s[at] = max(self._last_s[at], self.world.now + chance.uniform(0.0, self._slow_s))

        def write() -> None:
            if not self.up or life != self._lives[at]:
                return  # the broker has the link's deliveries for unconfirmed
            failed = []
            (written,) = self._marked.take((deliver,))
            for t, *sessions in deliver.targets:
                devices = [self._devices[session] for session in sessions if session in self._devices]
                for device in devices:
                    device.seen(
                        Arrival(
                            self.world.now, device.life, f"{deliver.id}.{t}", deliver.type, deliver.body,
                            written.meta.get("redelivered") is True,
                        )
                    )  # fmt: skip
                if not devices:
                    failed.append([deliver.serial, t, "not-connected"])
            if deliver.token is not None and not failed:
                message = str(deliver.meta.get("message") or deliver.id)
                self._report(deliver.token, WireReport(deliver.token, 0, None, message, {}))
            self.links[at].send(Confirm(0, [deliver.serial], failed))

        self.world.at(when, write)

    # --- faults ---

    def crash(self, down_s: float) -> None:
        """End the process: its sessions and messages are forgotten; start again after `down_s` seconds."""
        if not self.up:
            return
        self.world.tell(self.name, "CRASHES", f"for {down_s:.1f} s")
        self.crashes += 1
        self.up = False
        devices, self._devices = self._devices, {}
        self._unreported.clear()
        self._asked.clear()
        self._marked = Marked()
        self._epoch = self._new_epoch()
        for at, link in enumerate(self.links):
            self._lives[at] += 1
            link.crash(down_s, self._party())
        self._ready.clear()
        for device in devices.values():
            device.cut_off()
        self.world.after(down_s, self._start)

    def _start(self) -> None:
        self.up = True


def _rank(broker: str, user: str) -> bytes:
    return hashlib.blake2b(f"{broker}\0{user}".encode()).digest()


def _itself(server: SimServer) -> SimServer:
    return server
