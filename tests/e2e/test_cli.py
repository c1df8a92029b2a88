"""The `bester` command: output, one-line errors and exit status."""

import asyncio
import errno
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import pytest

from bester.bridge.children.supervisor import GRACE_S
from bester.broker.config import STOCK_HANDLERS, HandlerConfig, defaults
from bester.broker.wire.codes import BesterError, ConfigError
from bester.cli import main
from bester.cli.commands import COMMANDS, bester
from bester.cli.errors import describe
from bester.cli.options import Seconds
from bester.cli.serve import banner
from bester.handlers import runner
from bester.handlers.testing import Tester
from tests.live import BESTER, Process

TIMEOUT_S = 30.0
FLOATS = (click.FloatRange, click.types.FloatParamType)
OPEN = """
[server]
name = "here"
[native]
tcp4 = "127.0.0.1:0"
[accounts]
auth = "open"
[handlers.echo]
app = "bester.handlers.stock.echo:app"
"""


@pytest.fixture
def directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with TemporaryDirectory(prefix="b-", dir="/tmp") as name:
        monkeypatch.chdir(name)
        monkeypatch.delenv("BESTER_PASSWORD", raising=False)
        yield Path(name)


def run(*arguments: str, given: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [BESTER, *arguments],
        input=given,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
        env={**os.environ, **environment},
    )


def test_help_shows_every_command(directory: Path) -> None:
    shown = run("--help")
    assert shown.returncode == 0
    assert all(f"  {command} " in shown.stdout for command in COMMANDS)


def leaves() -> Iterator[tuple[str, click.Command]]:
    """Yield each command that does something, with the name that stands behind `bester`."""
    context = click.Context(bester)
    for name in COMMANDS:
        command = bester.get_command(context, name)
        assert command is not None
        for leaf in command.commands.values() if isinstance(command, click.Group) else [command]:
            yield name, leaf


def test_every_command_takes_a_configuration_and_shows_help() -> None:
    for name, leaf in leaves():
        assert leaf.help
        # A demo has its own servers, a handler under test a broker, a replay none; a new key or handler none yet.
        without = (("conform", "handler"), ("keys", "new"), ("new", "handler"))
        alone = name in ("demo", "replay") or (name, leaf.name) in without
        assert alone or any("-c" in parameter.opts for parameter in leaf.params), leaf.name


def test_every_number_of_seconds_is_finite() -> None:
    numbers = [parameter for _, leaf in leaves() for parameter in leaf.params if isinstance(parameter.type, FLOATS)]
    assert len(numbers) > 5
    assert [each.opts for each in numbers if not isinstance(each.type, Seconds) and each.callback is None] == []


def test_every_number_is_named_and_shows_its_default() -> None:
    options = [each for _, leaf in leaves() for each in leaf.params if isinstance(each, click.Option)]
    numbers = [each for each in options if isinstance(each.type, (*FLOATS, click.IntRange, click.types.IntParamType))]
    assert [each.opts for each in numbers if each.metavar is None and not each.hidden] == []
    assert [each.opts for each in numbers if isinstance(each.default, int | float) and not each.show_default] == []


def test_handler_is_told_its_types_and_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, Any] = {}

    def run(app: str, **options: Any) -> int:
        told.update(options, app=app)
        return 0

    monkeypatch.setattr(runner, "run", run)
    assert main(["handler", "m:app", "--fabric", "tcp://127.0.0.1:1", "--types", "a,b", "--name", "mine"]) == 0
    assert (told["app"], told["types"], told["name"]) == ("m:app", ["a", "b"], "mine")
    assert main(["handler", "m:app", "--fabric", "tcp://127.0.0.1:1"]) == 0
    assert (told["types"], told["name"]) == (None, None), "the environment's, or the app's"


async def test_bridge_is_told_its_brokers(directory: Path) -> None:
    (directory / "bester.toml").write_text(OPEN)
    for arguments, environment in (
        (["--fabric", "ipc://a,ipc://b", "--fabric", "ipc://a"], {}), ([], {"BESTER_FABRIC": "ipc://a,ipc://b"})
    ):  # fmt: skip
        bridge = await Process.start(BESTER, "bridge", *arguments, cwd=directory, env=environment)
        try:
            assert (await bridge.says("broker at ")).endswith(", broker at ipc://a, ipc://b")
        finally:
            assert await bridge.end() == 0


async def test_broker_alone_declares_no_stock_handlers(directory: Path) -> None:
    """Nobody would start them, and `bester check` would miss them."""
    for text, declared in ((None, []), (OPEN, ["echo"])):
        if text is not None:
            (directory / "bester.toml").write_text(text)
        broker = await Process.start(BESTER, "broker", cwd=directory)
        try:
            await broker.says(" on ipc://")
            told = await client(directory, "status", "--json")
            assert json.loads(await told.says('"declared"'))["declared"] == declared
            assert await told.process.wait() == 0
        finally:
            assert await broker.end() == 0


def test_line_for_a_new_key_can_be_read(directory: Path) -> None:
    for file, name in (("k.key", "k"), ("a b.key", "NAME"), ('"].key', "NAME"), (b"k\xff.key", "NAME")):
        ended = subprocess.run([BESTER, "keys", "new", file], capture_output=True, text=True, check=True)
        parties = tomllib.loads(ended.stdout.split("\n", 1)[1])["fabric"]["parties"]
        assert list(parties) == [name]


@pytest.mark.parametrize(
    ("arguments", "status", "printed"),
    [
        (["usr"], 2, "no command 'usr'; did you mean user?"),
        (["zzz"], 2, "no command 'zzz'; `bester --help` lists them"),
        (["keys", "new", "bad.toml"], 2, "bad.toml: is there already, and a key is never replaced"),
        (["keys", "new", "none/k"], 2, "none/k: the key cannot be written: No such file or directory"),
        (["stats"], 2, "no command 'stats'"),
        (["up", "--port", "1"], 2, "No such option"),
        (["up", "-c", "none.toml"], 2, "none.toml: cannot read it: No such file or directory"),
        (["up", "--besterd", "none.conf"], 2, "No such file or directory; name another file with --besterd"),
        (["up", "-c", "bad.toml"], 2, "bad.toml:2: [native] tpc4: unknown key; did you mean tcp4?"),
        (["broker", "-c", "bad.toml"], 2, "bad.toml:2: [native] tpc4: unknown key"),
        (["bridge", "-c", "bad.toml"], 2, "bad.toml:2: [native] tpc4: unknown key"),
        (["up", "-c", "a", "--besterd", "b"], 2, "give one of them"),
        (["up", "--besterd", "bad.toml"], 2, "is not JSON"),
        (["up", "-c", "gone.toml"], 2, "[handlers.a] command: no program './gone' is found; install it"),
        (["user", "add"], 2, "Missing argument"),
        (["user", "add", "tim"], 2, "use --password-stdin"),
        (["user", "add", "t\nm", "--password-stdin"], 2, "printable characters only"),
        (["user", "add", "jose\u0301", "--password-stdin"], 2, "composed form of Unicode"),
        (["user", "remove", "tim"], 1, "there is no user 'tim': "),
        (["user", "passwd", "tim", "--password-stdin"], 2, "no password on standard input"),
        (["send", "--user", "tim", "echo", "{}"], 2, "put it into BESTER_PASSWORD"),
        (["send", "--user", "tim", "--password", "x", "echo", "{}"], 2, "No such option"),
        (["send", "echo", "{}"], 2, "Missing option '--user'"),
        (["listen", "--user", "tim"], 2, "put it into BESTER_PASSWORD"),
        (["send", "--user", "tim", "--ttl", "0", "echo", "{}"], 2, "--ttl: must be more than 0 and at most 2592000"),
        (["send", "--user", "tim", "--ttl", "nan", "echo", "{}"], 2, "--ttl: must be more than 0"),
        (
            ["send", "--user", "tim", "--dedup", "x" * 65, "echo", "{}"],
            2,
            "--dedup: must have 1 to 64 characters, not 65",
        ),
        (["send", "--user", "tim", "--dedup", "", "echo", "{}"], 2, "--dedup: must have 1 to 64 characters, not 0"),
        (["send", "--user", "tim", "--wait", "nan", "echo", "{}"], 2, "'--wait': nan is no number of seconds; see"),
        (["top", "--every", "nan"], 2, "'--every': nan is no number of seconds; see"),
        (["record", "--type", "t", "--seconds", "inf", "f"], 2, "'--seconds': inf is no number of seconds; see"),
        (["handler", "nosuch:app"], 2, "there is no module 'nosuch'"),
        (["handler", "bester.handlers.stock.echo:app", "--types", ""], 2, "--types (or BESTER_TYPES) names no type"),
        (["handler", "bester.handlers.stock.echo:app", "--fabric", ""], 2, "--fabric is empty; leave it out, or give"),
        (["handler", "bester.handlers.stock.echo:app", "--fabric", f"ipc://{'x' * 108}"], 2, "path has 107 at most"),
        (["bridge", "--fabric", ""], 2, "--fabric is empty; leave it out, or give it a value"),
        (
            ["bridge", "--fabric", "ipc://a,tcp://h:0"],
            2,
            "'tcp://h:0': port 0 is no port to connect to; write the port",
        ),
        (["bridge", "--fabric", f"ipc://{'x' * 108}"], 2, "108 bytes, and a Unix socket's path has 107 at most"),
        (["bridge", "-c", "/dev/stdin", "--workers", "2"], 2, "/dev/stdin: is a pipe, and each of the --workers reads"),
        (["bridge", "--key", ""], 2, "--key is empty; leave it out, or give it a value"),
        (["bridge", "--server-key", ""], 2, "--server-key is empty; leave it out, or give it a value"),
        (["bridge", "--key", "b.key"], 2, "--key: links over ipc:// stay on this machine, and are never encrypted"),
        (["bridge", "--key", "b.key", "--fabric", "tcp://127.0.0.1:1"], 2, "--key FILE without --server-key KEY"),
        (["handler", "nosuch:app", "--key", "h.key", "--server-key", "k"], 2, "--key and --server-key: links over"),
        (["handler", "nosuch:app", "--workers", "x"], 2, "'x' is not a valid integer"),
    ],
)
def test_mistake_is_one_line_and_a_status(directory: Path, arguments: list[str], status: int, printed: str) -> None:
    (directory / "bad.toml").write_text("[native]\ntpc4 = '127.0.0.1:1'\n")
    (directory / "gone.toml").write_text("[native]\ntcp4 = '127.0.0.1:0'\n[handlers.a]\ncommand = ['./gone']\n")
    ended = run(*arguments)
    assert printed in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert (ended.returncode, ended.stdout) == (status, "")


@pytest.mark.parametrize(
    "command", ["up", "broker", "bridge", "handler bester.handlers.stock.echo:app --fabric ipc://none.sock"]
)
@pytest.mark.parametrize("limit", [8, 12, 20])
def test_too_few_descriptors_are_one_line(directory: Path, command: str, limit: int) -> None:
    """ZeroMQ aborts a process whose threads cannot open theirs, and a loop without its own fails halfway."""
    ended = subprocess.run(
        ["bash", "-c", f"ulimit -n {limit}; exec {BESTER} {command}"], capture_output=True, text=True, check=False,
        timeout=TIMEOUT_S,
    )  # fmt: skip
    lines = [line for line in ended.stderr.splitlines() if "auth =" not in line]
    assert (ended.returncode, len(lines)) == (1, 1), ended.stderr
    assert lines[0].endswith("Too many open files; raise the limit of open files (ulimit -n)")


def test_accounts_from_the_shell(directory: Path) -> None:
    def user(*arguments: str, given: str = "") -> tuple[int, str]:
        ended = run("user", *arguments, given=given)
        return ended.returncode, ended.stdout + ended.stderr

    status, printed = user("list")
    assert (status, printed.count("\n"), f"no users in {directory}/bester-data;" in printed) == (0, 1, True)
    assert not (directory / "bester-data").exists()
    status, printed = user("add", "tim", "--password-stdin", given="secret\n")
    assert (status, printed.count("\n"), printed.startswith("user tim added\n")) == (0, 2, True)
    assert f"made the data directory {directory}/bester-data;" in printed
    assert user("add", "ann", "--password-stdin", given="secret\n") == (0, "user ann added\n")
    assert user("remove", "ann") == (0, "user ann removed\n")
    status, printed = user("add", "tim", "--password-stdin", given="other\n")
    assert (status, "there is a user tim already" in printed, printed.count("\n")) == (1, True, 1)
    assert user("passwd", "tim", "--password-stdin", given="better\n") == (0, "password of tim changed\n")
    status, printed = user("list")
    assert (status, printed.split("\t")[0]) == (0, "tim")
    assert user("remove", "tim") == (0, "user tim removed\n")
    status, printed = user("list")
    assert (status, printed.count("\n"), printed.startswith(f"no users in {directory}/bester-data;")) == (0, 1, True)


@pytest.mark.parametrize(
    ("section", "lines"),
    [
        ("handlers.people", '[handlers.people]\napp = "people:app"\nauth = true\n'),
        (
            "fabric.parties.people",
            f'[fabric.parties.people]\nkey = "{"x" * 40}"\nrole = "handler"\ntypes = ["bester.auth"]\n',
        ),
    ],
)
def test_password_is_warned_of_where_a_handler_decides_logins(directory: Path, section: str, lines: str) -> None:
    (directory / "bester.toml").write_text(lines)
    for arguments, done in ((("add", "tim"), "user tim added\n"), (("passwd", "tim"), "password of tim changed\n")):
        ended = run("user", *arguments, "--password-stdin", given="secret\n")
        warnings = [line for line in ended.stderr.splitlines() if "decides logins" in line]
        assert (ended.returncode, ended.stdout) == (0, done)
        assert len(warnings) == 1 and f"[{section}]" in warnings[0], ended.stderr
    assert "decides logins" not in run("user", "list").stderr


def test_accounts_are_a_table_on_a_terminal_and_tabbed_in_a_pipe(directory: Path) -> None:
    for name in ("tim", "a-much-longer-name"):
        assert run("user", "add", name, "--password-stdin", given="secret\n").returncode == 0
    near, far = os.openpty()
    try:
        listed = subprocess.run(
            [BESTER, "user", "list"], stdin=far, stdout=far, stderr=far, timeout=TIMEOUT_S, check=False,
            env={**os.environ, "TERM": "dumb"},
        )  # fmt: skip
        assert listed.returncode == 0
        lines = os.read(near, 65536).decode().splitlines()
    finally:
        os.close(near)
        os.close(far)
    day = lines[1].split()[-1]
    assert lines == ["NAME                SINCE", f"a-much-longer-name  {day}", f"tim                 {day}"]
    assert run("user", "list").stdout == f"a-much-longer-name\t{day}\ntim\t{day}\n"


def test_unusable_data_directory_is_one_line(directory: Path) -> None:
    (directory / "bester-data").write_text("a file")
    ended = run("user", "list")
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert "name another one as [server] data_dir" in ended.stderr


def test_closed_pipe_is_no_traceback(directory: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    process = subprocess.Popen([BESTER, "--help"], stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    _, printed = process.communicate(timeout=TIMEOUT_S)
    assert printed == ""


async def start(directory: Path, text: str = OPEN) -> tuple[Process, str]:
    """Start `bester up` with this file; return it and its address."""
    (directory / "bester.toml").write_text(text)
    server = await Process.start(BESTER, "up", cwd=directory)
    line = await server.says(" serves ")
    return server, line.rpartition(" ")[2]


def children_of(pid: int) -> list[str]:
    """Return the children of a process, started by any of its threads."""
    return [child for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()]


async def client(directory: Path, *arguments: str, given: str | None = None) -> Process:
    return await Process.start(BESTER, *arguments, cwd=directory, env={"BESTER_PASSWORD": "secret"})


async def test_up_prints_first_steps_and_ends_cleanly(directory: Path) -> None:
    server, address = await start(directory)
    await server.says(f"bester send --to {address} --user alice echo")
    await server.says("anybody may log in")
    children: list[str] = []
    async with asyncio.timeout(TIMEOUT_S):
        while len(children) < 2:  # the handler and the guard
            await asyncio.sleep(0.01)
            children = children_of(server.process.pid)
    assert await server.end() == 0
    assert not [child for child in children if Path(f"/proc/{child}").exists()]
    assert not [line for line in server.lines if "Traceback" in line]


async def test_send_and_listen_over_a_running_server(directory: Path) -> None:
    server, address = await start(directory)
    listener = await client(directory, "listen", "--to", address, "--user", "tim", "--json", "--count", "1")
    await listener.says("listening at")
    sender = await client(directory, "send", "--to", address, "--user", "tim", "echo", '{"n":-0}')
    await sender.says("good")
    assert await asyncio.wait_for(sender.process.wait(), TIMEOUT_S) == 0
    await listener.says('"data":{"n":-0}')
    assert await asyncio.wait_for(listener.process.wait(), TIMEOUT_S) == 0
    nobody = await client(directory, "send", "--to", address, "--user", "tim", "nosuch", "{}")
    await nobody.says("bad: unknown-type")
    assert await asyncio.wait_for(nobody.process.wait(), TIMEOUT_S) == 1
    assert await server.end() == 0


async def test_new_account_may_log_in_at_once(directory: Path) -> None:
    server, address = await start(directory, OPEN.replace('"open"', '"accounts"'))
    before = await client(directory, "send", "--to", address, "--user", "tim", "echo", "1")
    await before.says("does not accept user 'tim'")
    assert await asyncio.wait_for(before.process.wait(), TIMEOUT_S) == 1
    added = await asyncio.to_thread(run, "user", "add", "tim", "--password-stdin", given="secret\n")
    assert added.returncode == 0
    after = await client(directory, "send", "--to", address, "--user", "tim", "echo", "1")
    await after.says("good")
    assert await asyncio.wait_for(after.process.wait(), TIMEOUT_S) == 0
    assert await server.end() == 0


async def test_two_servers_in_one_directory_are_refused(directory: Path) -> None:
    server, _ = await start(directory)
    second = await asyncio.to_thread(run, "up")
    assert (second.returncode, second.stderr.count("\n")) == (1, 1)
    assert "serves from it; stop that, or name another [server] data_dir" in second.stderr
    assert await server.end() == 0


async def test_server_started_while_another_drains_takes_over(directory: Path) -> None:
    first, address = await start(directory)
    host, _, port = address.rpartition(":")
    _, writer = await asyncio.open_connection(host, int(port))  # the draining server waits for this reader a moment
    first.process.send_signal(signal.SIGTERM)
    await first.says("finishing the messages under way")
    second, _ = await start(directory)
    assert first.process.returncode == 0, "one at a time"
    writer.close()
    assert await first.end() == 0
    assert await second.end() == 0


def test_port_in_use_is_one_line(directory: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        (directory / "bester.toml").write_text(f'[native]\ntcp4 = "127.0.0.1:{port}"\n')
        ended = run("up")
    assert ended.returncode in (1, 2)
    assert ended.stderr.count("\n") == 1, ended.stderr
    assert str(port) in ended.stderr


async def test_second_interrupt_ends_at_once(directory: Path) -> None:
    (directory / "stuck.py").write_text(
        "import time\nfrom bester.handlers import App\napp = App()\n"
        "@app.handler('stuck', inline=True)\ndef stuck(message):\n    print('held up', flush=True)\n"
        "    time.sleep(60)\n"
    )
    server, address = await start(directory, OPEN + '[handlers.stuck]\napp = "stuck:app"\n')
    sender = await client(directory, "send", "--to", address, "--user", "tim", "stuck", "1")
    await server.says("held up")
    server.process.send_signal(signal.SIGINT)
    await server.says("finishing the messages under way")
    begun = time.monotonic()
    assert await server.end(signal.SIGINT) == 1
    assert time.monotonic() - begun < GRACE_S
    await sender.end(signal.SIGINT)


async def test_interrupt_ends_listen_without_a_traceback(directory: Path) -> None:
    server, address = await start(directory)
    listener = await client(directory, "listen", "--to", address, "--user", "tim")
    await listener.says("listening at")
    assert await listener.end(signal.SIGINT) == 130
    assert [line for line in listener.lines if line] == [f"bester: listening at {address} as tim"]
    assert await server.end(signal.SIGINT) == 0


async def test_refused_connection_is_one_line(directory: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    for command in (["send", "--to", f"127.0.0.1:{port}", "--user", "tim", "echo", "1"],):
        ended = await asyncio.to_thread(run, *command, BESTER_PASSWORD="secret")
        assert (ended.returncode, ended.stderr.count("\n")) == (1, 1), ended.stderr
        assert "secret" not in ended.stderr


@pytest.mark.parametrize(
    ("error", "printed", "status"),
    [
        (ConfigError("key: mend it"), "key: mend it", 2),
        (BesterError("overloaded"), "a queue is full; send less, or later", 1),
        (click.UsageError("no"), "no", 2),
        (
            OSError(errno.EADDRINUSE, "Address in use"),
            "Address in use; stop the program that listens there, or choose another",
            1,
        ),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), "/x: Permission denied; use a path", 1),
        (
            ModuleNotFoundError("No module named 'zmq'"),
            "No module named 'zmq'; `make clean setup`, or pip install pyzmq,",
            1,
        ),
        (ExceptionGroup("many", [ConfigError("one of\nmany")]), "one of many", 2),
        (ValueError("what"), "internal error, ValueError: what; BESTER_TRACEBACK=1 shows where", 1),
    ],
)
def test_error_is_one_line(error: Exception, printed: str, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BESTER_TRACEBACK", raising=False)
    line, ended = describe(error)
    assert line.startswith(printed)
    assert "\n" not in line
    assert ended == status


def test_missing_dependency_is_one_line(
    directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "argon2", None)
    for module in ("bester.broker.accounts", "bester.broker.verifying"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    assert main(["user", "list"]) == 1
    printed = capsys.readouterr().err
    assert "argon2" in printed
    assert "pip install argon2-cffi" in printed
    assert printed.count("\n") == 1


def test_missing_dependency_of_the_command_line_itself_is_one_line(
    directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "bester.cli.commands")
    monkeypatch.setitem(sys.modules, "click", None)
    assert main(["--version"]) == 1
    printed = capsys.readouterr().err
    assert "pip install click" in printed
    assert printed.count("\n") == 1


def test_banner_names_addresses_and_types(directory: Path) -> None:
    lines = banner(defaults(directory), ["127.0.0.1:2223", f"{directory}/n.sock"])
    assert len(lines) == 3
    assert lines[0].endswith(f" serves 127.0.0.1:2223, {directory}/n.sock")
    assert "user add alice" in lines[1]
    assert f"send --user alice {STOCK_HANDLERS[0].types[0]} '" in lines[2]


@pytest.mark.parametrize(
    ("file", "address", "option", "to"),
    [
        ("bester.toml", "127.0.0.1:2223", "", ""),
        ("my box.toml", "127.0.0.1:2224", " -c 'my box.toml'", " --to 127.0.0.1:2224"),
        ("s1.toml", "[::1]:2224", " -c s1.toml", " --to '[::1]:2224'"),
        ("s1.toml", "/run/b.sock", " -c s1.toml", " --to unix:/run/b.sock"),
    ],
)
def test_commands_in_the_banner_can_be_pasted(file: str, address: str, option: str, to: str, directory: Path) -> None:
    config = replace(defaults(directory), path=Path(file))
    _, add, send = banner(config, [address])
    assert f"user add{option} alice" in add
    assert f"send{to} --user" in send


@pytest.mark.parametrize("stock", STOCK_HANDLERS, ids=lambda handler: handler.name)
async def test_stock_handlers_take_the_message_that_the_banner_proposes(stock: HandlerConfig, directory: Path) -> None:
    command = shlex.split(banner(defaults(directory), ["127.0.0.1:2223"])[2])
    module, _, name = str(stock.app).partition(":")
    tester = Tester(getattr(import_module(module), name))
    sent = await tester.send(stock.types[0], json.loads(command[-1]), user=command[-3])
    assert [each.targets for each in sent.commands] == [["alice"]]


def test_banner_proposes_no_data_of_which_it_does_not_know_that_the_handler_takes_them(directory: Path) -> None:
    own = HandlerConfig("greet", ("greet a guest",), app="greet:app")
    line = banner(replace(defaults(directory), handlers=(own,)), ["127.0.0.1:2223"])[2]
    assert line.endswith(" send --user alice 'greet a guest' DATA, where DATA is JSON that the handler takes")
    assert " chat '{" in banner(replace(defaults(directory), handlers=(own, STOCK_HANDLERS[1])), ["127.0.0.1:2223"])[2]


@pytest.mark.parametrize("address", ["ws://127.0.0.1:2226", "wss://127.0.0.1:2226"])
def test_banner_names_no_command_that_cannot_reach_the_server(address: str, directory: Path) -> None:
    config = defaults(directory)
    assert "WebSocket" in banner(config, [address])[2]
    assert "WebSocket" not in banner(config, [])[2]
    for addresses in ([address], []):
        assert "--user" not in banner(config, addresses)[2]
    assert "send --to 127.0.0.1:2224 --user" in banner(config, [address, "127.0.0.1:2224"])[2]


def test_server_that_only_browsers_reach_is_named_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BESTER_PASSWORD", "x")
    file = tmp_path / "bester.toml"
    for tls in ("", '[native.tls]\ncert = "c.pem"\nkey = "k.pem"\n'):
        file.write_text(f'[native]\nwebsocket = "127.0.0.1:2226"\n{tls}')
        assert main(["send", "-c", str(file), "--user", "tim", "echo", "1"]) == 2
        assert "no listener for this command" in capsys.readouterr().err
    assert main(["send", "--to", "ws://127.0.0.1:2226", "--user", "tim", "echo", "1"]) == 2
    assert "is not HOST:PORT, [V6]:PORT, tls://HOST:PORT or unix:PATH" in capsys.readouterr().err


def test_click_errors_have_a_remedy(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["send", "--user", "tim", "echo"]) == 2
    assert capsys.readouterr().err == "bester: Missing argument 'JSON'; see `bester send --help`\n"
    assert main(["up", "--fast"]) == 2
    assert capsys.readouterr().err == "bester: No such option '--fast'; see `bester up --help`\n"
    assert main(["dead", "replay", "1", "2"]) == 2
    printed = "bester: Got unexpected extra argument (2); see `bester dead replay --help`\n"
    assert capsys.readouterr().err == printed
    assert main(["send", "--usr", "tim"]) == 2
    assert capsys.readouterr().err.endswith("Did you mean '--user'?\n"), "a question is a remedy"


@pytest.mark.parametrize(
    ("program", "arguments", "printed"),
    [
        ("simulation", ["--seeds", "x"], "'x' is no number of seeds; say for instance `make simulate SEEDS=500`"),
        ("simulation", ["--seeds", "0"], "'0' is no number of seeds"),
        ("simulation", ["--seeds"], "expected one argument; say for instance"),
        ("chaos", ["--minutes", "x"], "'x' is no number of minutes; say for instance `make chaos MINUTES=10`"),
        ("chaos", ["--minutes", "nan"], "'nan' is no number of minutes"),
        ("chaos", ["--seed", "x"], "invalid int value: 'x'; say for instance"),
    ],
)
def test_wrong_make_argument_is_one_line(program: str, arguments: list[str], printed: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", f"tests.{program}", *arguments],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (2, "", 1)
    assert printed in ended.stderr
