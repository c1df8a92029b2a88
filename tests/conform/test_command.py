"""`bester conform` as people and continuous integration use it."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from click import ClickException
from click.testing import CliRunner, Result

from bester.cli.conform import conform
from bester.conform.cases import load
from tests.conform.programs import broken, published
from tests.conform.small_server import small_server
from tests.live import BESTER, DEADLINE_S, Process, short_directory

TCP_ALONE = """import os, time
while not os.environ["BESTER_FABRIC"].startswith("tcp://"):
    time.sleep(60)
"""
"""What stands before a program whose library has no ipc://."""


def said(*arguments: str) -> Result:
    """Run the command; its own return value is the exit status."""
    return CliRunner().invoke(conform, list(arguments), standalone_mode=False)


@pytest.fixture
def good(tmp_path: Path) -> str:
    (tmp_path / "good.py").write_text(published())
    return str(tmp_path / "good.py")


@pytest.fixture
def bad(tmp_path: Path) -> str:
    (tmp_path / "bad.py").write_text(broken("ignores attachments"))
    return str(tmp_path / "bad.py")


def test_a_line_a_case_and_status_0(good: str) -> None:
    result = said("handler", "--case", "302", "--case", "101", "--", sys.executable, good)
    assert result.return_value == 0
    assert result.output.splitlines() == [
        "pass  101  HELLO is the first message",
        "pass  302  A body as a string",
        "2 passed, 0 failed",
    ]


def test_a_library_without_ipc_is_tried_over_tcp(good: str, tmp_path: Path) -> None:
    (tmp_path / "tcp.py").write_text(TCP_ALONE + Path(good).read_text())
    program = [sys.executable, str(tmp_path / "tcp.py")]
    result = said("handler", "--timeout", "0.5", "--case", "101", "--", *program)
    assert isinstance(result.exception, ClickException)
    assert "HELLO did not come within 1 s" in str(result.exception) and "add --tcp" in str(result.exception)
    result = said("handler", "--tcp", "--case", "101", "--case", "108", "--", *program)
    assert result.return_value == 0
    assert result.output.splitlines()[-1] == "2 passed, 0 failed"


def test_failure_shows_case_reason_and_status_1(bad: str) -> None:
    result = said("handler", "--timeout", "3", "--case", "303", "--case", "302", "--", sys.executable, bad)
    assert result.return_value == 1
    lines = result.output.splitlines()
    assert lines[0].startswith("pass  302") and lines[1].startswith("fail  303") and lines[-1] == "1 passed, 1 failed"
    assert (
        "REPLY" in lines[2] and lines[3].strip().startswith("must be seen: ") and lines[4].strip().startswith("why: ")
    )


def test_json_and_junit(bad: str, tmp_path: Path) -> None:
    file = tmp_path / "out.xml"
    result = said(
        "handler", "--json", "--junit", str(file), "--timeout", "3", "--case", "303", "--case", "302", "--case", "801",
        "--", sys.executable, bad,
    )  # fmt: skip
    objects = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(each["number"], each["result"]) for each in objects] == [(302, "pass"), (303, "fail"), (801, "skip")]
    assert objects[1]["detail"] and objects[1]["rule"] and objects[1]["severity"] == "required"
    suite = ET.parse(file).getroot().find("testsuite")  # noqa: S314 (this test's own file)
    assert suite is not None
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("3", "1", "1")
    assert [case.find("failure") is not None for case in suite] == [False, True, False]


@pytest.mark.parametrize("side", ["handler", "native"])
def test_the_list(side: str) -> None:
    result = said(side, "--list")
    assert len(result.output.splitlines()) == len(load(side))


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["handler"], "no program to try"),
        (["handler", "--", "/nowhere/at-all"], "cannot start /nowhere/at-all"),
        (["handler", "--case", "9999", "--", "true"], "there is no handler case 9999"),
        (["handler", "--timeout", "5", "--", "false"], "has ended with status 1"),
        (
            ["handler", "--", "sh", "-c", "echo 'Error: no module x'; printf '%s\n' at a at b c d; exit 1"],
            "HELLO did not come; the program has ended with status 1: Error: no module x",
        ),
        (["handler", "--bad", "5", "--", "true"], "--bad goes with --data"),
        (["handler", "--data", "{", "--", "true"], "is no JSON"),
        (["handler", "--type", "a,b", "--", "true"], "can be no message type"),
        (["native", "--case", "9999", "127.0.0.1:1"], "there is no native case 9999"),
        (["native", "nonsense:port"], "is no HOST:PORT"),
        (["native", "127.0.0.1:70000"], "is no HOST:PORT"),
        (["native", "tls://127.0.0.1:2224"], "cases are played in plain text"),
        (["native", "a..b:2223"], "'a..b:2223': it is no host name, in which each part between dots has 1 to 63"),
        (["native", "127.0.0.1:1"], "see that the server runs there"),
    ],
)
def test_mistake_is_one_line(arguments: list[str], what: str) -> None:
    result = said(*arguments)
    assert result.exception is not None
    message = result.exception.format_message() if hasattr(result.exception, "format_message") else ""
    assert what in message and "; " in message and "\n" not in message


async def test_native_over_the_command(tmp_path: Path) -> None:
    async with small_server("writes data anew") as port:
        command = ("conform", "native", "--case", "501", "--case", "301", f"127.0.0.1:{port}")
        conforming = await Process.start(BESTER, *command, cwd=tmp_path)
        await conforming.says("1 passed, 1 failed")
        assert await conforming.process.wait() == 1
        await conforming.end()
    assert conforming.lines[0].startswith("pass  301") and conforming.lines[1].startswith("fail  501")


async def test_native_finds_the_server_of_the_configuration(tmp_path: Path) -> None:
    async with small_server() as port:
        (tmp_path / "bester.toml").write_text(f'[native]\ntcp4 = "127.0.0.1:{port}"\n')
        conforming = await Process.start(BESTER, "conform", "native", "--case", "301", cwd=tmp_path)
        await conforming.says("1 passed, 0 failed")
        assert await conforming.process.wait() == 0
        await conforming.end()


LINGERS = """
import os, sys, time

with open(sys.argv[1], "a") as file:
    file.write(f"{os.getpid()}\\n")
print("\\x1b[2J started", flush=True)
time.sleep(600)
"""


def is_there(pid: int) -> bool:
    """Return whether a process runs; a dead process that has not been waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="only /proc tells a dead process from one that runs")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
async def test_no_program_is_left_behind(number: int) -> None:
    async with short_directory() as directory:
        (directory / "lingers.py").write_text(LINGERS)
        pids = directory / "pids"
        command = ("conform", "handler", "--", sys.executable, str(directory / "lingers.py"), str(pids))
        conforming = await Process.start(BESTER, *command, cwd=directory, env={"TMPDIR": str(directory)})
        async with asyncio.timeout(DEADLINE_S):
            while not (pids.exists() and pids.read_text().endswith("\n")):
                await asyncio.sleep(0.01)
            pid = int(pids.read_text())
            assert is_there(pid)
            status = await conforming.end(number)
            while is_there(pid):
                await asyncio.sleep(0.01)
    assert status == (-signal.SIGKILL if number == signal.SIGKILL else 130)


def test_output_of_a_program_cannot_move_the_cursor(tmp_path: Path) -> None:
    (tmp_path / "good.py").write_text("print('\\x1b[2J\\a here', flush=True)\n" + broken("ignores attachments"))
    result = said("handler", "--timeout", "3", "--case", "303", "--", sys.executable, str(tmp_path / "good.py"))
    assert result.return_value == 1 and "\ufffd[2J\ufffd here" in result.output and "\x1b" not in result.output
