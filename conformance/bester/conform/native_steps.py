"""Define the steps of native cases: frames that clients, or other servers, send to the server under test, and frames
that they receive.

A step is a table with one verb; `STEPS` lists the verbs. `on` names the connection (`alice` by default). Texts may
contain `$alice`, `$bob` and `$carol` (users), `$echo` and `$chat` (types), `$password`, `$own` (unique to the case) and
each name that `keep` has stored; `{{n}}` is the number of a repetition, and `{{pad}}` fills a frame up.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from bester.conform.cases import Case, Step, one_verb
from bester.conform.match import fault, shown
from bester.conform.native import Connection, framed
from bester.conform.result import Unseen
from bester.conform.written import filled, hex_bytes

Opener = Callable[[str], Awaitable[Connection]]
FIRST = "alice"
LOGIN = (
    '{"header":{"scope":"client","authentication":{"username":"$user","password":"$password"}$ack},"payload":$payload}'
)
GOOD = '{"header":{"messageType":"statusReport","status":"good"},"payload":{"id":"auth_special"}}'


class RefusedLogin(Unseen):
    """Raised for a login that was answered with anything but the good report."""


class Script:
    """The run of a case: its connections, and the names that its texts may use."""

    def __init__(
        self, opener: Opener, informer: Opener, names: Mapping[str, str], within_s: float, tidy: bool = False
    ) -> None:
        self._open = opener
        self._open_informer = informer
        self._names = dict(names)
        self._within_s = within_s
        self._connections: dict[str, Connection] = {}
        self._ids = itertools.count(1)
        self._last: Any = None
        self._tidy = tidy

    async def play(self, case: Case) -> None:
        """Play a case's steps. Raises Unseen."""
        try:
            for number, step in enumerate(case.steps, 1):
                try:
                    await STEPS[verb_of(step)](self, step)
                except Unseen as unseen:
                    raise Unseen(f"step {number}: {unseen}") from None
                except OSError as error:
                    raise Unseen(f"step {number}: cannot connect: {error}") from None
        finally:
            await self.finish()

    async def finish(self) -> None:
        """Close open connections; with `tidy`, wait until the server has noticed, before another case has the same
        users.
        """
        for connection in self._connections.values():
            await (connection.leave() if self._tidy else connection.close())

    def knows_limit(self) -> bool:
        """Return whether the server announced its longest frame: the first daemon did not."""
        return any(connection.max_frame is not None for connection in self._connections.values())

    def expect(self, written: str) -> None:
        """Check that the frame found by `until` matches. Raises Unseen."""
        wrong = fault(self._pattern(written), self._last)
        if wrong is not None:
            raise Unseen(f"{wrong}: in {shown(self._last)}")

    def _on(self, step: Step) -> Connection:
        return self._connections[step.get("on", FIRST)]

    def _within(self, step: Step) -> float:
        return float(step.get("within_s", self._within_s))

    def _text(self, written: str, **more: str) -> str:
        for name, value in sorted({**self._names, **more}.items(), key=lambda item: -len(item[0])):
            written = written.replace(f"${name}", value)
        return written

    def _pattern(self, written: str) -> Any:
        return json.loads(self._text(written))

    # --- connecting ---

    async def connect(self, step: Step) -> None:
        """`connect = "alice"`: open a connection and send nothing."""
        self._connections[step["connect"]] = await self._open(step["connect"])

    async def informer(self, step: Step) -> None:
        """`informer = "alice"`: open a connection to the informer."""
        self._connections[step["informer"]] = await self._open_informer(step["informer"])

    async def login(self, step: Step) -> None:
        """`login = "alice"`: connect and log in; `on` may rename the connection; `ack`: the client will acknowledge."""
        name = step.get("on", step["login"])
        connection = self._connections[name] = await self._open(name)
        known = {"user": self._names[step["login"]], "ack": ',"ack":true' if step.get("ack") else ""}
        text = self._text(LOGIN.replace("$payload", step.get("payload", '{"type":"dummy","data":null}')), **known)
        await connection.write(framed(text.encode()))
        answer, _ = await connection.read_json(self._within(step))
        wrong = fault(json.loads(GOOD), answer)
        if wrong is not None:
            raise RefusedLogin(f"the login of {known['user']} was answered with {shown(answer)}: {wrong}")
        max_frame = answer["payload"].get("max_frame")
        if type(max_frame) is int:
            connection.max_frame = max_frame

    # --- writing ---

    async def send(self, step: Step) -> None:
        """`send = JSON`: send a frame, byte for byte as written.

        `times` repeats it, `split` writes so many bytes at a time, `behind` puts other frames into the same write.
        `pad` fills `{{pad}}` so that the frame is so many bytes longer than the longest that is taken.
        """
        connection, whole = self._on(step), b""
        for n in range(int(step.get("times", 1))):
            for written in (step["send"], *step.get("behind", ())):
                text = filled(self._text(written.replace("{{n}}", str(n)).replace("{{pad}}", "\x00")))
                if "pad" in step:
                    room = (connection.max_frame or 0) + int(step["pad"]) - len(text.encode()) + 1
                    text = text.replace("\x00", "x" * room)
                whole += framed(text.encode("utf-8", "surrogateescape"))
        await connection.write(whole, int(step.get("split", 0)))

    async def raw(self, step: Step) -> None:
        """`raw = "hex"`: write bytes as they are."""
        await self._on(step).write(hex_bytes(step["raw"]))

    async def body(self, step: Step) -> None:
        """`body = "hex"`: send a frame whose body is these bytes."""
        await self._on(step).write(framed(hex_bytes(step["body"])))

    async def half_close(self, step: Step) -> None:
        """`half_close`: stop sending."""
        self._on(step).half_close()

    async def close(self, step: Step) -> None:
        """`close`: close the connection; `reset` drops what is under way."""
        await self._connections.pop(step.get("on", FIRST)).close(bool(step.get("reset")))

    # --- expected frames ---

    async def see(self, step: Step) -> None:
        """`see = PATTERN`: the next frame matches. `times`: so many do. `has`: texts that the frame's bytes contain."""
        pattern = self._pattern(step["see"])
        for _ in range(int(step.get("times", 1))):
            frame, body = await self._on(step).read_json(self._within(step))
            wrong = fault(pattern, frame)
            if wrong is not None:
                raise Unseen(f"{wrong}: in {shown(frame)}")
            for text in step.get("has", ()):
                if filled(self._text(text)).encode() not in body:
                    raise Unseen(f"{text} is not in the frame as it stands: {shown(body)}")
            self._last = frame
        for name, path in step.get("keep", {}).items():
            self._names[name] = str(_at(self._last, path))

    async def see_all(self, step: Step) -> None:
        """`see_all = [PATTERN, …]`: the next frames are these, in any order."""
        patterns = [self._pattern(written) for written in step["see_all"]]
        while patterns:
            frame, _ = await self._on(step).read_json(self._within(step))
            found = next((pattern for pattern in patterns if fault(pattern, frame) is None), None)
            if found is None:
                raise Unseen(f"{shown(frame)} is none of {shown(patterns)}")
            patterns.remove(found)

    async def until(self, step: Step) -> None:
        """`until = PATTERN`: a frame matches, after any number that do not; `without`: none of these matches."""
        pattern, not_these = self._pattern(step["until"]), [self._pattern(one) for one in step.get("without", ())]
        for _ in range(int(step.get("most", 10_000))):
            frame, _ = await self._on(step).read_json(self._within(step))
            if fault(pattern, frame) is None:
                self._last = frame
                for name, path in step.get("keep", {}).items():
                    self._names[name] = str(_at(frame, path))
                return
            for unwanted in not_these:
                if fault(unwanted, frame) is None:
                    raise Unseen(f"{shown(frame)} came, which should not")
        raise Unseen(f"{step.get('most', 10_000)} frames came, and none is {shown(pattern)}")

    async def ends(self, step: Step) -> None:
        """`ends`: the server ends the connection, and sends nothing before that."""
        await self._on(step).ends(self._within(step))

    async def quiet(self, step: Step) -> None:
        """`quiet_s = 0.3`: nothing comes for so long."""
        await self._on(step).quiet(float(step["quiet_s"]))

    async def ping(self, step: Step) -> None:
        """`ping`: the very next frame answers a dummy that is sent now: the connection stays, and is empty."""
        id_ = f"ping-{next(self._ids)}"
        await self._on(step).write(framed(b'{"payload":{"type":"dummy","data":null,"id":"%s"}}' % id_.encode()))
        await self.see({"see": f'{{"payload":{{"id":"{id_}","type":"dummy"}}}}', **_where(step)})

    async def differ(self, step: Step) -> None:
        """`differ = ["one", "two"]`: these stored values are not the same."""
        one, two = (self._names[name] for name in step["differ"])
        if one == two:
            raise Unseen(f"{step['differ'][0]} and {step['differ'][1]} are both {one!r}, and should differ")

    async def same(self, step: Step) -> None:
        """`same = ["one", "two"]`: these stored values are the same."""
        one, two = (self._names[name] for name in step["same"])
        if one != two:
            raise Unseen(f"{step['same'][0]} is {one!r} and {step['same'][1]} is {two!r}: they should be the same")


def _where(step: Step) -> dict[str, Any]:
    return {key: step[key] for key in ("on", "within_s") if key in step}


def _at(frame: Any, path: str) -> Any:
    value = frame
    for key in path.split("/"):
        value = value.get(key) if isinstance(value, dict) else None
        if value is None:
            raise Unseen(f"{shown(frame)} has no {path}")
    return value


STEPS: dict[str, Callable[[Script, Step], Awaitable[None]]] = {
    "connect": Script.connect, "informer": Script.informer, "login": Script.login, "send": Script.send,
    "raw": Script.raw, "body": Script.body, "half_close": Script.half_close, "close": Script.close, "see": Script.see,
    "see_all": Script.see_all, "until": Script.until, "ends": Script.ends, "quiet_s": Script.quiet,
    "ping": Script.ping, "differ": Script.differ, "same": Script.same,
}  # fmt: skip
OPTIONS = frozenset({
    "ack", "behind", "has", "keep", "most", "on", "pad", "payload", "reset", "split", "times", "within_s", "without",
})  # fmt: skip


def verb_of(step: Step) -> str:
    """Return the verb of a step of a native case. Raises ValueError for a step that is not well-formed."""
    return one_verb(step, STEPS, OPTIONS)
