"""A real server with ten real faults at once, and the displays that an operator has: command, page, Prometheus."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp

from bester.broker.accounts import Accounts
from tests.authorities import DAY, Authority
from tests.e2e.operator_stand import HANDLERS, Operator, page_of, secret_in
from tests.keyed import free_port, new_pair
from tests.live import BESTER, LiveServer, Process, RawClient, RawHandler, head, raw_handler, short_directory
from tests.wall_clock import WallClock

DEPLOY = Path(__file__).parents[2] / "deploy"
PROMETHEUS = shutil.which("prometheus")
DEADLINE_S = 60.0
"""For all faults to show on a busy machine; never waited out on a good day."""
AHEAD_S = 90.0
MAILBOX = 5
FLOOD = 950
"""Messages that the flooding user keeps unreported: more than the doctor's bound, and fewer than a connection's."""
SMALL = ("unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o mode=700,size=64m tmpfs "$1" && shift && exec "$@"', "sh")
"""Beginning of a command that sees a small disk in memory at the path that follows; the disk ends with the command."""
USERS = ("alice", "bob", "flo")
MORE_HANDLERS = """
import time

@app.handler("post", inline=True)
def post(message):
    return message.send_clients(["bob"], message.data)

@app.handler("slow", inline=True)
def slow(message):
    time.sleep(0.02)
    return None
"""
CONFIG = (
    head()
    + """[native.tls]
listen = "127.0.0.1:0"
cert = "{cert}"
key = "{key}"
[operator]
http = "127.0.0.1:0"
token = "operator.token"
[store]
url = "sqlite:small/store.db"
user_messages = {mailbox}
sender_share = 1
[handlers.mixed]
app = "mixed:app"
types = ["ok", "post"]
[handlers.slow]
app = "mixed:app"
[handlers.dies]
app = "mixed:app"
attempts = 1
[handlers.unfit]
app = "mixed:missing"
[handlers.hangs]
command = ["sleep", "600"]
timeout_s = 1
[servers.s2]
fabric = "ipc://{other}/data/fabric.sock"
[servers.s3]
fabric = "tcp://127.0.0.1:{port}"
key = "{wrong}"
[servers.s4]
fabric = "tcp://127.0.0.1:{nobody}"
key = "{absent}"
"""
)
OTHER = (
    head("s2", auth="open")
    + """[fabric]
listen = ["ipc://DATA_DIR/fabric.sock", "tcp://127.0.0.1:{port}"]
curve = true
[servers.s1]
fabric = "ipc://{here}/data/fabric.sock"
"""
)
WRONG, ABSENT = new_pair(), new_pair()


class Fault(NamedTuple):
    """A fault: the check that finds it, its level, words of cause and remedy; the alert, and words of its own."""

    check: str
    level: str
    cause: str
    remedy: str
    alert: str
    summary: str
    advice: str


FAULTS = (
    Fault("handler dead", "error", "no handler serves unfit", "given up: mend what its lines in the log say",
          "BesterHandlerDead", "the declared handler of unfit does not run", "its lines in the log say why"),
    Fault("handler stuck", "error", "handler raw is stuck", "see in its log where it hangs",
          "BesterHandlerStuck", "1 handlers of hangs are stuck", "start them again"),
    Fault("server away", "warning", "server s4 is away: nothing listens", "see that it runs and is reachable",
          "BesterServerAway", "server s4 cannot be reached", "`bester peers` shows the last error"),
    Fault("server key", "error", f"has another one than {WRONG.public}", "`bester keys` prints a server's key",
          "BesterServerKey", "no link to server s3, for a key is wrong", "compare with what `bester keys` prints"),
    Fault("certificate", "warning", "expires in 5.0 days", "renew it",
          "BesterCertificateEnds", "ends in 4d 23h", "renew it"),
    Fault("mailbox full", "warning", f"the mailbox of bob is full: {MAILBOX} messages", "bob must connect and read",
          "BesterMailboxFull", "1 mailboxes are full", "`bester check` names the users"),
    Fault("clock", "warning", "s ahead of this one's", "let NTP",
          "BesterClockOff", "the clock of server s2 differs by", "let NTP set"),
    Fault("flood", "warning", "user flo has ", "[native] messages_per_s",
          "BesterFlood", "one sender has ", "[native] messages_per_s"),
    Fault("dead letters", "warning", "dead letters of type dies in 10.0 min: handler-lost", "`bester dead replay`",
          "BesterDeadLetters", "messages of type dies became dead letters", "`bester dead replay`"),
)  # fmt: skip
DISK = Fault(
    "disk", "error", "MiB left", "make room",
    "BesterDiskNearlyFull", "the disk of the store has 6", "make room",
)  # fmt: skip
"""The tenth fault, where this machine lets a test mount a small disk."""


def may_mount(directory: Path) -> bool:
    """Return whether this machine lets a process have a disk of its own."""
    place = directory / "probe"
    place.mkdir()
    try:
        return subprocess.run([*SMALL, str(place), "true"], check=False, capture_output=True).returncode == 0
    except OSError:
        return False


@asynccontextmanager
async def faulty(tmp_path: Path, *, small: bool) -> AsyncIterator[Operator]:
    """Run a server with all faults; `small`: its store is on a small disk."""
    async with short_directory() as directory, AsyncExitStack() as stack:
        port = free_port()
        there = await stack.enter_async_context(other_server(directory, port))
        cert, key = Authority(tmp_path).issue("s1", end=5 * DAY)
        (directory / "mixed.py").write_text(HANDLERS + MORE_HANDLERS)
        (directory / "small").mkdir(mode=0o700)
        secret_in(directory)
        with closing(Accounts(directory / "data")) as accounts:
            for user in USERS:
                accounts.add(user, "secret")
        (directory / "bester.toml").write_text(
            CONFIG.format(
                cert=cert, key=key, other=there, port=port, wrong=WRONG.public, nobody=free_port(),
                absent=ABSENT.public, mailbox=MAILBOX,
            )
        )  # fmt: skip
        prefix = (*SMALL, str(directory / "small")) if small else ()
        process = await Process.start(*prefix, BESTER, "up", cwd=directory)
        stack.push_async_callback(process.end, signal.SIGKILL)  # it would wait for what is under way
        address = (await process.says(" serves ")).partition(" serves ")[2].split(",")[0].strip()
        server = LiveServer(directory, [process], address)
        for type_ in ("post", "slow", "dies"):
            await server.has_type(type_)
        base = page_of([await process.says("page on http://")])
        operator = Operator(server, base, await stack.enter_async_context(aiohttp.ClientSession()))
        await stack.enter_async_context(hanging(server))
        await stack.enter_async_context(flooding(server))
        await send(server, "post", MAILBOX)
        await send(server, "dies", 1)  # Prometheus may see this dead letter alone, and nothing that grows
        yield operator


async def send(server: LiveServer, type_: str, count: int) -> None:
    """Let alice send so many messages of a type, each after the report on the last."""
    alice = await RawClient.login(server, "alice")
    try:
        for number in range(count):
            alice.submit(type_, number, str(number))
            await alice.until_report(str(number))
    finally:
        await alice.close()


@asynccontextmanager
async def other_server(home: Path, port: int) -> AsyncIterator[Path]:
    """Run the server s2, whose wall clock is wrong; yield its directory."""
    async with short_directory() as directory:
        clock = WallClock(directory / "clock", AHEAD_S)
        (directory / "bester.toml").write_text(OTHER.format(port=port, here=home))
        process = await Process.start(BESTER, "up", cwd=directory, env=clock.env)
        try:
            await process.says(" serves ")
            yield directory
        finally:
            await process.end()


@asynccontextmanager
async def hanging(server: LiveServer) -> AsyncIterator[RawHandler]:
    """Link a handler that takes a message, and never answers; its heartbeats go on, as those of a thread do."""
    async with raw_handler(server.fabric, "hangs", credit=1) as handler:
        handler.welcome = False  # it does not end in peace
        alice = await RawClient.login(server, "alice")
        alice.submit("hangs", 1, "hangs")

        async def beat() -> None:
            while True:
                await handler.say([3])
                await asyncio.sleep(1.0)

        beating = asyncio.create_task(beat())
        try:
            yield handler
        finally:
            beating.cancel()
            await asyncio.wait([beating])
            await alice.close()


@asynccontextmanager
async def flooding(server: LiveServer) -> AsyncIterator[None]:
    """Let a user keep FLOOD messages unreported, however many have been handled."""
    flo = await RawClient.login(server, "flo")

    async def flood() -> None:
        for number in range(FLOOD):
            flo.submit("slow", number, str(number))
        while True:
            await flo.receive()
            number += 1
            flo.submit("slow", number, str(number))

    running = asyncio.create_task(flood())
    try:
        yield
    finally:
        running.cancel()
        await asyncio.wait([running])
        await flo.close()


def missing(faults: tuple[Fault, ...], rows: list[dict[str, str]]) -> list[str]:
    """Return the checks of the faults that no finding among the rows names with its remedy."""
    return [
        fault.check
        for fault in faults
        if not any(
            (row["check"], row["level"]) == (fault.check, fault.level)
            and fault.cause in row["text"]
            and fault.remedy in row["remedy"]
            for row in rows
        )
    ]


def silent(faults: tuple[Fault, ...], alerts: list[dict[str, Any]]) -> list[str]:
    """Return the alerts on the faults that do not fire, or do not name cause and remedy."""
    return [
        fault.alert
        for fault in faults
        if not any(
            (alert["labels"]["alertname"], alert["state"]) == (fault.alert, "firing")
            and fault.summary in alert["annotations"]["summary"]
            and fault.advice in alert["annotations"]["remedy"]
            for alert in alerts
        )
    ]


async def checked(operator: Operator, *, small: bool) -> tuple[int, list[dict[str, str]]]:
    """Return the status of `bester check`, and its findings; it runs where the server's disks are."""
    server = operator.server
    where = ("nsenter", "-t", str(server.processes[0].process.pid), "-m", "-U", "--preserve-credentials")
    prefix = (*where, f"--wd={server.directory}") if small else ()
    process = await Process.start(*prefix, BESTER, "check", "--json", cwd=server.directory)
    status = await asyncio.wait_for(process.process.wait(), DEADLINE_S)
    await process.end()
    return status, [json.loads(line) for line in process.lines]


@asynccontextmanager
async def prometheus(operator: Operator, home: Path) -> AsyncIterator[str]:
    """Run Prometheus with the configuration of deploy/README.md and the rules of deploy/, once a second and without
    their waits; yield the address of its API."""
    assert PROMETHEUS is not None
    readme = (DEPLOY / "README.md").read_text()
    config = readme.partition("# prometheus.yml\n")[2].partition("```")[0].replace("127.0.0.1:2227", operator.base[7:])
    config = config.replace("operator.token", str(operator.server.directory / "operator.token"))
    (home / "prometheus.yml").write_text("global: {scrape_interval: 1s, evaluation_interval: 1s}\n" + config)
    rules = (DEPLOY / "alerts.yml").read_text()
    (home / "alerts.yml").write_text(re.sub(r"for: \w+$", "for: 0s", rules, flags=re.MULTILINE))
    listen = f"127.0.0.1:{free_port()}"
    process = await Process.start(
        PROMETHEUS, f"--web.listen-address={listen}", f"--storage.tsdb.path={home}/tsdb",
        f"--config.file={home}/prometheus.yml", cwd=home,
    )  # fmt: skip
    try:
        await process.says("Server is ready")
        yield f"http://{listen}/api/v1"
    finally:
        await process.end(signal.SIGTERM)


async def fires(api: str, faults: tuple[Fault, ...]) -> None:
    """Wait until there is an alert on each fault."""
    left: list[str] = []
    async with aiohttp.ClientSession() as session:
        try:
            async with asyncio.timeout(DEADLINE_S):
                while True:
                    async with session.get(f"{api}/alerts") as answer:
                        left = silent(faults, (await answer.json())["data"]["alerts"])
                    if not left:
                        return
                    await asyncio.sleep(0.2)
        except TimeoutError:
            raise AssertionError(f"no alert: {left}") from None
