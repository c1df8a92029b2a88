"""`python -m bester.handlers`: real processes, their exit statuses and messages."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bester.broker.wire.messages import Emit, Error, Goodbye, Hello, Message, Outcome, Reply
from tests.e2e.broker_stand_in import PATIENCE_S, StandIn, request

APP = """
import asyncio, sys
from bester.handlers import App
app = App("mine")

@app.handler("echo")
async def echo(message):
    if message.data == "slow":
        print("begun", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
    return message.reply(message.data)
"""
WITHOUT = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("msgspec", "click", "uvloop", "argon2", "rich"):
            raise ModuleNotFoundError(f"no {name} here", name=name)

sys.meta_path.insert(0, Blocker())
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="b-"))
    (folder / "mine.py").write_text(APP)
    yield folder
    shutil.rmtree(folder)


async def start(folder: Path, *arguments: str, **environ: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *(arguments if arguments[0] in ("-c", "-m") else ("-m", "bester.handlers", *arguments)),
        cwd=folder,
        env={**{key: value for key, value in os.environ.items() if not key.startswith("BESTER_")}, **environ},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def ended(process: asyncio.subprocess.Process) -> tuple[int, str]:
    _, stderr = await asyncio.wait_for(process.communicate(), PATIENCE_S)
    assert process.returncode is not None
    return process.returncode, stderr.decode()


async def test_sigterm_sends_goodbye_finishes_requests_and_exits_0(folder: Path) -> None:
    endpoint = f"ipc://{folder}/f.sock"
    async with StandIn(endpoint) as broker:
        process = await start(folder, "mine:app", BESTER_FABRIC=endpoint, BESTER_NAME="m1", BESTER_TYPES="english")
        hello = await broker.expect(Hello)
        assert (hello.name, hello.options["types"]) == ("m1", ["english"])
        broker.send(request(1, b'"slow"', "english"))
        assert process.stdout is not None
        assert await process.stdout.readline() == b"begun\n"
        process.send_signal(signal.SIGTERM)
        await broker.expect(Goodbye)
        assert process.stdin is not None
        process.stdin.write(b"go on\n")
        assert (await broker.expect(Reply)).commands[0].body == b'"slow"'
        status, errors = await ended(process)
    assert status == 0, errors
    assert "Traceback" not in errors


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
@pytest.mark.parametrize(
    ("how", "status"),
    [
        ("asyncio.create_task(leave())", 9),
        ("asyncio.get_running_loop().call_soon(sys.exit)", 0),
        ("asyncio.get_running_loop().call_soon(sys.exit, 'enough')", 1),
    ],
)
async def test_exit_in_a_task_lets_other_requests_finish(folder: Path, how: str, status: int, loop: str) -> None:
    leaving = f"""
async def leave():
    sys.exit(9)

@app.handler("leave")
async def leaver(message):
    {how}
"""
    (folder / "mine.py").write_text(APP + leaving)
    endpoint = f"ipc://{folder}/f.sock"
    run = "from bester.handlers.runner import main; sys.exit(main(['mine:app', '--fabric', sys.argv[1]]))"
    async with StandIn(endpoint) as broker:
        without = WITHOUT if loop == "asyncio" else "import sys\n"
        process = await start(folder, "-c", without + run, endpoint)
        await broker.expect(Hello)
        broker.send(request(1, b'"slow"'))
        assert process.stdout is not None
        assert await process.stdout.readline() == b"begun\n"
        broker.send(request(2, b"null", "leave"))
        assert (await broker.expect(Reply))[:2] == (2, 0)
        await broker.expect(Goodbye)
        assert process.stdin is not None
        process.stdin.write(b"go on\n")
        reply = await broker.expect(Reply)
        assert (reply.token, reply.commands[0].body) == (1, b'"slow"')
        code, errors = await ended(process)
    assert code == status, errors
    assert "requests in hand are finished first" in errors


async def test_handler_needs_only_pyzmq_and_msgpack(folder: Path) -> None:
    endpoint = f"ipc://{folder}/f.sock"
    run = "from bester.handlers.runner import main; sys.exit(main(['mine:app', '--fabric', sys.argv[1]]))"
    async with StandIn(endpoint) as broker:
        process = await start(folder, "-c", WITHOUT + run, endpoint)
        await broker.expect(Hello)
        reply = await broker.ask(1, '{"text":"naïve", "n": 0.1}'.encode())
        assert reply.commands[0].body == '{"text":"naïve","n":0.1}'.encode()
        process.terminate()
        await broker.expect(Goodbye)
        assert (await ended(process))[0] == 0


async def test_typed_payload_without_msgspec_is_one_line(folder: Path) -> None:
    (folder / "typed.py").write_text(
        "from dataclasses import dataclass\nfrom bester.handlers import App\napp = App()\n"
        "@dataclass\nclass Letter:\n    text: str\n"
        '@app.handler("english")\nasync def english(message, data: Letter): ...\n'
    )
    run = "from bester.handlers.runner import main; sys.exit(main(['typed:app']))"
    status, errors = await ended(await start(folder, "-c", WITHOUT + run))
    assert status == 2
    assert "pip install msgspec" in errors
    assert "Traceback" not in errors


async def test_one_of_several_workers_runs_the_timers(folder: Path) -> None:
    with (folder / "mine.py").open("a") as source:
        source.write("\n@app.task\nasync def once():\n    await app.emit('echo', [])\n")
    endpoint = f"ipc://{folder}/f.sock"
    async with StandIn(endpoint) as broker:
        process = await start(folder, "mine:app", "--fabric", endpoint, "--workers", "3", "--name", "w")
        heard: list[Message] = []
        for _ in range(4):
            message = await broker.next()
            heard.append(message)
            if isinstance(message, Emit):
                broker.send(Outcome(message.token, 0, {}))
        assert sorted(hello.name for hello in broker.hellos) == ["w.0", "w.1", "w.2"]
        assert sum(isinstance(message, Emit) for message in heard) == 1
        process.terminate()
        for _ in range(3):
            await broker.expect(Goodbye)
        status, errors = await ended(process)
    assert status == 0, errors


async def test_workers_end_when_their_parent_is_killed(folder: Path) -> None:
    endpoint = f"ipc://{folder}/f.sock"
    async with StandIn(endpoint) as broker:
        process = await start(folder, "mine:app", "--fabric", endpoint, "--workers", "2")
        await broker.expect(Hello)
        await broker.expect(Hello)
        process.kill()
        await broker.expect(Goodbye)
        await broker.expect(Goodbye)
        await ended(process)


SHORT_OF_PROCESSES = """
import asyncio, errno, sys
from bester.handlers import runner, supervising
supervising.FIRST_RESTART_S = 0.05
real, calls = asyncio.create_subprocess_exec, 0
async def start(*arguments, **options):
    global calls
    calls += 1
    if calls in (2, 4, 5):
        raise RuntimeError("no more of these") if calls == 5 else OSError(errno.EAGAIN, "no more of these")
    return await real(*arguments, **options)
asyncio.create_subprocess_exec = start
sys.exit(runner.main(sys.argv[1:]))
"""
"""The start of the second worker fails, and later two attempts to start one again."""


async def test_worker_that_cannot_be_started_is_tried_again_and_the_others_go_on(folder: Path) -> None:
    with (folder / "mine.py").open("a") as source:
        source.write("\nimport os\n@app.handler('end')\nasync def end(message):\n    os._exit(3)\n")
    endpoint = f"ipc://{folder}/f.sock"
    async with StandIn(endpoint) as broker:
        arguments = ("mine:app", "--fabric", endpoint, "--workers", "2", "--name", "w")
        process = await start(folder, "-c", SHORT_OF_PROCESSES, *arguments)
        await broker.expect(Hello)
        await broker.expect(Hello)
        broker.send(request(1, b"1", "end"))
        again = await broker.expect(Hello)
        assert [hello.name for hello in broker.hellos].count(again.name) == 2
        process.terminate()
        for _ in range(2):
            await broker.expect(Goodbye)
        status, errors = await ended(process)
    assert (status, errors.count("cannot be started: no more of these; trying again in ")) == (0, 3), errors
    assert "Traceback" not in errors


HANGS = """
import asyncio, threading, time
from bester.handlers import App
app = App("hangs", threads=1)

@app.handler("thread")
def thread(message):
    threading.Event().wait()

@app.handler("elsewhere")
async def elsewhere(message):
    await asyncio.to_thread(threading.Event().wait)

@app.handler("loop")
async def loop(message):
    print("held", flush=True)
    while True:
        time.sleep(0.01)
"""
QUICKLY = (
    "import sys; from bester.handlers import runner, serving, slow_starts; {name} = 0.3; "
    "sys.exit(runner.main(sys.argv[1:]))"
)


async def test_worker_with_all_threads_hanging_exits_1(folder: Path) -> None:
    (folder / "hangs.py").write_text(HANGS)
    endpoint = f"ipc://{folder}/f.sock"
    run = "import sys; from bester.handlers import overtime, runner; overtime.USELESS_S = 0.1; "
    async with StandIn(endpoint, request_ms=100) as broker:
        process = await start(
            folder, "-c", run + "sys.exit(runner.main(sys.argv[1:]))", "hangs:app", "--fabric", endpoint
        )
        await broker.expect(Hello)
        broker.send(request(1, b"1", "thread"))
        await broker.expect(Goodbye)
        status, errors = await ended(process)
    assert status == 1
    assert "all 1 threads hang: hangs.thread (at " in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize("type_", ["thread", "elsewhere"])
async def test_exit_does_not_wait_for_a_hanging_thread(folder: Path, type_: str) -> None:
    (folder / "hangs.py").write_text(HANGS)
    endpoint = f"ipc://{folder}/f.sock"
    async with StandIn(endpoint, request_ms=100) as broker:
        process = await start(folder, "-c", QUICKLY.format(name="serving.EXIT_S"), "hangs:app", "--fabric", endpoint)
        await broker.expect(Hello)
        broker.send(request(1, b"1", type_))
        assert process.stderr is not None
        while b"over its time limit" not in await process.stderr.readline():
            pass
        process.terminate()
        status, errors = await ended(process)
    assert status == 0, errors
    assert ("hangs: a function or thread still holds this process" in errors) == (type_ == "elsewhere")


async def test_exit_does_not_wait_for_a_held_loop(folder: Path) -> None:
    (folder / "hangs.py").write_text(HANGS)
    endpoint = f"ipc://{folder}/f.sock"
    async with StandIn(endpoint) as broker:
        process = await start(folder, "-c", QUICKLY.format(name="serving.LAST_S"), "hangs:app", "--fabric", endpoint)
        await broker.expect(Hello)
        broker.send(request(1, b"1", "loop"))
        assert process.stdout is not None
        assert await process.stdout.readline() == b"held\n"
        process.terminate()
        status, errors = await ended(process)
    assert status == 1
    assert "hangs: a function or thread still holds this process" in errors


async def test_supervised_worker_with_a_hanging_loop_is_restarted(folder: Path) -> None:
    (folder / "hangs.py").write_text("from bester.handlers import overtime\novertime.USELESS_S = 0.5\n" + HANGS)
    endpoint = f"ipc://{folder}/f.sock"
    async with StandIn(endpoint, heartbeat_ms=10_000, request_ms=1000) as broker:
        process = await start(folder, "hangs:app", "--fabric", endpoint, "--workers", "2", "--name", "w")
        await broker.expect(Hello)
        await broker.expect(Hello)
        broker.send(request(1, b"1", "loop"))
        again = await broker.expect(Hello)
        assert [hello.name for hello in broker.hellos].count(again.name) == 2
        process.terminate()
        for _ in range(2):
            await broker.expect(Goodbye)
        status, errors = await ended(process)
    assert status == 0, errors
    assert "hangs.loop (at " in errors
    assert "this process ends, to be restarted" in errors


async def test_stop_signal_ends_a_start_hook_that_waits(folder: Path) -> None:
    hook = "@app.on_start\nasync def wait():\n    print('waits', flush=True)\n    await asyncio.Event().wait()\n"
    (folder / "waits.py").write_text(f"{APP}\n{hook}")
    process = await start(folder, "waits:app", "--fabric", f"ipc://{folder}/f.sock")
    assert process.stdout is not None
    assert await asyncio.wait_for(process.stdout.readline(), PATIENCE_S) == b"waits\n"
    process.terminate()
    status, errors = await ended(process)
    assert status == 0, errors
    assert "mine: ended while a start hook ran" in errors
    assert errors.count("\n") == 1


@pytest.mark.parametrize(
    "code", ["asyncio.get_running_loop().stop()", "[task.cancel() for task in asyncio.all_tasks()]"]
)
async def test_program_whose_loop_is_stopped_by_its_handler_says_so(folder: Path, code: str) -> None:
    (folder / "stops.py").write_text(f"{APP}\n@app.handler('stop')\nasync def stop(message):\n    {code}\n")
    endpoint = f"ipc://{folder}/f.sock"
    async with StandIn(endpoint) as broker:
        process = await start(folder, "stops:app", "--fabric", endpoint, "--log", "json")
        await broker.expect(Hello)
        broker.send(request(1, b"1", "stop"))
        status, errors = await ended(process)
    records = [json.loads(line) for line in errors.splitlines()]
    assert status == 1
    assert records[-1]["event"] == "ended-by-code"
    assert "stopped the event loop, or cancelled the tasks of this program" in records[-1]["text"]


FORK = """
import os
from bester.handlers import App
from bester.handlers.testing import Tester

app = App()

@app.handler("fork")
def fork(message):
    reader, writer = os.pipe()
    if os.fork() == 0:
        try:
            app.blocking.is_client("g")
        except RuntimeError as error:
            os.write(writer, str(error).encode())
        os._exit(0)
    os.wait()
    return message.reply([os.read(reader, 1000).decode(), app.blocking.is_client("u")])

print(Tester(app, clients=["u"]).run("fork", {}, user="u").commands[0].data)
"""


async def test_fork_of_an_app_asks_nothing(folder: Path) -> None:
    process = await start(folder, "-c", FORK)
    out, errors = await asyncio.wait_for(process.communicate(), PATIENCE_S)
    said = "this process is a fork of the one that runs the app, which alone may emit and ask"
    assert (out.decode(), process.returncode) == (f"['{said}', True]\n", 0), errors.decode()


async def test_slow_import_is_logged(folder: Path) -> None:
    (folder / "heavy.py").write_text("import sys\n" + APP + "\nsys.stdin.readline()\n")
    endpoint = f"ipc://{folder}/f.sock"
    async with StandIn(endpoint) as broker:
        process = await start(
            folder, "-c", QUICKLY.format(name="slow_starts.SLOW_START_S"), "heavy:app", "--fabric", endpoint
        )
        assert process.stderr is not None
        line = (await asyncio.wait_for(process.stderr.readline(), PATIENCE_S)).decode()
        assert "importing heavy:app has taken 0.3 s so far, and is at " in line
        assert "nothing is served before its end" in line
        assert process.stdin is not None
        process.stdin.write(b"go on\n")
        await broker.expect(Hello)
        process.terminate()
        assert (await ended(process))[0] == 0


@pytest.mark.parametrize("wait", ["await asyncio.to_thread(sys.stdin.readline)", "sys.stdin.readline()"])
async def test_slow_start_hook_is_logged_with_its_line(folder: Path, wait: str) -> None:
    hook = f"\n@app.on_start\nasync def open_till():\n    {wait}\n"
    (folder / "mine.py").write_text(APP + hook)
    at = f"{folder}/mine.py:{(APP + hook).count(chr(10))}"
    endpoint = f"ipc://{folder}/f.sock"
    async with StandIn(endpoint) as broker:
        process = await start(
            folder, "-c", QUICKLY.format(name="slow_starts.SLOW_START_S"), "mine:app", "--fabric", endpoint
        )
        assert process.stderr is not None
        line = "importing"  # which may be slow, too
        while "importing" in line:
            line = (await asyncio.wait_for(process.stderr.readline(), PATIENCE_S)).decode()
        assert f"the start hooks have taken 0.3 s so far, and are at {at}; nothing is served before their end" in line
        assert process.stdin is not None
        process.stdin.write(b"go on\n")
        await broker.expect(Hello)
        process.terminate()
        assert (await ended(process))[0] == 0


IN_A_CLASS = """
import signal

class Field:
    def __set_name__(self, owner, name):  # what is raised here comes wrapped, up to Python 3.11
        signal.raise_signal(signal.SIGINT)

class Record:
    field = Field()
"""


@pytest.mark.parametrize("module", [IN_A_CLASS, "import signal\nsignal.raise_signal(signal.SIGINT)\n"])
@pytest.mark.parametrize("program", [("-m", "bester.handlers"), ("-m", "bester.cli", "handler")])
async def test_ctrl_c_during_the_import_is_no_error(folder: Path, module: str, program: tuple[str, ...]) -> None:
    (folder / "stopped.py").write_text(module)
    process = await start(folder, *program, "stopped:app", BESTER_FABRIC=f"ipc://{folder}/f.sock")
    status, errors = await ended(process)
    assert (status, errors.strip()) == (130, "")


async def test_refusal_is_one_line_and_status_1(folder: Path) -> None:
    endpoint = f"ipc://{folder}/f.sock"
    async with StandIn(endpoint, refuse=Error("reserved", "bester.auth is not yours", 1)):
        status, errors = await ended(await start(folder, "mine:app", "--fabric", endpoint))
    assert status == 1
    assert f"bester: the server at {endpoint} refuses this handler: reserved: bester.auth is not yours\n" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((), "name the handler to run: MODULE:APP"),
        (("mine",), "'mine' is not MODULE:APP"),
        (("mine.py:app",), "'mine.py:app' is not MODULE:APP"),
        (("./mine:app",), "'./mine:app' is not MODULE:APP"),
        ((".mine:app",), "'.mine:app' is not MODULE:APP"),
        (("absent:app",), "there is no module 'absent' in "),
        (("mine:other",), "module 'mine' has no 'other'; did you mean mine:app?"),
        (("mine:asyncio",), "mine:asyncio is a module, not an App of bester.handlers; did you mean mine:app?"),
        (("broken:app",), "broken.py, line 1: "),
        (("number:app",), "number.py, line 3: TypeError: a handler is a function, not an int"),
        (("needy:app",), "needy.py, line 1 needs the module 'nowhere', which is not installed: pip install nowhere"),
        (("fails:app",), "fails.py, line 2: ZeroDivisionError: division by zero"),
        (("empty:app",), 'empty:app: the app has no handlers: put @app.handler("TYPE") above a function'),
        (
            ("two:app", "--types", "c"),
            "two:app: the app has no handler of 'c', only of a, b; name the types to serve: `types` in",
        ),
        (("mine:app", "--types", "c\u0007d"), "--types (or BESTER_TYPES): 'c\\x07d': a type is 1 to 128 printable"),
        (("mine:app", "--types", "x" * 129), "a type is 1 to 128 printable characters without commas"),
        (("commas:app",), "ValueError: 'a,b': a type is 1 to 128 printable characters without commas"),
        (("mine:app", "--fabric", "nonsense"), "'nonsense' is not ipc://PATH or tcp://HOST:PORT"),
        (("mine:app", "--fabric", "ipc://" + "x" * 200), "200 bytes, and a Unix socket's path has 107 at most"),
        (("mine:app", "--fabric", ""), "--fabric is empty; leave it out, or give it a value"),
        (("mine:app", "--key", ""), "--key is empty; leave it out"),
        (("mine:app", "--server-key", ""), "--server-key is empty; leave it out"),
        (("mine:app", "--key", "h.key"), "--key: links over ipc:// stay on this machine, and are never encrypted"),
        (("mine:app", "--key", "h.key", "--fabric", "tcp://127.0.0.1:1"), "--key FILE without --server-key KEY"),
        (("mine:app", "--name", ""), "--name is empty; leave it out"),
        (("mine:app", "--types", " ,"), "--types (or BESTER_TYPES) names no type; leave it out for all of the app's"),
        (("mine:app", "--workers", "0"), "--workers is a number from 1 to 256, not 0"),
        (("mychat:app", "--order", "user"), "--order is for --socket; a Python handler has @app.handler"),
        (("--socket", "h.sock"), "--socket: name its message types with --types or BESTER_TYPES"),
    ],
)
async def test_mistakes_are_one_line_with_the_remedy_and_status_2(
    folder: Path, arguments: tuple[str, ...], text: str
) -> None:
    (folder / "broken.py").write_text("def (:\n")
    (folder / "number.py").write_text("from bester.handlers import App\napp = App()\napp.handler('a')(5)\n")
    (folder / "needy.py").write_text("import nowhere\n")
    (folder / "fails.py").write_text("\nx = 1 / 0\n")
    (folder / "empty.py").write_text("from bester.handlers import App\napp = App()\n")
    (folder / "commas.py").write_text(
        "from bester.handlers import App\napp = App()\n@app.handler('a,b')\nasync def a(message): ...\n"
    )
    (folder / "two.py").write_text(
        "from bester.handlers import App\napp = App()\n"
        "@app.handler('a')\nasync def a(message): ...\n@app.handler('b')\nasync def b(message): ...\n"
    )
    status, errors = await ended(await start(folder, *arguments or ("--name", "n")))
    assert text in errors
    assert status == 2
    assert errors.startswith("bester: ")
    assert errors.count("\n") == 1


@pytest.mark.parametrize(
    ("code", "text", "status"),
    [
        ("import sys; sys.exit()", "is only imported (status 0)", 2),
        ("import sys; sys.exit(3)", "is only imported (status 3)", 1),
        ("import sys; sys.exit('no database\\nis named')", "is only imported: no database is named", 1),
        ("raise GeneratorExit", "line 1: GeneratorExit", 2),
        ("class Odd(BaseException): ...\nraise Odd('hm')", "line 2: Odd: hm", 1),
    ],
)
async def test_a_module_that_ends_the_program_as_it_is_imported_is_one_line(
    folder: Path, code: str, text: str, status: int
) -> None:
    (folder / "leaves.py").write_text(code)
    left, errors = await ended(await start(folder, "leaves:app"))
    assert left == status
    assert f"{folder / 'leaves.py'}, line" in errors
    assert errors.startswith("bester: ")
    assert errors.endswith(f"{text}\n")
    assert errors.count("\n") == 1


@pytest.mark.parametrize(
    "code",
    [
        "sys.stdin.close()",
        "sys.stdin = None",
        "sys.stdin = open('/dev/null')",
        "import os; os.dup2(os.open('/dev/null', os.O_RDONLY), 0)",
    ],
)
async def test_module_may_do_without_standard_input_and_ends_with_its_parent(folder: Path, code: str) -> None:
    """The pipe at the standard input of a child ends with the parent; the number was soon that of another file."""
    (folder / "mine.py").write_text(f"{APP}\n{code}\n")
    endpoint = f"ipc://{folder}/f.sock"
    async with StandIn(endpoint) as broker:
        process = await start(folder, "mine:app", "--fabric", endpoint, "--child", "0")
        await broker.expect(Hello)
        broker.send(request(1, b"1"))
        assert (await broker.expect(Reply)).token == 1
        assert process.stdin is not None
        process.stdin.close()
        await broker.expect(Goodbye)
        code_, errors = await ended(process)
    assert (code_, errors.count("\n")) == (0, 1), errors
