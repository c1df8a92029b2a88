"""Hostile parties of a scenario: one that takes over routing ids, and a listed server that lies.

Both know each message of the honest, with ids, lanes and tokens, at the moment when the message is sent. Nothing of the
honest may come to either, be acknowledged by either, or be touched by a forged id.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import takewhile
from random import Random

from bester.broker.core.effects import Link
from bester.broker.core.settings import Grant, Route
from bester.broker.wire.messages import (
    VERSION,
    Command,
    Error,
    Heartbeat,
    Hello,
    Message,
    Meta,
    Relay,
    Relayed,
    Reply,
    Request,
    Welcome,
)
from bester.broker.wire.outcomes import OUTCOME_TYPE
from tests.simulation import programs
from tests.simulation.clients import SimClient
from tests.simulation.programs import LIARS
from tests.simulation.scenario import TRAFFIC_S, TYPES, USERS, Scenario, submissions_of
from tests.world.clock import BrokenRuleError
from tests.world.handlers import SimHandler
from tests.world.network import Messages, Pipe, Weather
from tests.world.servers import SimServer

LIAR = "s4"
LIARS_KEY, THIEFS_KEY, HANDLERS_KEY = "key of the liar", "key of the thief", "key of the handlers"
THIEFS_TYPE = "t"
LIE = "failed:schema"
"""No honest party has this outcome: there are no contracts."""
STOLEN = 2 * LIARS
"""Number of the bodies with which a thief answers the requests of others."""
BEAT_S = 1.0
LATER_S, QUEUED_S = 0.6, 6.0
"""A lie comes at once, or within this time: before, after, or while the message is queued."""


class Raw:
    """A link to a server without a LinkClient: sends anything, and keeps the name of its link for as long as the server
    lives. Received messages go to `heard`."""

    def __init__(self, parties: Hostile, server: SimServer, link: Link, name: str) -> None:
        self.name = name
        self.server = server
        self._parties = parties
        self._world = parties.world
        self._connect(link)

    def _connect(self, link: Link) -> None:
        server, weather = self.server, Weather()
        self.link = link
        self._up = Pipe(self._world, weather, lambda messages: server.receive(link, messages))
        down = Pipe(self._world, weather, lambda messages: self._parties.heard(self, messages))
        server.links[link] = self  # type: ignore[assignment]  # a server asks a link for its name, and to reconnect
        server.pipes[link] = down

    def reidentify(self) -> None:
        """The server has died: ZeroMQ makes a new connection."""
        self.server.forget(self.link)
        self._up.closed = True
        self._connect(Link("curve", self._world.new_key(), self.link.party))

    def send(self, *messages: Message) -> None:
        """Send a batch."""
        self._up.send(messages)


class LiarsDoor:
    """The liar's own listener: servers link to it as to any other. Answers come at once, and are false."""

    def __init__(self, parties: Hostile) -> None:
        self.links: dict[Link, object] = {}
        self.pipes: dict[Link, Pipe] = {}
        self._parties = parties

    def forget(self, link: Link) -> None:
        """A server has closed its link."""
        self.links.pop(link, None)
        self.pipes.pop(link, None)

    def receive(self, link: Link, messages: Messages) -> None:
        """Answer a batch."""
        answers: list[Message] = []
        for message in messages:
            if type(message) is Hello:
                answers.append(Welcome(VERSION, LIAR, {"heartbeat_ms": 3000}))
            elif type(message) is Heartbeat:
                answers.append(Heartbeat())
            elif type(message) is Relay:
                answers += self._parties.answers_to(message)
        if answers and link in self.pipes:
            self.pipes[link].send(answers)

    def say(self, message: Message) -> None:
        """Send a message on every link that servers have to the liar."""
        for pipe in list(self.pipes.values()):
            pipe.send((message,))


class Hostile(Scenario):
    """A scenario with a thief of routing ids and a lying server. Their choices come from a generator of their own."""

    option = " --hostile"

    def __init__(self, seed: int, *, telling: bool = True) -> None:
        self.chance = Random(f"hostile {seed}")
        self.lies = 0
        """Count of false messages and answers."""
        self.thefts = 0
        """Count of routing ids that were taken over with requests in hand."""
        self.door = LiarsDoor(self)
        self.liars: dict[str, Raw] = {}
        super().__init__(seed, telling=telling)

    # --- parties ---

    def more_routes(self) -> dict[str, Route]:
        accepted = frozenset(TYPES)
        return {LIAR: Route(LIAR, fabric=f"ipc:///{LIAR}", key=LIARS_KEY, accept_types=accepted)}

    def grants(self) -> dict[str, Grant]:
        return {
            LIARS_KEY: Grant("server", LIAR),
            THIEFS_KEY: Grant("handler", "thief", frozenset({THIEFS_TYPE})),
            HANDLERS_KEY: Grant("handler", "handlers", frozenset(TYPES)),
        }

    def key_of(self, handler: str) -> str:
        return HANDLERS_KEY if handler.endswith("h0") else ""

    def _build(self) -> None:
        super()._build()
        for server in self.servers:
            server.link_to(LIAR, lambda: self.door, Weather(), Weather())  # type: ignore[arg-type,return-value]  # as much of a server as a link needs
            self.liars[server.name] = self._raw(server, LIARS_KEY, "liar")
            self._hello(self.liars[server.name])
            for other in self.servers:
                if other is not server:
                    server.out[other.name].on_send = partial(self._spy, server, other)
        for handler in self.handlers:
            handler.link.on_shut = partial(self._steal, handler)
        self._beat()

    def _raw(self, server: SimServer, key: str, name: str) -> Raw:
        return Raw(self, server, Link("curve", self.world.new_key(), key), name)

    def _hello(self, liar: Raw) -> None:
        liar.send(Hello(VERSION, "server", LIAR, {}))

    def _beat(self) -> None:
        for liar in self.liars.values():
            liar.send(Heartbeat())
        self.world.after(BEAT_S, self._beat)

    def heard(self, raw: Raw, messages: Messages) -> None:
        """Check that a hostile party is sent answers and refusals alone."""
        for message in messages:
            if type(message) is Request:
                raise BrokenRuleError(f"{raw.name} was given {message}")
            if type(message) is Error and message.code == "hello-first" and raw.name == "liar":
                self._hello(raw)

    # --- the thief ---

    def _steal(self, handler: SimHandler, link: Link) -> None:
        """Take over the routing id of a handler that has ended, at once, and answer its requests in its name."""
        if link.door != "curve" or self.world.now >= TRAFFIC_S or not handler.server.up or self.chance.random() < 0.3:
            return
        server, held = handler.server, handler.held
        stolen = thiefs_link(link)
        if stolen != link:  # the shell sees another key on the routing id: the link before has ended
            if link in server.links:
                server.forget(link)
            server.when_awake(
                lambda: server.carry_out(server.router.on_link_lost(link, "its routing id has passed on", server.now))
            )
        thief = Raw(self, server, stolen, "thief")
        self.thefts += bool(held)
        body = programs.body_of(STOLEN, "", [])
        for token in held:
            commands = [Command("sendClients", [self.chance.choice(USERS)], body)] if self.chance.random() < 0.7 else []
            thief.send(Reply(token, 0, commands))
        thief.send(Hello(VERSION, "handler", handler.name, {"types": handler.types, "credit": 8}))
        thief.send(Hello(VERSION, "handler", "thief", {"types": [THIEFS_TYPE], "credit": 8}))

    # --- the liar ---

    def _spy(self, sender: SimServer, receiver: SimServer, messages: Sequence[Message]) -> None:
        """Read the messages of one server to another, and lie to both about them."""
        for message in messages:
            if type(message) is not Relay or message.type == OUTCOME_TYPE or self.world.now >= TRAFFIC_S:
                continue
            lies = self.chance.sample((self._forge, self._acknowledge, self._pass_for, self._report), 2)
            for lie in lies:
                latest_s = QUEUED_S if lie == self._report else LATER_S
                delay_s = self.chance.choice((0.0, self.chance.uniform(0.0, latest_s)))
                self.world.after(delay_s, partial(lie, sender, receiver, message))
                self.lies += 1

    def _liars_body(self, relay: Relay) -> bytes:
        """Return a message of the liar's own: often to those to whom the forged one goes, so that its results have the
        same ids."""
        same = list(takewhile(lambda step: step[0] == "clients", programs.read(relay.body)[2]))
        program = self.chance.choice((same, same, [], [["clients", [self.chance.choice(USERS)]]], [["fail"]]))
        return programs.body_of(LIARS + self.lies, "", program)

    def _lying_meta(self, sender: SimServer, relay: Relay) -> Meta:
        """Return another server's meta, with some of it changed."""
        meta: Meta = {**relay.meta, "server": sender.name}
        lies: tuple[Meta, ...] = (
            {}, {"path": []}, {"path": [sender.name] * 5}, {"path": ["?"] * 40}, {"origin": LIAR}, {"origin": "s2"},
            {"id": relay.meta["root"]}, {"root": "s1/b/1"}, {"again": True}, {"ttl_s": 0}, {"scope": "client"},
            {"lane": [relay.meta["lane"][0], relay.meta["lane"][1] + 1, relay.meta["lane"][1] + 1]},
        )  # fmt: skip
        return meta | self.chance.choice(lies)

    def _forge(self, sender: SimServer, receiver: SimServer, relay: Relay) -> None:
        """Send a message with the id, origin, path and lane of another server's."""
        type_ = relay.type if relay.type in TYPES else "a"
        self.liars[receiver.name].send(
            Relay(relay.token, type_, self._liars_body(relay), self._lying_meta(sender, relay))
        )

    def _acknowledge(self, sender: SimServer, receiver: SimServer, relay: Relay) -> None:
        """Answer a message that was sent to another server."""
        self.door.say(Relayed(relay.token, self.chance.choice(("delivered", "queued", LIE)), {}))
        self.liars[sender.name].send(Relayed(relay.token, "delivered", {}))

    def _pass_for(self, sender: SimServer, receiver: SimServer, relay: Relay) -> None:
        """Say HELLO as another server, and send its message with another body."""
        liar = self._raw(receiver, LIARS_KEY, "impostor")
        liar.send(Hello(VERSION, "server", sender.name, {}), relay._replace(body=self._liars_body(relay), type="a"))

    def _report(self, sender: SimServer, receiver: SimServer, relay: Relay) -> None:
        """Send a later outcome of a message that another server has."""
        body = b'{"message":"%b","outcome":"%b","by":"%b"}' % (
            relay.meta["id"].encode(), LIE.encode(), receiver.name.encode(),
        )  # fmt: skip
        self.liars[sender.name].send(Relay(relay.token, OUTCOME_TYPE, body, {"id": f"{LIAR}/{self.lies}", "path": []}))

    def answers_to(self, relay: Relay) -> list[Message]:
        """Answer a message to the liar, which may be a later outcome of the liar's own messages alone."""
        if relay.type != OUTCOME_TYPE:
            raise BrokenRuleError(f"{LIAR} was given {relay}")
        if self.world.now >= TRAFFIC_S:
            return [Relayed(relay.token, "delivered", {})]
        self.lies += 1
        outcome = self.chance.choice(("delivered", "queued", LIE, "failed:overloaded"))
        return [Relayed(relay.token, outcome, {"queued": 3})] * self.chance.choice((0, 1, 5))

    # --- the rules ---

    def run(self) -> None:
        super().run()
        for client in self.clients:
            self._is_untouched(client)
        for submission in submissions_of(self):
            told = [report.recipients for report in submission.reports] + [each or {} for each in submission.answers]
            if any(outcome == LIE for recipients in told for outcome in recipients.values()):
                raise BrokenRuleError(f"a liar was believed about {submission}")

    def _is_untouched(self, client: SimClient) -> None:
        for arrival in client.arrivals:
            if programs.read(arrival.body)[0] >= STOLEN:
                raise BrokenRuleError(f"{client.name} got the answer of a thief: {arrival}")
        for outcome in client.outcomes:
            if LIE.encode() in outcome.body:
                raise BrokenRuleError(f"{client.name} was told a liar's outcome: {outcome}")


def thiefs_link(link: Link) -> Link:
    """Return the link of a thief who takes over a routing id: the same routing id, and another key."""
    return link._replace(party=THIEFS_KEY)
