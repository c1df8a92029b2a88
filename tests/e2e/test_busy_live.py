"""Handlers that are busy, stopped or stuck, in real processes: each is recognized.

The tests play all of them on one server, side by side: each waits for heartbeats, which are seconds apart.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

from tests.live import DEADLINE_S, LiveServer, RawClient, live_server, raw_handler

BUSY_S = 6.8
"""Longer than three heartbeats: a handler that is silent for so long counts as dead."""
GREEDY_S = 9.5
"""The same for a call in C, whose time depends on other processes of the machine."""
PATIENCE_S = 120.0
"""Deadline of a report: a machine that becomes busy meanwhile makes such a call many times longer."""
BUSY = f"""
import asyncio, os, time
from bester.handlers import App
app = App()

def note(message):
    with open("done", "a") as file:
        file.write(f"{{message.type}} {{message.attempt}} {{os.getpid()}}\\n")

@app.handler("blocks")
async def blocks(message):
    note(message)
    time.sleep({BUSY_S})
    return message.reply("done")

@app.handler("behind")
async def behind(message):
    return message.reply("done")
"""
GREEDY = f"""
import time
from busy import App, note
app = App()

@app.handler("greedy")
def greedy(message):
    note(message)
    begun = time.monotonic()
    sum(range(5_000_000))
    each_s = time.monotonic() - begun
    sum(range(int(5_000_000 * {GREEDY_S} / each_s)))  # one call in C, which keeps the interpreter to itself
    return message.reply("done")
"""
STOPPED = """
import asyncio
from busy import App, note
app = App()

@app.handler("stopped")
async def stopped(message):
    note(message)
    await asyncio.sleep(1.0 if message.attempt == 1 else 0.0)
    return message.reply("done")
"""
STUCK = """
import os, msgpack, zmq
HELLO = [1, 1, "handler", "raw", {"types": ["stuck"], "credit": 2}]
socket = zmq.Context.instance().socket(zmq.DEALER)
socket.linger = 0
socket.connect(os.environ["BESTER_FABRIC"])
socket.send(msgpack.packb([HELLO]))
while True:
    said = []
    if socket.poll(1000):
        for op, *fields in msgpack.unpackb(socket.recv_multipart()[0]):
            if op == 10 and fields[2] != b'"hang"':
                said.append([11, fields[0], 0, [["sendClients", [fields[3]], b'"done"']], None])
    socket.send(msgpack.packb(said or [[3]]))
"""
TOML = f"""
[handlers.busy]
app = "busy:app"
types = ["blocks", "behind"]
[handlers.greedy]
app = "greedy:app"
[handlers.stopped]
app = "stopped:app"
workers = 2
[handlers.stuck]
command = ["{sys.executable}", "stuck.py"]
timeout_s = 1
"""


async def one(server: LiveServer, *sent: tuple[str, Any]) -> list[dict[str, Any]]:
    """Send messages on a connection of their own; return the reports in the order of the messages."""
    client = await RawClient.login(server, "-".join(type_ for type_, _ in sent))
    for number, (type_, data) in enumerate(sent):
        client.submit(type_, data, str(number))
    reports: dict[str, Any] = {}
    try:
        while len(reports) < len(sent):
            frame = await client.receive(PATIENCE_S)
            if frame["header"].get("messageType") == "statusReport":
                reports[frame["payload"]["id"]] = {**frame["payload"], "status": frame["header"]["status"]}
    finally:
        await client.close()
    return [reports[str(number)] for number in range(len(sent))]


async def freeze(directory: Path) -> int:
    """Wait until a process has begun with the message of type `stopped`, and stop that process."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            lines = (directory / "done").read_text().splitlines() if (directory / "done").exists() else []
            pids = [line.split()[2] for line in lines if line.startswith("stopped ") and len(line.split()) == 3]
            if pids:
                os.kill(int(pids[0]), signal.SIGSTOP)
                return int(pids[0])
            await asyncio.sleep(0.01)


async def test_busy_stopped_and_stuck_handlers_are_recognized() -> None:
    async with live_server() as bare:  # the modules must be there before the handlers start
        directory = bare.directory
        await bare.stop()
        for name, text in (("busy", BUSY), ("greedy", GREEDY), ("stopped", STOPPED), ("stuck", STUCK)):
            (directory / f"{name}.py").write_text(text)
        head = (directory / "bester.toml").read_text()
        server = await LiveServer.start(directory, head + TOML)
        try:
            log = server.processes[0]
            for type_ in ("behind", "greedy", "stopped", "stuck"):
                await log.says(f"'{type_}'")
            await log.says("stopped.1 serves")
            await log.says("stopped.0 serves")

            async def stopped_for_a_while() -> list[dict[str, Any]]:
                """Let the process go on as soon as another one has its message: in 30 s it would be ended."""
                freezing = asyncio.create_task(freeze(directory))
                reports = await one(server, ("stopped", 1))
                os.kill(await freezing, signal.SIGCONT)
                return reports

            busy, greedy, stopped, stuck = await asyncio.gather(
                one(server, ("blocks", 1), ("behind", 2)),
                one(server, ("greedy", 1)),
                stopped_for_a_while(),
                one(server, ("stuck", "hang"), ("stuck", "hang"), ("stuck", "go")),
            )
            done = sorted(line.rpartition(" ")[0] for line in (directory / "done").read_text().splitlines())
            await log.says("stopped.1 serves" if "stopped.1 serves" in log.lines[-1] else "again: the link")
        finally:
            status = await server.stop()
        lines = "\n".join(server.processes[0].lines)
        assert status == [0], lines
        assert [report["status"] for report in busy + greedy + stopped] == ["good"] * 4, lines
        assert [report.get("reason") for report in stuck] == ["timeout", "timeout", None], lines
        assert done == ["blocks 1", "greedy 1", "stopped 1", "stopped 2"]
        assert "busy.blocks (at" in lines
        assert "held the loop for" in lines
        # A machine with less than half of a processor for the process says so, for that is the cause then.
        kept = r"greedy(\.greedy \(at .*\))? kept the interpreter to itself for|this process did not run for"
        assert re.search(rf"greedy: ({kept})", lines), lines
        assert re.search(r"stopped\.\d: this process did not run for", lines), lines
        assert "handler-stuck name='raw' types=['stuck'] places=2" in lines
        assert "handler stuck is ended, to be started again" in lines
        assert "restarted" not in lines
        assert lines.count("fallen silent") == 1


async def test_undeclared_stuck_handler_is_passed_over_until_its_answer() -> None:
    async with live_server(
        '[handlers.other]\ncommand = ["sleep", "600"]\ntypes = ["stuck"]\ntimeout_s = 1\n'
    ) as server:
        log = server.processes[0]
        async with raw_handler(server.fabric, "stuck", credit=1) as handler:
            asking = asyncio.create_task(one(server, ("stuck", "hang"), ("stuck", "wait")))
            hanging = await handler.hear(10)
            assert hanging[5]["deadline_ms"] == 1000

            async def beat() -> None:
                while True:
                    await handler.say([3])
                    await asyncio.sleep(1.0)

            beating = asyncio.create_task(beat())
            await log.says("handler-stuck name='raw' types=['stuck'] places=1")
            await log.says(f"handler 'raw' must be restarted, but process {os.getpid()} is no child of this server")
            await handler.say([11, hanging[1], 0, [], None])
            behind = await handler.hear(10)
            await handler.say([11, behind[1], 0, [], None])
            reports = await asking
            assert [report.get("reason") for report in reports] == ["timeout", None]
            await log.says("handler-unstuck name='raw'")
            beating.cancel()
