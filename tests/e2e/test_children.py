"""Handlers as child processes: started, logged, started again, and never left behind."""

import asyncio
import errno
import gc
import inspect
import json
import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import uvloop

from bester.bridge.children.output import Output
from bester.bridge.children.plan import Child, plan
from bester.broker import config_file
from bester.broker.logs import JsonFormatter
from bester.broker.wire.codes import ConfigError
from tests.descriptors import free_descriptors
from tests.e2e.children_stand import DEADLINE_S, STEADY, directory, log_everything, python, running, until

__all__ = ["directory", "log_everything"]  # fixtures


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


async def test_children_get_their_environment_and_run_in_the_directory(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    child = python("chat", "import os; print(os.environ['BESTER_NAME'], os.getcwd()); " + STEADY, BESTER_NAME="chat")
    async with running(directory, child):
        await until(lambda: "chat | here" in caplog.text)
        assert f"chat | chat {directory}" in caplog.text


async def test_killed_child_is_started_again(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with running(directory, python("a", STEADY)) as children:
        await until(lambda: "a | here" in caplog.text)
        first = children.pids["a"]
        os.kill(first, signal.SIGKILL)
        await until(lambda: children.pids.get("a") not in (None, first))
        await until(lambda: caplog.text.count("a | here") == 2)
        assert "handler a was ended by SIGKILL; starting it again in 0.1 s" in caplog.text


async def test_child_that_ends_at_once_is_started_ever_more_slowly(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(directory, python("a", "raise SystemExit(3)")):
        await until(lambda: "ended with exit status 3; starting it again in 0.4 s" in caplog.text)
    waits = [line.rpartition(" in ")[2] for line in caplog.messages if "starting it again" in line]
    assert waits[:3] == ["0.1 s", "0.2 s", "0.4 s"]


async def test_old_complaint_is_no_cause(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = {"level": "error", "event": "handler-failed", "text": "on message 3"}
    program = f"print('error: old'); print({json.dumps(log)!r}); [print('line', n) for n in range(30)]; exit(3)"
    async with running(directory, python("a", program)):
        await until(lambda: "handler a ended" in caplog.text)
    assert "handler a ended with exit status 3: line 29; starting it again in 0.1 s" in caplog.messages


async def test_cause_of_an_end_is_one_line(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    broken = (
        "import sys; print('here'); print('shop: cannot open the till', file=sys.stderr); print('bye'); sys.exit(1)"
    )
    async with running(directory, python("shop", broken), python("raises", "{}['till']"), python("quiet", "exit(1)")):
        await until(lambda: "handler shop ended" in caplog.text and "handler quiet ended" in caplog.text)
        await until(lambda: "handler raises ended" in caplog.text)
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert "handler shop ended with exit status 1: shop: cannot open the till; starting it again in 0.1 s" in warnings
    assert "handler raises ended with exit status 1: KeyError: 'till'; starting it again in 0.1 s" in warnings
    assert "handler quiet ended with exit status 1; starting it again in 0.1 s" in warnings


async def test_end_without_a_line_before_a_handler_serves_is_told_from_a_later_one(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    early = "while it was imported or started, without a line"
    programs = {"exits": "import os; os._exit(7)", "crashes": "import os; os.kill(os.getpid(), 11)"}
    children = [replace(python(name, program), lifeline=True) for name, program in programs.items()]
    async with running(directory, *children):
        await until(lambda: "handler exits ended" in caplog.text and "handler crashes was ended" in caplog.text)
        assert f"handler exits ended with exit status 7 {early}; starting it again in 0.1 s" in caplog.messages
        assert f"handler crashes was ended by SIGSEGV {early}; starting it again in 0.1 s" in caplog.messages
    record = json.dumps({"event": "slow-start-hook", "level": "warning", "text": "slow"})
    says = replace(python("says", f"import os; print({record!r}); os._exit(7)"), lifeline=True)
    async with running(directory, says):
        await until(lambda: "handler says ended with exit status 7; starting it again in 0.1 s" in caplog.messages)
    served = replace(python("serves", "input()"), lifeline=True)
    async with running(directory, served) as group:
        await until(lambda: "serves" in group.pids)
        group.served("serves", ())
        os.kill(group.pids["serves"], signal.SIGTERM)
        await until(lambda: "handler serves was ended by SIGTERM; starting it again in 0.1 s" in caplog.messages)


@pytest.mark.parametrize(("number", "name"), [(40, "signal 40"), (63, "signal 63"), (signal.SIGUSR1, "SIGUSR1")])
async def test_child_ended_by_any_signal_is_restarted_and_stops_no_other(
    directory: Path, caplog: pytest.LogCaptureFixture, number: int, name: str
) -> None:
    async with running(
        directory, python("a", STEADY), Child("odd", ("sh", "-c", f"kill -{number} $$"), {})
    ) as children:
        await until(lambda: "a | here" in caplog.text)
        first = children.pids["a"]
        await until(lambda: children.lives["odd"].count >= 3)
        assert f"handler odd was ended by {name}; starting it again in 0.1 s" in caplog.messages
        assert (children.pids["a"], alive(first)) == (first, True)


async def test_child_without_descriptors_is_restarted_and_stops_no_other(
    directory: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(directory, python("a", STEADY), python("b", STEADY)) as children:
        await until(lambda: "a | here" in caplog.text and "b | here" in caplog.text)
        first, other = children.pids["a"], children.pids["b"]
        pipes, real = 0, os.pipe

        def full() -> tuple[int, int]:
            """Fail as the first pipe of one life and as the second of the next."""
            nonlocal pipes
            pipes += 1
            if pipes in (1, 3):
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return real()

        monkeypatch.setattr("bester.bridge.children.pipes.os.pipe", full)
        os.kill(first, signal.SIGKILL)
        await until(lambda: caplog.text.count("a | here") == 2)
        assert caplog.text.count("handler a cannot be started: Too many open files; starting it again") == 2
        assert children.pids["b"] == other


async def test_socket_that_cannot_be_looked_at_stops_no_other_child(
    directory: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_served(path: Path) -> bool:
        monkeypatch.undo()
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr("bester.bridge.children.supervisor.is_served", is_served)
    program = Child("p", (sys.executable, "-c", STEADY), {}, serves=directory / "p.sock")
    async with running(directory, program, python("a", STEADY)) as children:
        await until(lambda: "a | here" in caplog.text and "p | here" in caplog.text)
        assert "handler p cannot be kept running: OSError: " in caplog.text
        assert children.lives["a"].count == 1


@pytest.mark.parametrize("error", [RuntimeError("odd"), OSError(errno.EMFILE, os.strerror(errno.EMFILE))])
async def test_any_fault_in_one_life_ends_that_life_alone(
    directory: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def output(name: str) -> Output:
        monkeypatch.undo()
        raise error

    async with running(directory, python("a", STEADY), python("b", STEADY)) as children:
        await until(lambda: "a | here" in caplog.text and "b | here" in caplog.text)
        first, other = children.pids["a"], children.pids["b"]
        monkeypatch.setattr("bester.bridge.children.supervisor.Output", output)
        os.kill(first, signal.SIGKILL)
        await until(lambda: caplog.text.count("a | here") == 2)
        assert f"cannot be kept running: {type(error).__name__}: {error}; starting it again in" in caplog.text
        assert children.pids["b"] == other
    assert "Traceback" not in caplog.text


async def test_output_is_logged_at_once(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with running(directory, python("a", "print('soon'); import time; time.sleep(600)")):
        await until(lambda: "a | soon" in caplog.text)


async def test_log_record_of_a_child_keeps_its_fields(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    lines = [
        {"at": "then", "level": "warning", "from": "shop", "event": "late", "text": "late by 3", "order": 5},
        {
            "level": "error",
            "from": "handlers",
            "event": "failed",
            "error": "Traceback\n  x\nKeyError: 'y'",
            "name": "n",
        },
        {"level": "debug", "event": "tick", "n": "x" * 20_000, "handler": "another"},
        {"level": "loud", "event": "no level"},
        {"level": "info", "text": "no event"},
        {"level": "info", "event": 3},
        [1, 2],
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines) + "{ no json\n" + "[" * 20_000 + "\n"
    program = f"import sys; sys.stdout.write({text!r}); sys.stdout.flush(); " + STEADY
    async with running(directory, python("a", program)):
        await until(lambda: "a | here" in caplog.text)
    rows = [json.loads(JsonFormatter().format(record)) for record in caplog.records if record.name.endswith("children")]
    late, failed, tick, *raw = rows
    assert {key: late[key] for key in list(late)[1:]} == {
        "level": "warning", "from": "bridge.children", "event": "late", "text": "late by 3", "handler": "a", "order": 5,
        "logger": "shop",
    }  # fmt: skip
    assert (failed["level"], failed["event"], failed["error"]) == ("error", "failed", "Traceback\n  x\nKeyError: 'y'")
    assert (failed["handler"], failed["name"], "text" in failed) == ("a", "n", False)
    assert (tick["level"], tick["event"], len(tick["n"])) == ("debug", "tick", 300)
    assert (tick["handler"], tick["handler_"]) == ("a", "another")
    assert {(row["level"], row["event"], row["handler"]) for row in raw} == {("info", "output", "a")}
    assert [row["text"] for row in raw[:5]] == [*map(json.dumps, lines[3:]), "{ no json"]
    assert "a | late by 3" in caplog.messages
    assert "a | failed name='n'" in caplog.messages


async def test_child_that_cannot_be_started_affects_no_other(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with running(directory, Child("gone", (str(directory / "gone"),), {}), python("a", STEADY)):
        await until(lambda: "handler gone cannot be started: No such file or directory" in caplog.text)
        await until(lambda: "a | here" in caplog.text)


@pytest.mark.parametrize("left", [0, 1])
async def test_where_descriptors_are_short_a_child_is_tried_again_and_the_others_go_on(
    directory: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, left: int
) -> None:
    real, failing = os.pipe, False

    def pipe() -> tuple[int, int]:
        nonlocal failing, left
        if failing and "children" in inspect.stack(0)[1].filename:
            if not left:
                failing = False
                raise OSError(errno.EMFILE, "Too many open files")
            left -= 1
        return real()

    monkeypatch.setattr(os, "pipe", pipe)
    async with running(directory, python("a", STEADY), python("b", STEADY)) as children:
        await until(lambda: caplog.text.count("here") == 2)
        pids, descriptors = dict(children.pids), len(os.listdir("/proc/self/fd"))
        failing = True
        os.kill(pids["b"], signal.SIGKILL)
        await until(lambda: caplog.text.count("here") == 3)
        assert children.pids["a"] == pids["a"]
        assert children.pids["b"] != pids["b"]
        await until(lambda: len(os.listdir("/proc/self/fd")) <= descriptors)
    assert "handler b cannot be started: Too many open files; starting it again in " in caplog.text


@pytest.mark.parametrize("free", [6, 8, 10])
def test_want_of_descriptors_is_a_line_and_no_traceback_of_the_loop(
    directory: Path, caplog: pytest.LogCaptureFixture, free: int
) -> None:
    """uvloop, which begins with a process that it cannot start, prints tracebacks as it drops the process."""

    async def story() -> None:
        async with running(directory, python("a", STEADY)) as children:
            await until(lambda: caplog.text.count("here") == 1)
            with free_descriptors(free):
                os.kill(children.pids["a"], signal.SIGKILL)
                await until(lambda: "handler a cannot be started: Too many open files" in caplog.text)
            await until(lambda: caplog.text.count("here") == 2)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(story())
    gc.collect()  # what was dropped is reported here, and fails the test


async def test_where_a_thread_is_missing_a_child_is_tried_again_and_the_others_go_on(
    directory: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop of asyncio that has a thread for each process."""

    async def start(*arguments: str, **options: Any) -> asyncio.subprocess.Process:
        monkeypatch.undo()
        raise RuntimeError("can't start new thread")

    async with running(directory, python("a", STEADY), python("b", STEADY)) as children:
        await until(lambda: caplog.text.count("here") == 2)
        pids = dict(children.pids)
        monkeypatch.setattr(asyncio, "create_subprocess_exec", start)
        os.kill(pids["b"], signal.SIGKILL)
        await until(lambda: caplog.text.count("here") == 3)
        assert children.pids["a"] == pids["a"]
    assert "handler b cannot be started: can't start new thread; starting it again in " in caplog.text


async def test_stop_lets_a_child_finish(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    polite = "import os, signal; signal.signal(15, lambda *_: (os.write(1, b'bye\\n'), os._exit(0))); " + STEADY
    async with running(directory, python("a", polite)) as children:
        await until(lambda: "a | here" in caplog.text)
        pid = children.pids["a"]
    assert "a | bye" in caplog.text
    assert not alive(pid)
    assert "starting it again" not in caplog.text


async def test_stop_kills_a_deaf_child_and_its_processes(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    deaf = "import signal; signal.signal(15, signal.SIG_IGN); "
    parent = deaf + "import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', sys.argv[1]]); "
    child = Child("a", (sys.executable, "-c", parent + "print(p.pid, flush=True); " + STEADY, deaf + STEADY), {})
    async with running(directory, child) as children:
        await until(lambda: caplog.text.count("a | here") == 2)
        pids = [children.pids["a"]]
        pids += [int(word) for line in caplog.messages if (word := line.removeprefix("a | ")).isdigit()]
        assert len(pids) == 2
        await children.stop(grace_s=0.1)
        assert "is killed" in caplog.text
        await until(lambda: not any(map(alive, pids)))


async def test_restart_ends_a_child_and_starts_another(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with running(directory, python("a", STEADY), python("b", STEADY)) as children:
        await until(lambda: "a | here" in caplog.text and "b | here" in caplog.text)
        first, other = children.pids["a"], children.pids["b"]
        assert children.restart(first, "it hangs")
        children.restart(first, "it hangs")  # once is enough, and it may have ended by now
        await until(lambda: caplog.text.count("a | here") == 2)
        assert children.pids["b"] == other
    assert caplog.text.count("handler a is ended, to be started again: it hangs") == 1
    assert "handler a was ended by SIGTERM; starting it again in 0.1 s" in caplog.text


async def test_restart_finds_a_child_by_its_grandchildren(
    directory: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bester.bridge.children.supervisor.RESTART_GRACE_S", 0.1)
    deaf = "import os, signal; signal.signal(15, signal.SIG_IGN); print('pid', os.getpid(), flush=True); " + STEADY
    spawn = "import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', sys.argv[1]]); p.wait()"
    child = Child("a", (sys.executable, "-c", spawn, deaf), {})

    def inner() -> list[int]:
        return [int(line.removeprefix("a | pid ")) for line in caplog.messages if line.startswith("a | pid ")]

    async with running(directory, child) as children:
        await until(lambda: len(inner()) == 1)
        os.kill(inner()[0], signal.SIGSTOP)
        assert children.restart(inner()[0], "it is stopped")
        await until(lambda: len(inner()) == 2)
        assert not alive(inner()[0])
        assert children.restart(inner()[1], "it is deaf")
        await until(lambda: len(inner()) == 3)
        assert not alive(inner()[1])


async def test_restart_of_a_foreign_process_is_refused(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    stranger = subprocess.Popen([sys.executable, "-c", STEADY], stdout=subprocess.DEVNULL)
    try:
        async with running(directory, python("a", STEADY)) as children:
            await until(lambda: "a | here" in caplog.text)
            assert not children.restart(stranger.pid, "it hangs")
            assert not children.restart(os.getpid(), "it hangs")
            assert stranger.poll() is None
            stranger.kill()
            stranger.wait()
            assert not children.restart(stranger.pid, "it hangs")  # the process is gone
    finally:
        stranger.kill()
        stranger.wait()
    assert "to be started again" not in caplog.text


async def test_long_and_binary_lines_are_logged_in_pieces(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    noisy = "import sys; sys.stdout.buffer.write(b'x' * 100_000 + b'\\xff\\n'); print('end', flush=True); " + STEADY
    async with running(directory, python("a", noisy)):
        await until(lambda: "a | here" in caplog.text)
    text = "".join(line.removeprefix("a | ") for line in caplog.messages)
    assert text.startswith("x" * 100_000 + "\N{REPLACEMENT CHARACTER}end")
    assert max(map(len, caplog.messages)) < 5000


PARENT = """
import asyncio, sys
from dataclasses import replace
from pathlib import Path
from bester.bridge.children.plan import Child
from bester.bridge.children.supervisor import Children

async def main():
    deaf = "import signal, sys, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)"
    spawn = "import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', sys.argv[1]]); p.wait()"
    one = Child("one", (sys.executable, "-c", deaf), {})
    two = Child("two", (sys.executable, "-c", spawn, deaf), {})
    children = Children([one, two], Path.cwd())
    await children.start()
    while len(children.pids) < 2:
        await asyncio.sleep(0.01)
    print(*children.pids.values(), flush=True)
    await asyncio.sleep(600)

if sys.argv[1] == "uvloop":
    import uvloop
    uvloop.run(main())
else:
    asyncio.run(main())
"""


def in_groups(pids: list[int]) -> list[int]:
    """Return every living process in the groups that these processes lead."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and alive(int(entry.name)):
            try:
                if os.getpgid(int(entry.name)) in pids:
                    found.append(int(entry.name))
            except ProcessLookupError:
                continue
    return found


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_children_and_grandchildren_die_with_a_parent_that_is_killed(directory: Path, loop: str) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, loop], stdout=subprocess.PIPE, text=True, cwd=directory)
    try:
        assert parent.stdout is not None
        pids = [int(word) for word in parent.stdout.readline().split()]
        await until(lambda: len(in_groups(pids)) == 3)
    finally:
        parent.kill()
        parent.communicate()
    await until(lambda: not in_groups(pids))


CONFIG = """
[handlers.chat]
app = "mychat:app"
workers = 2
[handlers.node]
types = ["a", "b"]
command = ["./run.sh", "x"]
[handlers.old]
socket = "old.sock"
"""


def test_plan_of_a_configuration(directory: Path) -> None:
    (directory / "run.sh").write_text("#!/bin/sh\n")
    (directory / "run.sh").chmod(0o755)
    (directory / "bester.toml").write_text(CONFIG)
    (directory / "mychat.py").touch()
    children = plan(config_file.load(directory / "bester.toml"), "ipc:///x")
    assert [child.name for child in children] == ["chat.0", "chat.1", "node", "old"]
    assert children[0].argv[1:] == ("-m", "bester.handlers", "mychat:app", "--log", "json", "--child", "0")
    assert children[2].argv == (str(directory / "run.sh"), "x")
    assert children[2].environment == {
        "BESTER_FABRIC": "ipc:///x", "BESTER_TYPES": "a,b", "BESTER_NAME": "node",
        "BESTER_DATA": str(directory / "bester-data/handlers/node"),
    }  # fmt: skip
    assert children[0].environment["BESTER_DATA"] == children[1].environment["BESTER_DATA"]  # of all workers
    assert children[3].argv[2:7] == ("bester.handlers", "--socket", str(directory / "old.sock"), "--order", "user")


def test_missing_program_is_a_config_error(directory: Path) -> None:
    (directory / "bester.toml").write_text('[handlers.a]\ncommand = ["no-such-program-here"]\n')
    config = config_file.load(directory / "bester.toml")
    with pytest.raises(ConfigError, match=r"\[handlers\.a\] command: no program 'no-such-program-here' is found"):
        plan(config, "ipc:///x")


def test_missing_module_is_a_config_error(directory: Path) -> None:
    (directory / "box").mkdir()
    (directory / "box" / "chat.py").touch()
    for app in ("nosuchmodule:app", "box.nosuch:app", "box.chat.nosuch:app"):
        (directory / "bester.toml").write_text(f'[handlers.a]\napp = "{app}"\n')
        config = config_file.load(directory / "bester.toml")
        with pytest.raises(ConfigError, match=r"\[handlers\.a\] app: there is no module .* in /.*; correct its name"):
            plan(config, "ipc:///x")


@pytest.mark.parametrize("app", ["box.chat:app", "box.inner.chat:app", "bester.handlers.stock.echo:app", "json.tool:x"])
def test_module_is_found_without_an_import(app: str, directory: Path) -> None:
    (directory / "box" / "inner").mkdir(parents=True)
    for place in ("box", "box/inner"):
        (directory / place / "chat.py").write_text("raise SystemExit")
    (directory / "bester.toml").write_text(f'[handlers.a]\napp = "{app}"\n')
    assert plan(config_file.load(directory / "bester.toml"), "ipc:///x")


async def test_python_handler_stays_and_ends_when_asked(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    (directory / "mychat.py").write_text(
        "from bester.handlers import App\napp = App()\n@app.handler('chat')\ndef chat(message):\n    return None\n"
        "print('loaded', flush=True)\n"
    )
    (directory / "bester.toml").write_text('[handlers.chat]\napp = "mychat:app"\n')
    config = config_file.load(directory / "bester.toml")
    async with running(directory, *plan(config, f"ipc://{directory}/f.sock")) as children:
        await until(lambda: "chat | loaded" in caplog.text)
        pid = children.pids["chat"]
        begun = time.monotonic()
    assert time.monotonic() - begun < DEADLINE_S
    assert not alive(pid)
    assert "starting it again" not in caplog.text
    assert "is killed" not in caplog.text
