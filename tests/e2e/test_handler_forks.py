"""Copies of a handler's process: those that its functions fork, and a handler that was made before a fork."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from bester.broker.wire.messages import Hello, Reply
from tests.e2e.broker_stand_in import StandIn, request
from tests.e2e.test_handler_programs import APP, ended, folder, start

__all__ = ["folder"]


FORKS = """
import os
ends = asyncio.Queue()

def fork(message=None):
    copy = os.fork()
    if not copy:
        OVER
    status = os.waitstatus_to_exitcode(os.waitpid(copy, 0)[1])
    return message.reply(status) if message is not None else status

async def on_loop(message=None):
    return fork(message)

app.handler("plain")(fork)
app.handler("inline", inline=True)(lambda message: fork(message))
app.handler("async")(on_loop)

@app.task
async def task():
    ends.put_nowait(await on_loop())

@app.handler("task")
async def of_task(message):
    return message.reply(await ends.get())
"""


@pytest.mark.parametrize(
    ("over", "status", "last"),
    [
        ("return None", 0, "a copy of this process, made with os.fork, has returned"),
        ("sys.exit(7)", 7, ""),
        ("sys.exit('enough')", 1, "enough"),
        ("raise ValueError('in the copy')", 1, "ValueError: in the copy"),
    ],
)
async def test_forked_copy_ends_with_its_function(folder: Path, over: str, status: int, last: str) -> None:
    """The copy has the queue of the first process, whose requests must not be handled in it, too."""
    (folder / "mine.py").write_text(APP + FORKS.replace("OVER", over))
    endpoint = f"ipc://{folder}/f.sock"
    async with StandIn(endpoint) as broker:
        process = await start(folder, "mine:app", "--fabric", endpoint)
        await broker.expect(Hello)
        for token, type_ in enumerate(("plain", "inline", "async", "echo"), 1):
            broker.send(request(token, b"null", type_))
        broker.send(request(5, b"null", "task"))
        replies = [await broker.expect(Reply) for _ in range(5)]
        bodies = {reply.token: json.loads(reply.commands[0].body) for reply in replies}
        assert bodies == {1: status, 2: status, 3: status, 4: None, 5: status}
        process.send_signal(signal.SIGTERM)
        code, errors = await ended(process)
    assert code == 0, errors
    assert errors.count(last) == 4 if last else "Traceback" not in errors


STARTS_FORKED = """
import os
copies = []

@app.on_start
async def fork():
    copy = os.fork()
    if not copy:
        OVER
    copies.append(os.waitstatus_to_exitcode(os.waitpid(copy, 0)[1]))

app.handler("copies")(lambda message: message.reply(copies))
"""


@pytest.mark.parametrize(("over", "status"), [("return", 0), ("raise ValueError", 1)])
async def test_copy_forked_by_a_start_hook_ends_with_the_hook(folder: Path, over: str, status: int) -> None:
    """The copy would serve as a second handler, which nobody ends."""
    (folder / "mine.py").write_text(APP + STARTS_FORKED.replace("OVER", over))
    endpoint = f"ipc://{folder}/f.sock"
    async with StandIn(endpoint) as broker:
        process = await start(folder, "mine:app", "--fabric", endpoint)
        await broker.expect(Hello)
        broker.send(request(1, b"null", "copies"))
        assert json.loads((await broker.expect(Reply)).commands[0].body) == [status]
        process.terminate()
        assert (await ended(process))[0] == 0


MADE_BEFORE = """
from bester.handlers.worker import Worker
app.handler("inline", inline=True)(lambda message: message.reply(1))
app.handler("plain")(lambda message: message.reply(2))
over = asyncio.Event()

@app.handler("end")
async def end(message):
    over.set()

worker = Worker(app, sys.argv[1])

async def main():
    async with asyncio.timeout(60):
        await worker.prepare()
        worker.start()
        await over.wait()
        await worker.stop()

if os.fork():
    sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
asyncio.run(main())
"""


async def test_worker_made_before_its_process_was_forked_serves(folder: Path) -> None:
    endpoint = f"ipc://{folder}/f.sock"
    async with StandIn(endpoint) as broker:
        process = await start(folder, "-c", f"import os\n{APP}{MADE_BEFORE}", endpoint)
        await broker.expect(Hello)
        for token, type_ in enumerate(("inline", "plain", "echo"), 1):
            broker.send(request(token, b"null", type_))
        replies = [await broker.expect(Reply) for _ in range(3)]
        assert {reply.token: reply.commands[0].body for reply in replies} == {1: b"1", 2: b"2", 3: b"null"}
        broker.send(request(4, b"null", "end"))
        assert (await ended(process))[0] == 0
