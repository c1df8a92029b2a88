"""Run native cases against a running server, after probing what the server offers.

If any password is accepted, each case has its own users, and cases run concurrently. If the server has accounts, each
given user is lent to one case at a time, because a message goes to every connection of its user.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from bester.conform.cases import Case
from bester.conform.native import Connection, framed
from bester.conform.native_steps import FIRST, RefusedLogin, Script
from bester.conform.result import Result, Unseen
from bester.conform.runner import judged, run

USERS = ("alice", "bob", "carol")
"""Names of the users in the cases."""


@dataclass(frozen=True, slots=True)
class Server:
    """The server under test, and its means. `echo` is a type whose handler sends the data back, `chat` a type that
    takes `{"to": [USER, …], "text": TEXT}`.
    """

    host: str
    port: int
    users: tuple[str, ...] = ()
    password: str = "conform"  # noqa: S105 (with open accounts any password will do)
    echo: str = "echo"
    chat: str = "chat"
    informer: str | None = None
    slow: bool = False


class NativeSide:
    """A run against one server."""

    def __init__(self, server: Server, within_s: float) -> None:
        self._server = server
        self._within_s = within_s
        self._run = secrets.token_hex(4)
        self._free = list(server.users)
        self._dirty = set(server.users)  # users with messages that may still be queued, from this run or before
        self._freed = asyncio.Condition()
        self.lacks: dict[str, str] = {}
        """Capabilities that the server lacks, each with the reason why a case that needs it is skipped."""

    async def _connect(self, name: str) -> Connection:
        return await Connection.open(self._server.host, self._server.port, name)

    async def _inform(self, name: str) -> Connection:
        return await Connection.open_unix(str(self._server.informer), name)

    # --- capabilities of the server ---

    async def look(self) -> None:
        """Find out the server's capabilities. Raises Unseen where nobody can log in, OSError where nothing listens."""
        stranger = await self._status(f"nobody-{self._run}", secrets.token_hex(8))
        self.lacks["open" if stranger != "good" else "accounts"] = (
            "only accounts may log in" if stranger != "good" else "everybody may log in, with any password"
        )
        if "open" in self.lacks and not self._server.users:
            raise Unseen(
                "only accounts may log in; name some with --user (three play all), the password in BESTER_PASSWORD"
            )
        if self._server.informer is None:
            self.lacks["informer"] = "--informer PATH names the socket"
        if not self._server.slow:
            self.lacks["slow"] = "takes half a minute; --slow plays it"
        async with self._lent(1) as names:
            status = await self._status(names["alice"], self._server.password)
            if status != "good":
                raise Unseen(f"{names['alice']} cannot log in: {status}")
            await self._look_at_types(names)
        await self._look_at_federation()

    async def _status(self, user: str, password: str) -> str:
        script = Script(self._connect, self._inform, {"alice": user, "password": password}, self._within_s)
        try:
            await script.login({"login": "alice"})
        except RefusedLogin as refused:
            return str(refused)
        except Unseen as unseen:
            raise Unseen(f"this is no server of the native protocol, or it is hung: {unseen}") from None
        finally:
            await script.finish()
        return "good"

    async def _look_at_types(self, names: dict[str, str]) -> None:
        data = {"echo": '"?"', "chat": '{"to":["$alice"],"text":"?"}'}
        for kind, text in data.items():
            script = Script(self._connect, self._inform, names, self._within_s)
            try:
                await script.login({"login": FIRST})
                if not script.knows_limit():
                    self.lacks["bester"] = "a server of the first kind: it does not say max_frame"
                await script.send({"send": f'{{"payload":{{"type":"${kind}","data":{text},"id":"look"}}}}'})
                await script.until({"until": '{"payload":{"id":"look"}}'})
                script.expect('{"header":{"status":"good"}}')
            except Unseen:
                self.lacks[kind] = f"type {names[kind]!r} is not served as these cases need it; --{kind} names another"
            finally:
                await script.finish()

    async def _look_at_federation(self) -> None:
        connection = await self._connect("server")
        try:
            message = (
                f'{{"header":{{"scope":"server"}},"payload":{{"type":"{self._server.echo}","data":1,"id":"look"}}}}'
            )
            await connection.write(framed(message.encode()))
            answer, _ = await connection.read_json(self._within_s)
        finally:
            await connection.close()
        barred = answer.get("payload", {}).get("reason") in ("not-allowed", "no-handler")
        self.lacks["federation" if barred else "closed"] = (
            "servers that are not listed may not send here" if barred else "every server may send here"
        )

    # --- playing ---

    @asynccontextmanager
    async def _lent(self, count: int) -> AsyncIterator[dict[str, str]]:
        names = {
            "password": self._server.password,
            "echo": self._server.echo,
            "chat": self._server.chat,
            "run": self._run,
        }
        if "open" not in self.lacks:
            own = secrets.token_hex(4)
            yield {**names, **{user: f"{user}-{own}" for user in USERS}}
            return
        async with self._freed:
            await self._freed.wait_for(lambda: len(self._free) >= count)
            mine = [self._free.pop() for _ in range(count)]
        try:
            for user in self._dirty.intersection(mine):
                await self._empty(user, names)
            yield {**names, **dict(zip(USERS, mine, strict=False))}
        finally:
            self._dirty.update(mine)
            async with self._freed:
                self._free.extend(mine)
                self._freed.notify_all()

    async def _empty(self, user: str, names: dict[str, str]) -> None:
        """Receive all queued messages of a user: a message to the user itself comes behind all of them."""
        if "chat" in self.lacks:
            return
        known = {**names, "alice": user, "own": secrets.token_hex(6)}
        script = Script(self._connect, self._inform, known, self._within_s, tidy=True)
        try:
            await script.login({"login": "alice"})
            await script.send(
                {"send": '{"payload":{"type":"$chat","data":{"to":["$alice"],"text":"$own"},"id":"$own"}}'}
            )
            await script.until({"until": '{"payload":{"data":{"text":"$own"}}}'})
        except Unseen:
            return  # the case that is lent this user reports the fault
        finally:
            await script.finish()
        self._dirty.discard(user)

    def missing(self, case: Case) -> str | None:
        """Return why a case cannot be played here, None where it can."""
        for need in sorted(case.needs):
            if need in self.lacks:
                return self.lacks[need]
        if "open" in self.lacks and case.users > len(self._server.users):
            return f"needs {case.users} users; --user names them"
        return None

    async def play(self, case: Case) -> Result:
        """Play one case."""
        why = self.missing(case)
        if why is not None:
            return Result(case, "skip", 0.0, why)
        async with self._lent(case.users) as names:
            own = {**names, "own": secrets.token_hex(6)}
            script = Script(self._connect, self._inform, own, self._within_s, tidy="open" in self.lacks)
            return await judged(case, lambda: script.play(case), list)


async def conform(
    server: Server, cases: Sequence[Case], told: Callable[[Result], None], *, within_s: float = 10.0, jobs: int = 16
) -> list[Result]:
    """Play cases against a server. Raises Unseen where nobody can log in, OSError where nothing listens."""
    side = NativeSide(server, within_s)
    await side.look()
    return await run(cases, side.play, told, jobs)
