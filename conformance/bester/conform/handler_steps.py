"""Define the steps of handler cases: actions of the scripted broker, and events to wait for.

A step is a table with one verb; `STEPS` lists the verbs. JSON texts (`'[…]'`) may contain `$type`, the handler's first
type, and `$served`, the value of BESTER_TYPES. A message of the handler that no step expects fails the case.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

from bester.conform import fabric
from bester.conform.broker import HEARTBEAT_MS, Broker, Expected
from bester.conform.cases import Case, Step, one_verb
from bester.conform.match import fault, packed, shown
from bester.conform.program import Program
from bester.conform.result import Unseen
from bester.conform.written import filled, hex_bytes

FIRST_TOKEN = 901
GREETED_AGAIN = 3
"""Greetings that a program may repeat by a new link, after a restart of the broker, before its first REPLY. A program
opens a new link while nothing answers, so the broker may return just when the program gives up the link of its HELLO.
"""
REPEATED = ("welcome", "request", "answered", "fence")
"""Steps that are repeated then, from the `hear` of the HELLO on."""
TEXT = '"CONFORM"'
"""The JSON of a request whose text is of no importance."""


class Sample(NamedTuple):
    """Data of requests for a program that is no shout: JSON that the program can handle, and JSON on which the program
    fails.
    """

    data: str
    bad: str | None = None


class Stand:
    """A broker, a program, and a script's work with them. `within_s` is how long a wait may take; `served` is the value
    of BESTER_TYPES; with a `sample`, its data are in every request, and only the form of the answers matters.
    """

    def __init__(
        self,
        broker: Broker,
        start: Callable[[], Awaitable[Program]],
        within_s: float,
        served: str,
        sample: Sample | None = None,
    ) -> None:
        self.broker = broker
        self._served = served
        self._sample = sample
        self.program: Program | None = None
        self._start = start
        self.within_s = within_s
        self._tokens = itertools.count(FIRST_TOKEN)
        self.reusable = True
        """True while the next case may use this program: no step has changed the program for good."""
        self._greetings = 0
        """Greetings that the program may still repeat."""

    async def play(self, case: Case) -> None:
        """Play a case's steps. Raises Unseen."""
        position = greeting = replies = 0
        while position < len(case.steps):
            step = case.steps[position]
            verb = verb_of(step)
            if verb == "restart_s":
                self._greetings, greeting, replies = GREETED_AGAIN, position + 1, self.broker.replies
            elif self.broker.replies > replies:
                self._greetings = 0
            try:
                await STEPS[verb](self, step)
            except Unseen:
                if verb not in REPEATED or not await self._greets_again():
                    raise
                self._greetings -= 1
                self.broker.forget()
                position = greeting
                continue
            self._look(step)
            position += 1
        if self.broker.wrong is not None:
            raise self.broker.wrong

    def _another_hello(self) -> bool:
        """Return true where the program, after a restart of the broker, has begun anew by another link."""
        return self._greetings > 0 and any(
            heard.name == "HELLO" and heard.link != self.broker.link for heard in self.broker.inbox
        )

    async def _greets_again(self) -> bool:
        """Wait for a HELLO by another link, where the program may repeat its greeting."""
        return self._greetings > 0 and await self.broker.until(self._another_hello, self.within_s)

    def _look(self, step: Step) -> None:
        """Check that no message has come for which no step has waited."""
        but = step.get("but", ())
        for heard in self.broker.inbox:
            if heard.name not in but and heard.name == "ERROR":
                raise Unseen(f"the handler said ERROR {shown(heard.fields)}, which nothing asked for")
        self.broker.inbox = [heard for heard in self.broker.inbox if heard.name not in but]

    def _gone(self) -> str:
        status = self.program.status if self.program is not None else None
        return "" if status is None else f"; the program has ended with status {status}"

    async def _until(self, done: Callable[[], bool], step: Step, what: str) -> None:
        within_s = float(step.get("within_s", self.within_s))

        def over() -> bool:
            return done() or (self.program is not None and self.program.status is not None)

        if not (await self.broker.until(over, within_s) and done()):
            # Messages sent before the program ended may still be on their way.
            if await self.broker.until(done, 0.3 if self._gone() else 0.0):
                return
            waited = self._gone() or f" within {within_s:g} s"
            raise Unseen(f"{what} did not come{waited}")

    # --- the program ---

    async def start(self, step: Step) -> None:
        """`start`: start the program."""
        self.program = await self._start()
        self.reusable = False

    async def signal(self, step: Step) -> None:
        """`signal = "TERM"`: send the program a signal."""
        self.reusable = False
        assert self.program is not None
        self.program.send_signal(step["signal"])

    async def exits(self, step: Step) -> None:
        """`exits = 0`: the program ends with this status."""
        within_s = float(step.get("within_s", self.within_s))
        assert self.program is not None
        status = await self.program.exits(within_s)
        if status is None:
            raise Unseen(f"the program did not end within {within_s:g} s")
        if status != step["exits"]:
            raise Unseen(f"the program ended with status {status}, expected {step['exits']}")
        await self.broker.until(lambda: False, 0.05)  # the program's last messages

    async def stays(self, step: Step) -> None:
        """`stays_s = 0.5`: the program does not end for so long."""
        assert self.program is not None
        await self.broker.until(lambda: self._gone() != "", float(step["stays_s"]))
        if self._gone():
            raise Unseen(f"the program ended too early, with status {self.program.status}")

    # --- the broker's socket ---

    async def bind(self, step: Step) -> None:
        """`bind`: the broker begins to listen."""
        await self.broker.bind()

    async def restart(self, step: Step) -> None:
        """`restart_s = 0.1`: the broker closes without GOODBYE, and another broker listens after so long."""
        self.broker.forget()
        await self.broker.close()
        self.broker.link = b""
        self.broker.inbox.clear()
        self.broker.life += "+"
        await asyncio.sleep(float(step["restart_s"]))
        self.broker.muted = False
        await self.broker.bind()

    async def down(self, step: Step) -> None:
        """`down`: the broker closes without GOODBYE, for good."""
        self.broker.forget()
        await self.broker.close()
        self.reusable = False

    async def mute(self, step: Step) -> None:
        """`mute = true`: the broker sends no more messages of its own, not even HEARTBEAT; `false` starts the
        heartbeats again.
        """
        self.broker.muted = bool(step["mute"])

    # --- messages of the broker ---

    async def welcome(self, step: Step) -> None:
        """`welcome = {options}`: send WELCOME with these options beside the usual; `extra`: further fields."""
        options = {
            "heartbeat_ms": HEARTBEAT_MS, "max_body": fabric.MAX_BODY, "life": self.broker.life, "request_ms": 30000,
            **step["welcome"],
        }  # fmt: skip
        self.broker.heartbeat_s = options["heartbeat_ms"] / 1000
        self.reusable = self.reusable and not step["welcome"]
        rest = [] if step.get("bare") else [options, *json.loads(step.get("extra", "[]"))]
        batch: list[list[Any]] = [[fabric.OPS["WELCOME"], 1, "conform.example", *rest]]
        await self.broker.say(*batch, *self._messages(step.get("and", "[]")))

    async def say(self, step: Step) -> None:
        """`say = '[[op, field, …], …]'`: send a batch; `attached`: its attachments, as texts."""
        attached = [text.encode() for text in step.get("attached", ())]
        await self.broker.say(*self._messages(step["say"]), attached=attached)

    async def frames(self, step: Step) -> None:
        """`frames = ["93 01", …]`: send these bytes; `HH*N` is a byte, N times."""
        await self.broker.send([hex_bytes(frame) for frame in step["frames"]])

    async def hello_first(self, step: Step) -> None:
        """`hello_first`: send the ERROR that this link is not known; outstanding requests become void."""
        self.broker.forget()
        await self.broker.say([fabric.OPS["ERROR"], "hello-first", "say HELLO first", None, None])

    async def request(self, step: Step) -> None:
        """`request = [JSON, …]`: send REQUESTs in one batch.

        `count` (a number, or `credit`) repeats them; `fill` puts HEARTBEATs behind them, up to so many. `as` is `bin`,
        `str`, `attached`, `shared` (all in one attachment), `wide` (all in the longest form) or `missing` (the
        attachment is left out: no answer is waited for). `token` is the first token, `stride` the distance of the
        others; `user`, `meta`, `type` and `extra` (further fields) are as given; `before` and `and` are others of the
        batch. `answer` is `shout`, `fails` or `any`. `batches`: each goes in a ZeroMQ message of its own.
        """
        texts, way = [filled(text) for text in step["request"]], step.get("as", "bin")
        count = self.broker.credit if step.get("count") == "credit" else int(step.get("count", 1))
        count_from = (
            itertools.count(int(step["token"]), int(step.get("stride", 1))) if "token" in step else self._tokens
        )
        attached: list[bytes] = [b'"UNUSED"'] * int(step.get("unused", 0))
        messages = [self._request(text, next(count_from), step, attached) for text in texts * count]
        if step.get("batches"):
            for message in messages:
                await self.broker.say(message, attached=attached)
            return
        batch = [*self._messages(step.get("before", "[]")), *messages, *self._messages(step.get("and", "[]"))]
        batch += [[fabric.OPS["HEARTBEAT"]]] * (int(step.get("fill", 0)) - len(batch))
        pack = fabric.pack_widely if way == "wide" else fabric.pack
        await self.broker.send([pack(batch), *attached])
        if step.get("void"):
            self.broker.forget()

    def _request(self, text: str, token: int, step: Step, attached: list[bytes]) -> list[Any]:
        user = None if step.get("user") == "" else step.get("user", "alice")
        meta = {"id": f"conform.example/b1-1/{token}", "attempt": 1, "scope": "client", "origin": "conform.example",
                "root": f"conform.example/b1-1/{token}", "path": []}  # fmt: skip
        given = json.loads(step.get("meta", "{}"))
        answer = step.get("answer", "shout")
        if self._sample is not None and answer != "any":
            text = str(self._sample.bad if answer == "fails" else self._sample.data)
            answer = "bad" if answer == "fails" else "good"
        body: Any = text.encode()
        way = step.get("as", "bin")
        if way == "attached" or (way == "shared" and not attached):
            attached.append(body)
        body = len(attached) if way in ("attached", "shared") else text if way == "str" else body
        body = len(attached) + 5 if way == "missing" else body
        try:
            data = json.loads(text)
        except ValueError:
            data = None
        if way == "missing":
            self.broker.void.add(token)
            self.broker.fresh = False
        else:
            self.broker.out[token] = Expected(self.broker.link, user, data, answer)
        type_ = step.get("type") or next(iter(self.broker.types), "shout")
        whole = {} if step.get("bare_meta") else {**meta, **given}
        return [fabric.OPS["REQUEST"], token, type_, body, user, whole, *json.loads(step.get("extra", "[]"))]

    def _messages(self, text: str) -> list[list[Any]]:
        names = {"type": next(iter(self.broker.types), "shout"), "life": self.broker.life}
        return [fabric.message(message, names) for message in json.loads(text)]

    # --- expected events ---

    async def first(self, step: Step) -> None:
        """`first = "HELLO"`: this was the program's first message; `where` and `check` as of `hear`."""
        heard = self.broker.first
        if heard is None or heard.name != step["first"]:
            raise Unseen(f"the first message was {heard.name if heard else 'none'}, expected {step['first']}")
        self._hold(heard, step)

    async def hear(self, step: Step) -> None:
        """`hear = "HELLO"`: this message comes next; `where` is a pattern of its fields; `new_link`: by a new link."""
        name, before = step["hear"], self.broker.link
        skipped = {"GOODBYE", *step.get("but", ())} if name == "HELLO" else set(step.get("but", ()))

        def found() -> bool:
            self.broker.inbox = [heard for heard in self.broker.inbox if heard.name not in skipped]
            return bool(self.broker.inbox)

        await self._until(found, step, name)
        heard = self.broker.inbox.pop(0)
        if heard.name != name:
            raise Unseen(f"the handler said {heard.name} {shown(heard.fields)} where {name} is due")
        if name == "HELLO":
            if step.get("new_link") and heard.link == before:
                raise Unseen("HELLO came by the old connection, expected a new one")
            self.broker.hello(heard)
        self._hold(heard, step)

    def _hold(self, heard: fabric.Heard, step: Step) -> None:
        """Compare a message with a step's pattern and rules. Raises Unseen."""
        if "where" in step:
            wrong = fault(json.loads(step["where"].replace("$served", self._served)), _padded(heard))
            if wrong is not None:
                raise Unseen(f"{heard.name}: fields{wrong}")
        for rule in step.get("check", ()):
            CHECKS[rule](heard)

    async def answered(self, step: Step) -> None:
        """`answered = true`: every outstanding request is answered, by a correct REPLY."""
        out = self.broker.out
        total = len(out)
        try:
            await self._until(lambda: not out or self._another_hello(), step, "a REPLY")
            if out:
                raise Unseen("a REPLY did not come: the program greeted again by another link")
        except Unseen as unseen:
            if not out or not str(unseen).startswith("a REPLY did not come"):
                raise
            raise Unseen(
                f"{len(out)} of {total} REQUESTs were not answered ({shown(sorted(out)[:5])}): {unseen}"
            ) from None

    async def fence(self, step: Step) -> None:
        """`fence = true`: one more request is answered: the handler lives, and has read all earlier messages."""
        await self.request({"request": [TEXT]})
        await self.answered(step)

    async def beats(self, step: Step) -> None:
        """`beats = 3`: so many more HEARTBEATs come (or EMITs and ASKs, which count as such)."""
        target = self.broker.signs + int(step["beats"])
        await self._until(lambda: self.broker.signs >= target, step, f"{step['beats']} HEARTBEATs")

    async def quiet(self, step: Step) -> None:
        """`quiet_s = 0.5`: nothing but HEARTBEAT comes for so long; `at_most = {HELLO = 1}` allows so many."""
        allowed: dict[str, int] = dict(step.get("at_most", {}))
        beats, started = self.broker.beats, time.monotonic()
        await self.broker.until(lambda: self._gone() != "" and not step.get("may_end"), float(step["quiet_s"]))
        if self._gone() and not step.get("may_end"):
            raise Unseen(f"the program did not stay{self._gone()}")
        for heard in self.broker.inbox:
            allowed[heard.name] = allowed.get(heard.name, 0) - 1
            if allowed[heard.name] < 0:
                raise Unseen(f"the handler said {heard.name} {shown(heard.fields)}, where it should be quiet")
        took_s, more = time.monotonic() - started, self.broker.beats - beats
        most = allowed.get("beats", more) * max(1.0, took_s / float(step["quiet_s"]))
        if more > most:
            raise Unseen(f"{more} HEARTBEATs came in {took_s:.1f} s, expected {most:.0f} at most")
        self.broker.inbox.clear()


def _padded(heard: fabric.Heard) -> list[Any]:
    """Return the fields of a message with None for those that were left out."""
    checks = fabric.FIELDS[heard.name][1]
    known = heard.fields[: len(checks)]
    return known + [None] * (len(checks) - len(known))


def _check_types(heard: fabric.Heard) -> None:
    types = heard.fields[3].get("types")
    if not isinstance(types, list) or not types:
        raise Unseen(f"HELLO: types is {shown(types)}, expected an array with at least one")
    for type_ in types:
        good = isinstance(type_, str) and 1 <= len(type_) <= 128 and type_.isprintable() and "," not in type_
        if not good or type_.strip() != type_:
            raise Unseen(f"HELLO: {shown(type_)} can be no message type{packed(type_)}")
        if type_ in ("dummy", "builtin") or type_.startswith("bester."):
            raise Unseen(f"HELLO: the type {type_!r} is reserved")


def _check_name(heard: fabric.Heard) -> None:
    name = heard.fields[2]
    if not 1 <= len(name) <= 128 or not name.isprintable():
        raise Unseen(f"HELLO: name is {shown(name)}, expected 1 to 128 printable characters")


def _check_credit(heard: fabric.Heard) -> None:
    credit = heard.fields[3].get("credit", 1)
    if type(credit) is not int or credit < 1:
        raise Unseen(f"HELLO: credit is {shown(credit)}, expected a positive integer")


def _check_lease(heard: fabric.Heard) -> None:
    lease_ms = heard.fields[3].get("lease_ms", 6000)
    if type(lease_ms) is not int or not 1 <= lease_ms <= 600_000:
        raise Unseen(f"HELLO: lease_ms is {shown(lease_ms)}, expected 1 to 600000")


CHECKS = {"types": _check_types, "name": _check_name, "credit": _check_credit, "lease": _check_lease}
STEPS: dict[str, Callable[[Stand, Step], Awaitable[None]]] = {
    "start": Stand.start, "signal": Stand.signal, "exits": Stand.exits, "stays_s": Stand.stays, "bind": Stand.bind,
    "restart_s": Stand.restart, "down": Stand.down, "mute": Stand.mute, "welcome": Stand.welcome, "say": Stand.say,
    "frames": Stand.frames, "hello_first": Stand.hello_first, "request": Stand.request, "hear": Stand.hear,
    "first": Stand.first, "answered": Stand.answered, "fence": Stand.fence, "beats": Stand.beats,
    "quiet_s": Stand.quiet,
}  # fmt: skip
OPTIONS = frozenset({
    "and", "answer", "as", "at_most", "attached", "bare", "bare_meta", "batches", "before", "but", "check",
    "count", "extra", "fill", "may_end", "meta", "new_link", "stride", "token", "type", "unused", "user", "void",
    "where", "within_s",
})  # fmt: skip


def verb_of(step: Step) -> str:
    """Return the verb of a step of a handler case. Raises ValueError for a step that is not well-formed."""
    return one_verb(step, STEPS, OPTIONS)


def socket_path(directory: Path, number: int) -> str:
    """Return the endpoint of the number-th broker."""
    return f"ipc://{directory}/{number}"
