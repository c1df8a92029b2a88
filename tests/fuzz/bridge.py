"""Fuzzes a whole bridge: connections that write anything, end anywhere and do not read, beside those of alice and bob,
whose every message must have its one report. The broker behind the bridge keeps to the protocol, answers late, and is
lost at times."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from random import Random
from typing import Any

from bester.bridge.bridge import Bridge
from bester.bridge.frames import frame
from bester.bridge.limits import Limits
from bester.bridge.ports import Shell
from bester.bridge.states import State
from bester.bridge.submissions import Submissions
from bester.broker.wire import json_text
from bester.broker.wire.messages import (
    MAX_TYPE,
    Answer,
    Ask,
    Close,
    Confirm,
    Deliver,
    Forward,
    LoggedIn,
    Login,
    Message,
    Open,
    Report,
    Submit,
)
from bester.broker.wire.type_names import RESERVED_TYPES
from tests.fuzz.census import LENGTH, census
from tests.fuzz.odd import Odd
from tests.fuzz.odd_json import OddJson, read_frames
from tests.fuzz.play import Told, must
from tests.fuzz.wire import check_message
from tests.stand_in import StandIn

LIMITS = Limits(
    max_frame=4000, first_frame=600, logins_in_flight=6, max_connections=30, max_connections_per_address=12,
    max_connections_per_user=4, out_queue=20_000, out_answers=40_000, out_total=100_000, out_pause=4_000,
    write_chunk=2_000, unreported=8, unreported_bytes=16_000, held_bytes=200_000, gone_messages=32, gone_bytes=40_000,
    ahead_bytes=8_000, questions=2, unacked=8, unacked_bytes=20_000, link_backlog=2_000,
    max_strangers=8, stranger_s=0.0, unfinished_bytes=400,
)  # fmt: skip
HOSTS = ("10.0.0.7", "10.0.0.8", "127.0.0.1", "unix")
HONEST = ("alice", "bob")
HONEST_EVERY = 8
GRACE_S = 700.0
"""Longer than a message is held for a broker that does not answer."""
SMALL = 6
"""Upper bound of a table's entries when all who are not honest have gone, and all pending answers are given."""
ALWAYS = 200
"""Upper bound of a table's entries while they are there: more than any of the limits above in number."""
LONG = 256 * 1024
"""Bytes of a text that is held: a frame and a read at most, which is the longest that is written here at once."""
DATA = ('"hi"', "1", '{"n":1}', '"' + "x" * 500 + '"')

FLOODS = (
    b'{"payload":{"type":"builtin","data":{"command":{"type":"outcome","data":"s1/b-x/1"}},"id":"q"}}',
    b'{"payload":{"type":"dummy","data":null,"id":"p"}}',
    b'{"payload":{"type":"echo","data":1,"id":"e"}}',
)
"""Frames that are valid once, and are sent many times over."""


class Peer(StandIn):
    """A peer's connection: the wire that the bridge writes to, and the network before the wire."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        self.blocked = False
        self.gone = False
        self.ending = False
        self.unread: list[bytes] = []
        self.written = b""

    # --- the bridge calls ---

    def flush(self) -> bool:
        """Hand a chunk of the queued bytes to the socket; return whether there is more."""
        if not self.gone and (chunk := self.out.take(LIMITS.write_chunk)):
            self.written += chunk
            if self.blocked:
                self.world.bridge.on_blocked(self)
                return False
            self.world.bridge.on_bytes_sent(self, self.out.on_sent())
            if self.out.queued_bytes:
                return True
        if self.session.state is State.CLOSING and not self.out.in_flight and not self.ending:
            self.ending = True
            self.world.bridge.on_all_sent(self)
        return False

    def abort(self, why: str) -> None:
        """Cut the connection; the bridge is told in the next turn."""
        self.world.cut.append(self)

    # --- the world calls ---

    def pump(self) -> None:
        """Let the bridge read the bytes that have come, as far as the bridge reads."""
        while self.unread and self.reading and not self.gone:
            self.world.bridge.on_bytes(self, self.unread.pop(0))

    def unblock(self) -> None:
        """The peer reads again."""
        self.blocked = False
        if self.out.in_flight and not self.gone:
            self.world.bridge.on_bytes_sent(self, self.out.on_sent())
            self.world.bridge.on_unblocked(self)

    def frames(self) -> list[Any]:
        """Return the frames written since the last call; each must be readable."""
        written, self.written = self.written, b""
        return read_frames(written)


class World:
    """A bridge with its broker and peers, and a clock that is moved by hand."""

    def __init__(self, told: Told) -> None:
        self.told = told
        self.now = 100.0
        self.up = True
        self.full = False
        self.soon: list[Callable[[], None]] = []
        self.cut: list[Peer] = []
        self.said: list[Message] = []
        self.peers: list[Peer] = []
        self.bridge = Bridge(
            LIMITS,
            Shell(
                lambda: self.now, self.soon.append,
                first_frame_bytes=lambda host, _: LIMITS.max_frame if host == HOSTS[1] else LIMITS.first_frame,
                in_doubt=lambda host: host == HOSTS[0],
            ),
            carry=self.forward,
        )  # fmt: skip
        self.broker = Broker(self)
        self.bridge.connect(self)
        self.bridge.on_link_ready()

    # --- the way to the broker ---

    def send(self, message: Message) -> bool:
        """Take a message for the broker."""
        if self.full or not self.up:
            return False
        self.said.append(message)
        return True

    def send_all(self, messages: Sequence[Message]) -> int:
        """Take messages for the broker."""
        if self.full or not self.up:
            return 0
        self.said += messages
        return len(messages)

    def give_up(self) -> None:
        """Lose the link in the next turn."""
        self.soon.append(self.lose)

    def forward(self, message: Forward) -> None:
        """Fail: no message is forwarded here."""
        raise AssertionError(f"the broker of this world forwards nothing: {message}")

    # --- events ---

    def connect(self, host: str) -> Peer | None:
        """Open a connection; return None where the bridge has no place."""
        peer = Peer(self)
        if not self.bridge.admit(peer, host):
            return None
        self.peers.append(peer)
        return peer

    def write(self, peer: Peer, pieces: Iterable[bytes]) -> None:
        """A peer writes."""
        peer.unread += [piece for piece in pieces if piece]
        self.turn()

    def leave(self, peer: Peer) -> None:
        """A connection is gone."""
        if not peer.gone:
            peer.gone = True
            peer.out.drop()
            self.bridge.on_connection_lost(peer)
        self.peers = [each for each in self.peers if not each.gone]

    def turn(self) -> None:
        """Turn the loop until only events from outside can go on."""
        for _ in range(200):
            for peer in self.peers:
                peer.pump()
            soon, self.soon[:] = list(self.soon), []
            for call in soon:
                call()
            cut, self.cut = self.cut, []
            for peer in cut:
                self.leave(peer)
            if not self.soon and not self.cut and not any(peer.unread and peer.reading for peer in self.peers):
                break
        else:
            must(False, "a turn ends")
        sent, self.said = self.said, []
        for message in sent:
            self.broker.hear(message)

    def wait(self, seconds: float, *, answers: bool) -> None:
        """Let time pass; the broker answers meanwhile, or not."""
        end = self.now + seconds
        while self.now < end:
            self.now += max(0.5, seconds / 60)
            self.bridge.tick()
            self.turn()
            if answers:
                self.broker.answer(len(self.broker.waiting))

    def lose(self) -> None:
        """Lose the link to the broker, and all messages on the way."""
        self.up = False
        self.said.clear()
        self.broker.forget()
        self.bridge.on_link_lost("lost")
        self.turn()

    def regain(self) -> None:
        """Restore the link."""
        if not self.up:
            self.up = True
            self.bridge.on_link_ready()
            self.turn()


class Broker:
    """A broker that keeps to the protocol. `waiting` lists the messages to be answered, oldest first."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._serial = 0
        self.sessions: dict[int, str] = {}
        self.asked: set[int] = set()
        self.waiting: list[Message] = []
        self.messages: list[str] = []
        """Ids of results, lately."""

    def forget(self) -> None:
        """The link is lost."""
        self._serial = 0
        self.sessions.clear()
        self.asked.clear()
        self.waiting.clear()

    def hear(self, message: Message) -> None:
        """Check a message of the bridge: a bridge may send it, whatever its peers write."""
        check_message(message)
        match message:
            case Login():
                must(bool(message.user and message.password), "nobody logs in without a name and a password")
                must(message.session not in self.sessions | dict.fromkeys(self.asked), "a session logs in once")
                self.asked.add(message.session)
            case Open():
                self.sessions[message.session] = message.user
                return
            case Close():
                self.sessions.pop(message.session, None)
                self.asked.discard(message.session)
                return
            case Submit():
                must(len(message.type) <= MAX_TYPE, "a type that a handler may have")
                must(message.session is None or message.type not in RESERVED_TYPES, "and not the bridge's own")
                must(json_text.fault(message.body) is None, "a body is JSON")
                must(message.session is None or message.session in self.sessions, "who submits is logged in")
                must(message.session is not None or "address" in message.meta, "or a server, with its address")
            case Ask():
                must(message.question == "outcome" and message.argument[0] in self.sessions, "clients ask for outcomes")
            case Confirm():
                must(message.upto <= self._serial, "what is confirmed was delivered")
                return
            case _:
                must(False, f"a bridge says no {type(message).__name__}")
        self.waiting.append(message)

    def answer(self, count: int) -> None:
        """Answer the oldest messages."""
        asked, self.waiting = self.waiting[:count], self.waiting[count:]
        answers = [each for message in asked for each in self._answers(message)]
        self._world.bridge.receive(answers)
        self._world.turn()

    def _answers(self, message: Message) -> list[Message]:
        match message:
            case Login():
                if message.session not in self.asked:
                    return []
                self.asked.discard(message.session)
                if message.password != "right":
                    return [LoggedIn(message.session, 1, "authentication-failed", None)]
                self.sessions[message.session] = message.user
                return [LoggedIn(message.session, 0)]
            case Ask():
                return [Answer(message.token, message.token % 3 % 2, {"bob": "queued"})]
            case Submit():
                return self._submitted(message)
        raise AssertionError(message)

    def _submitted(self, submit: Submit) -> list[Message]:
        id_ = f"s1/b-x/{submit.token}"
        if submit.type == "echo" and submit.session in self.sessions:
            return [self._deliver(id_, submit, [[0, submit.session]], submit.token)]
        if submit.type == "all":
            targets = [[n, session] for n, session in enumerate(self.sessions)]
            done = Report(submit.token, 0, None, id_, {})
            return [self._deliver(id_, submit, targets, None), done] if targets else [done]
        status = submit.token % 2
        return [Report(submit.token, status, "refused" if status else None, id_, {}, "no" if status else None)]

    def _deliver(self, id_: str, submit: Submit, targets: list[list[int]], token: int | None) -> Deliver:
        self._serial += 1
        self.messages = [*self.messages[-20:], id_, *(f"{id_}.0.{n}" for n in range(2))]
        meta = {"origin": "s1", "message": id_}
        return Deliver(self._serial, f"{id_}.0", submit.type, submit.body, targets, token, meta)


class Honest:
    """The honest users alice and bob, who read all frames they get."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._number = 0
        self.waiting: dict[tuple[int, str], str] = {}
        self.peers: list[Peer] = []
        for user in HONEST:
            peer = world.connect("127.0.0.1")
            assert peer is not None
            self.peers.append(peer)
            login = {"scope": "client", "authentication": {"username": user, "password": "right"}}
            world.write(peer, [frame(json.dumps({"header": login}).encode())])
            world.broker.answer(1)
            (answer,) = peer.frames()
            must(answer["header"]["status"] == "good", "an honest user is let in")

    def submit(self, odd: Odd) -> None:
        """Send a message from one of the honest users."""
        self._number += 1
        index, type_ = odd.chance.randrange(2), odd.pick(("echo", "echo", "all", "hold"))
        self.waiting[index, str(self._number)] = type_
        dedup = f',"dedup":"d{self._number}"' if odd.one_in(3) else ""
        body = f'{{"payload":{{"type":"{type_}","data":{odd.pick(DATA)},"id":"{self._number}"{dedup}}}}}'
        self._world.write(self.peers[index], [frame(body.encode())])

    def read(self) -> None:
        """Check the frames that came."""
        for index, peer in enumerate(self.peers):
            must(not peer.gone, "an honest client is never cut off")
            for came in peer.frames():
                if came["header"]["messageType"] != "statusReport":
                    continue
                payload = came["payload"]
                type_ = self.waiting.pop((index, payload["id"]), None)
                must(type_ is not None, f"one report for each message: {payload['id']} had its own")
                must(came["header"]["status"] == "good" or type_ == "hold", f"an honest message ends well: {came}")


def play(steps: Sequence[int], told: Told) -> int:
    """Play a story. Returns the number of steps of the parties who are not honest."""
    world = World(told)
    honest = Honest(world)
    chance = Random()
    odd = Odd(chance)
    json_ = OddJson(odd)
    for step in steps:
        chance.seed(step)
        json_.ids = world.broker.messages
        if odd.one_in(HONEST_EVERY):
            honest.submit(odd)
        else:
            _happens(world, honest, json_)
        honest.read()
        _read_all(world, honest)
        _look(world, ALWAYS, "while they are there")
    _end(world, honest)
    return len(steps)


def _happens(world: World, honest: Honest, json_: OddJson) -> None:
    odd, broker = json_.odd, world.broker
    evil = [peer for peer in world.peers if peer not in honest.peers]
    kind = odd.chance.randrange(24)
    if kind < 4 or not evil:
        host = odd.pick(HOSTS)
        peer = world.connect(host)
        world.told(f"somebody comes from {host}: {peer is not None}")
        if peer is not None:
            _write(world, peer, json_, first=True)
    elif kind < 14:
        _write(world, odd.pick(evil), json_, first=False)
    elif kind < 18 and world.up:
        count = odd.pick((1, 2, len(broker.waiting)))
        world.told(f"the broker answers {count} of {len(broker.waiting)}")
        broker.answer(count)
    elif kind == 18:
        peer = odd.pick(evil)
        world.told(f"session {peer.session.number} ends")
        if odd.one_in(2):
            world.bridge.on_peer_ended(peer)
        else:
            world.leave(peer)
    elif kind == 19:
        peer = odd.pick(evil)
        world.told(f"session {peer.session.number} does {'' if peer.blocked else 'not '}read")
        if peer.blocked:
            peer.unblock()
        else:
            peer.blocked = True
    elif kind == 20:
        seconds = odd.pick((0.5, 1.0, 6.0, 31.0))
        world.told(f"{seconds:g} s pass")
        world.wait(seconds, answers=world.up)
    elif kind == 21 and odd.one_in(2):
        world.told("the link is lost")
        world.lose()
    elif kind == 22:
        world.full = not world.full
        world.told(f"the link is {'full' if world.full else 'not full any more'}")
    else:
        world.told("the link is there")
        world.full = False
        world.regain()
    world.turn()


def _write(world: World, peer: Peer, json_: OddJson, *, first: bool) -> None:
    data = json_.stream(first)
    if json_.odd.one_in(12) and not first:
        data = frame(json_.odd.pick((*FLOODS, json_.later()))) * json_.odd.pick((10, 40, 150))
    pieces = json_.pieces(data)
    world.told(f"session {peer.session.number} ({peer.session.state.value}) writes {data[:400]!r} in {len(pieces)}")
    world.write(peer, pieces)


def _read_all(world: World, honest: Honest) -> None:
    """Check that each peer's frames are readable, and begin with the answer to the first frame."""
    for peer in world.peers:
        if peer not in honest.peers and not peer.out.in_flight:
            for came in peer.frames():
                must(type(came) is dict and type(came["header"]) is dict, "a frame has a header")
                must(type(came["payload"]) is dict, "and a payload")


def _end(world: World, honest: Honest) -> None:
    """Check the end: everybody reads, the broker answers, time passes, and the honest have their reports. Then the
    others leave."""
    world.told("the others do nothing more")
    world.full = False
    world.regain()
    for peer in world.peers:
        peer.unblock()
    for _ in range(3):
        world.wait(5.0, answers=True)
    world.wait(GRACE_S, answers=True)
    honest.read()
    must(not honest.waiting, f"everybody honest has a report: {honest.waiting}")
    for peer in list(world.peers):
        if peer not in honest.peers:
            world.leave(peer)
    world.wait(GRACE_S, answers=True)
    must(world.bridge.connections == len(HONEST), "nobody else is left")
    must(sorted(world.broker.sessions.values()) == sorted(HONEST), "and the broker knows of nobody else")
    _look(world, SMALL, "when they are gone")
    must(world.bridge.inspect().submissions.unreported_bytes == 0, "nothing is held that nobody waits for")


def _look(world: World, most: int, when: str) -> None:
    sizes = census(world.bridge, (World, Broker, Honest, Limits, Peer))
    large = {way: size for way, size in sizes.items() if size > (LONG if way.endswith(LENGTH) else most)}
    must(not large, f"tables are bounded {when}: {large}")
    unfinished = sum(peer.session.splitter.waiting_bytes for peer in world.peers)
    state = world.bridge.inspect()
    must(
        state.unfinished_bytes == unfinished <= LIMITS.unfinished_bytes, f"{unfinished} bytes of frames are unfinished"
    )
    must(state.strangers <= LIMITS.max_strangers, f"{state.strangers} strangers have places")
    for peer in world.peers:
        must(peer.out.queued_bytes <= LIMITS.out_answers + 2 * LIMITS.max_frame, "what waits for a reader is bounded")
        held = census(peer.session, (Submissions,))  # shared by all windows
        large = {way: size for way, size in held.items() if size > (LONG if way.endswith(LENGTH) else 4_000)}
        must(not large, f"what a session holds is bounded: {large}")
        window = peer.session.window
        must(len(window.tokens) <= LIMITS.unreported, f"{len(window.tokens)} of one connection wait for a report")
        must(len(window.tokens) - len(window.submitted) <= LIMITS.questions, "and of them so many questions")
