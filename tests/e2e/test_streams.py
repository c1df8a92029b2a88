"""Programs with standard streams that are missing, full, closed or not read, and with signals of the terminal.

Each program is started by a shell that sets its streams up and becomes the program (`exec`).
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from tests.e2e.fake_native_server import FakeServer, Json, Peer, message_frame, report_frame, within
from tests.live import BESTER, DEADLINE_S, live_server

SERVER = """
[server]
name = "s1"
data_dir = "data"
[native]
unix = "n.sock"
[accounts]
auth = "open"
[handlers.talk]
app = "talk:app"
"""
TALK = """
from bester.handlers import App
app = App()
@app.handler("talk")
async def talk(message):
    print("x" * message.data["x"], flush=True) if message.data["x"] else None
    for _ in range(message.data.get("lines", 0)):
        print("y" * 999)
    return message.reply(message.data["x"])
"""
BROKEN = {
    "all three missing": "exec {} <&- >&- 2>&-",
    "no standard error": "exec {} 2>&-",
    "a full disk": "exec {} >/dev/full 2>/dev/full",
    "nobody reads any more": "{{ exec {} ; }} 2>&1 | true",
    "an encoding without letters": "PYTHONIOENCODING=ascii exec {} 2>err.txt",
    "no environment": "exec env -i {} 2>err.txt",
    "a home that is not there": "HOME=/nonexistent TERM=zork COLUMNS=0 exec {} 2>err.txt",
}


@pytest.fixture
def directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with TemporaryDirectory(prefix="b-", dir="/tmp") as name:
        directory = Path(name)
        (directory / "bester.toml").write_text(SERVER)
        (directory / "talk.py").write_text(TALK)
        monkeypatch.setenv("BESTER_PASSWORD", "secret")
        yield directory


def until(true: Callable[[], Any]) -> Any:
    """Wait until a function returns a true value, and return the value."""
    deadline = time.monotonic() + DEADLINE_S
    while not (found := true()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found


@contextmanager
def group(directory: Path, command: str, **more: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Run a shell command in a process group of its own, which is ended at the end."""
    process = subprocess.Popen(["bash", "-c", command], cwd=directory, start_new_session=True, **more)
    try:
        yield process
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            deadline = time.monotonic() + DEADLINE_S
            while number == signal.SIGTERM and _in_group(process) and time.monotonic() < deadline:
                time.sleep(0.01)
        process.wait()
        if process.stderr is not None:
            process.stderr.close()


def _in_group(process: subprocess.Popen[bytes]) -> bool:
    process.poll()
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    return True


def answers(directory: Path, data: Any) -> bool:
    """Send a message to the server in this directory; return whether the report is good."""
    with suppress(OSError), socket.socket(socket.AF_UNIX) as client:
        client.settimeout(DEADLINE_S)
        client.connect(str(directory / "n.sock"))
        login = {"scope": "client", "authentication": {"username": "a", "password": "x"}}
        for frame in ({"header": login}, {"header": None, "payload": {"type": "talk", "data": data, "id": "1"}}):
            body = json.dumps(frame).encode()
            client.sendall(len(body).to_bytes(4, "little") + body)
        with client.makefile("rb") as stream:
            while length := stream.read(4):
                frame = json.loads(stream.read(int.from_bytes(length, "little")))
                if frame["payload"].get("id") == "1":
                    return bool(frame["header"]["status"] == "good")
    return False


@pytest.mark.parametrize(
    ("layout", "streams"),
    [*(("up", name) for name in BROKEN), *(("apart", name) for name in list(BROKEN)[:4])],
)
def test_server_serves_in_every_state_of_its_streams(layout: str, streams: str, directory: Path) -> None:
    programs = {"up": ["up"], "apart": ["broker", "bridge", "handler talk:app"]}[layout]
    running = " & ".join(f"( {BROKEN[streams].format(f'{BESTER} {program}')} )" for program in programs)
    with group(directory, f"{running} & wait", stdin=subprocess.DEVNULL):
        until(lambda: answers(directory, {"x": 1}))
        assert answers(directory, {"x": 100_000}), "what a handler prints has no place to go, either"
    left = [name for name in os.listdir(directory / "data") if name.endswith((".sock", "-wal"))]
    assert left == [], "it has ended in good order"


def test_server_outlives_its_start_directory(directory: Path) -> None:
    command = f"mkdir gone; cd gone; rmdir ../gone; exec {BESTER} up -c {directory}/bester.toml 2>{directory}/err.txt"
    with group(directory, command):
        until(lambda: answers(directory, {"x": 1}))
    assert "Traceback" not in (directory / "err.txt").read_text()


@pytest.mark.parametrize("command", ["up", "user list", "send --user a t 1", "handler talk:app --fabric ipc:///x"])
def test_command_in_a_removed_directory_names_the_fault(command: str, directory: Path) -> None:
    ended = subprocess.run(
        ["bash", "-c", f"mkdir gone; cd gone; rmdir ../gone; exec {BESTER} {command}"],
        cwd=directory, capture_output=True, text=True, timeout=DEADLINE_S, check=False,
    )  # fmt: skip
    assert ended.returncode in (1, 2)
    assert ended.stderr == "bester: the directory this was started in is not there any more; cd to one that is\n"


def test_unread_log_blocks_no_message_and_counts_missing_lines(directory: Path) -> None:
    command = f"exec {BESTER} up"
    with group(directory, command, stderr=subprocess.PIPE) as server:
        assert server.stderr is not None
        until(lambda: answers(directory, {"x": 0}))
        for _ in range(4):  # 4 MB: more than the pipe holds, and more than the log keeps for a later reader
            assert answers(directory, {"x": 0, "lines": 1000})
        got = b""
        os.set_blocking(server.stderr.fileno(), False)

        def told() -> bool:
            nonlocal got
            got += server.stderr.read() or b""  # type: ignore[union-attr]  # asserted above
            return b" lines of the log are missing here: the reader had stopped" in got

        until(told)
        assert answers(directory, {"x": 0})
        assert 1_000_000 < len(got) < 2_500_000


@pytest.mark.parametrize("layout", ["up", "apart"])
async def test_closing_terminal_ends_no_server(layout: str) -> None:
    handlers = ("bester.handlers.stock.echo:app",)
    async with live_server(layout=layout, handlers=handlers) as server:
        for process in server.processes:
            process.send_signal(signal.SIGHUP)
            reads = process in server.processes[:2]  # the broker and the bridge
            await process.says("configuration was read again" if reads else "SIGHUP: no file was reloaded; restart")
        sent = await asyncio.to_thread(
            subprocess.run, [BESTER, "send", "--to", server.address, "--user", "a", "echo", "1"],
            env={**os.environ, "BESTER_PASSWORD": "x"}, capture_output=True, timeout=DEADLINE_S, check=False,
        )  # fmt: skip
        assert sent.returncode == 0, sent.stderr


def test_background_server_is_not_stopped_by_its_terminal(directory: Path) -> None:
    with group(directory, f"exec {BESTER} up 2>err.txt"):
        until(lambda: answers(directory, {"x": 1}))
        server = until(lambda: [*map(int, _serving(directory))])[0]
        for number in (signal.SIGTTOU, signal.SIGHUP, signal.SIGPIPE):
            os.kill(server, number)
        assert answers(directory, {"x": 1})


def _serving(directory: Path) -> list[str]:
    return (directory / "data" / "server.lock").read_text().split()[:1]


# --- commands ---------------------------------------------------------------------------------------------------------


def shell(directory: Path, command: str, **more: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["bash", "-c", command.replace("bester ", f"{BESTER} ")],
        cwd=directory, capture_output=True, timeout=DEADLINE_S, check=False, **more,
    )  # fmt: skip


FULL = b"bester: standard output: No space left on device; free some room on the disk"
CLOSED = b"bester: standard output: it is closed; give it a file, a pipe or a terminal"


@pytest.mark.parametrize("command", ["--help", "--version", "user --help", "user list", "dead list"])
@pytest.mark.parametrize(
    ("streams", "expected"), [(">/dev/full", FULL), (">&-", CLOSED), ("| true", b""), ("2>&-", b"")]
)
def test_command_that_cannot_print_ends_with_one_line(
    command: str, streams: str, expected: bytes, directory: Path
) -> None:
    shell(directory, "bester user add tim --password-stdin", input=b"secret\n")
    if command == "dead list":
        with group(directory, f"exec {BESTER} up 2>err.txt"):
            until(lambda: answers(directory, {"x": 1}))
            ended = shell(directory, f"bester dead list --json {streams}")
            assert b"internal error" not in ended.stderr
        return
    ended = shell(directory, f"bester {command} {streams}; exit ${{PIPESTATUS[0]}}")
    noise = b"" if command != "user list" or streams == "2>&-" else ended.stderr[: ended.stderr.find(b"\n") + 1]
    assert ended.stderr.removeprefix(noise) == (expected and expected + b"\n")
    assert ended.returncode == (0 if streams == "2>&-" else 1) or streams == "| true"


def test_failed_print_names_what_was_done(directory: Path) -> None:
    for streams, expected in ((">/dev/full", FULL), (">&-", CLOSED)):
        ended = shell(directory, f"bester user add tim --password-stdin {streams}", input=b"secret\n")
        assert ended.returncode == 1
        assert expected + b"; user tim added\n" in ended.stderr
        assert b"user tim removed" in shell(directory, "bester user remove tim").stdout


@pytest.mark.parametrize(
    ("command", "given", "expected"),
    [
        ("user add tim --password-stdin <&-", b"", "standard input is closed; give it a file or a pipe"),
        ("user add tim --password-stdin", b"\xff\xfe\n", "the password on standard input is not UTF-8; write it"),
        ("user add tim --password-stdin </dev/zero", b"", "a password has"),
        ("user add $'t\\xffm' --password-stdin", b"secret\n", "a user name has printable characters only"),
        ("send --user a t - <&-", b"", "standard input is closed; give it a file or a pipe"),
        ("send --user a t - </dev/null", b"", "nothing on standard input; write the message's JSON there"),
        ("send --user a t - </dev/zero", b"", "more than 16777216 bytes on standard input; no message is so long"),
        ("send --user a t -", b"\xff", "the message is not JSON: "),
        ("send --user a t $'\"\\xff\"'", b"", "the message is not JSON: "),
        ("send --user $'a\\xff' t 1", b"", "'a\\udcff' is not UTF-8; write it so"),
        ("send --user a $'t\\xff' 1", b"", "'t\\udcff' is not UTF-8; write it so"),
        ("send --user a --dedup $'k\\xff' t 1", b"", "'k\\udcff' is not UTF-8; write it so"),
        ("outcome --user a $'m\\xff'", b"", "'m\\udcff' is not UTF-8; write it so"),
        ("trace $'m\\xff'", b"", "MESSAGE: 'm\\udcff' is not UTF-8; write it so"),
        ("dead show $'i\\xff'", b"", "ID: 'i\\udcff' is not UTF-8; write it so"),
        ("dead drop $'i\\xff'", b"", "ID: 'i\\udcff' is not UTF-8; write it so"),
        ("dead replay i --as $'t\\xff'", b"", "--as: 't\\udcff' is not UTF-8; write it so"),
        ("dead list --type $'t\\xff'", b"", "--type: 't\\udcff' is not UTF-8; write it so"),
        ("peers hold $'s\\xff'", b"", "NAME: 's\\udcff' is not UTF-8; write it so"),
        ("record --type $'t\\xff' file", b"", "--type: 't\\udcff' is not UTF-8; write it so"),
        ("listen --user a -c $'f\\xff.toml'", b"", "f\\udcff.toml: cannot read it: No such file"),
        ("handler $'m\\xff:app' --fabric ipc:///x", b"", "there is no module 'm\\udcff'"),
        ("backup $'d\\xff'", b"", "nothing is kept there"),
    ],
)
def test_argument_that_is_no_text_is_a_usage_error(command: str, given: bytes, expected: str, directory: Path) -> None:
    ended = shell(directory, f"bester {command}", input=given)
    lines = [line for line in ended.stderr.decode().splitlines() if "auth =" not in line]
    assert (ended.returncode, len(lines)) == (2, 1), ended.stderr
    assert expected in lines[0]
    assert shell(directory, f"BESTER_PASSWORD=$'\\xff' bester {command}", input=given).returncode == 2


async def ran(address: str, command: str, streams: str, **environment: str) -> tuple[int, bytes, bytes]:
    """Run a client's command in a shell; return its status, output and errors."""
    bester = f"{BESTER} {command.replace('TO', f'--to {address} --user bob')}"
    process = await asyncio.create_subprocess_exec(
        "bash", "-c", f"{bester} {streams}; exit ${{PIPESTATUS[0]}}",
        env={**os.environ, "BESTER_PASSWORD": "secret", **environment},
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await within(process.communicate())
    assert process.returncode is not None
    return process.returncode, out, err


@pytest.mark.parametrize("streams", [">/dev/full", ">&-", "| true"])
async def test_report_that_cannot_be_printed_is_in_the_error(streams: str) -> None:
    async with FakeServer() as server:
        server.on_message = lambda peer, payload: peer.report(payload["id"], message="m7")
        status, _, err = await ran(server.address, "send TO chat 1", streams)
    assert status == 1
    assert err.endswith(b"; the message was sent, and its report is good: message m7\n")
    assert err.count(b"\n") == 1


@pytest.mark.parametrize("streams", [">/dev/full", ">&-", "| true"])
@pytest.mark.parametrize("comes", [True, False])
async def test_message_that_cannot_be_printed_is_not_acknowledged_and_the_report_is_not_lost(
    streams: str, comes: bool
) -> None:
    def before(peer: Peer, payload: Json) -> None:
        peer.send(message_frame("before", "0.0"))
        if comes:
            peer.report(payload["id"], message="m7")

    async with FakeServer() as server:
        server.on_message = before
        status, _, err = await ran(server.address, "send --timeout 15 TO chat 1", streams)
        peer = await server.peer()
        await within(peer.gone.wait())
        assert peer.acks.empty()
    assert status == 1
    ending = b"its report is good: message m7\n" if comes else b"its report had not come by then\n"
    assert err.endswith(b"; the message was sent, and " + ending)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1251", "utf-16", "utf-8"])
async def test_any_encoding_shows_every_letter(encoding: str) -> None:
    text = "ж ☃ 😀 é \udcff".encode("utf-8", "replace").decode()

    def say(peer: Peer, payload: Json) -> None:
        for frame in (message_frame(payload["data"], "1.0"), report_frame(payload["id"], message="m☃")):
            peer.send_body(json.dumps(frame, ensure_ascii=False).encode())

    async with FakeServer() as server:
        server.on_message = say
        data = json.dumps(json.dumps(text, ensure_ascii=False))
        command = f"send --json TO chat {data}"
        status, out, err = await ran(server.address, command, "", PYTHONIOENCODING=encoding)
        assert (status, err) == (0, b"")
        frames = [json.loads(line) for line in out.decode(encoding).splitlines()]
        assert frames[0]["payload"]["data"] == text
        assert frames[1]["payload"]["message"] == "m☃"


async def test_listener_without_a_reader_ends_at_once_and_takes_no_message() -> None:
    async with FakeServer() as server:
        read, write = os.pipe()
        process = await asyncio.create_subprocess_exec(
            BESTER, "listen", "--to", server.address, "--user", "bob",
            env={**os.environ, "BESTER_PASSWORD": "secret"}, stdout=write, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        os.close(write)
        try:
            peer = await server.peer()
            peer.send(message_frame(1, "1.0"))
            assert await peer.acknowledged() == ["1.0"]
            assert os.read(read, 100) == b"chat 1  (id 1.0)\n"
            os.close(read)
            # No further message arrives: the listener itself must notice that its reader has gone.
            _, err = await within(process.communicate())
            assert (process.returncode, err.decode()) == (1, f"bester: listening at {server.address} as bob\n")
            await within(peer.gone.wait())
            assert peer.acks.empty()
        finally:
            _kill(process)


async def test_interrupt_ends_a_listener_that_waits_for_its_reader() -> None:
    read, write = os.pipe()
    size = fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4096)
    process: asyncio.subprocess.Process | None = None
    try:
        async with FakeServer() as server:
            process = await asyncio.create_subprocess_exec(
                BESTER, "listen", "--to", server.address, "--user", "bob",
                env={**os.environ, "BESTER_PASSWORD": "secret"}, stdout=write, stderr=asyncio.subprocess.DEVNULL,
            )  # fmt: skip
            peer = await server.peer()
            peer.send(message_frame("x" * (2 * size), "1.0"))
            waiting = Path(f"/proc/{process.pid}/wchan")
            await asyncio.to_thread(until, lambda: "pipe" in waiting.read_text() or os.stat(read).st_size)
            process.send_signal(signal.SIGINT)
            assert await within(process.wait()) == 130
            assert peer.acks.empty()
    finally:
        os.close(read)
        os.close(write)
        _kill(process)


def _kill(process: asyncio.subprocess.Process | None) -> None:
    """End a program that a failed test has left."""
    if process is not None and process.returncode is None:
        process.kill()
