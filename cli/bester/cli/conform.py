"""`bester conform handler` and `bester conform native`: run the conformance cases and report each result."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import click

from bester.broker.names import NO_NAME
from bester.cli.options import PASSWORD_VARIABLE, Seconds, config_option, is_text
from bester.cli.options import load as load_config
from bester.cli.output import err, out
from bester.conform.cases import Case, load
from bester.conform.report import as_json, junit, lines, summary
from bester.conform.result import Result, Unseen

DEFAULT_PORT = 2223
JOBS = 16
"""Programs under test at once: most of them wait for a heartbeat most of the time, and cost nothing then."""

_case_option = click.option(
    "--case", "numbers", type=int, multiple=True, metavar="N", help="Play this case alone; may be given several times."
)
_json_option = click.option("--json", "json_lines", is_flag=True, help="Print one JSON object a case.")
_junit_option = click.option(
    "--junit", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Also write a JUnit file."
)
_list_option = click.option("--list", "list_only", is_flag=True, help="List the cases and play none.")
_timeout_option = click.option(
    "--timeout", "timeout_s", type=Seconds(0.1), default=10.0, show_default=True, metavar="SECONDS",
    help="How long a case waits for each thing.",
)  # fmt: skip


def _json(context: click.Context, option: click.Parameter, value: str | None) -> str | None:
    """Return a text that is JSON. Raises UsageError for any other."""
    try:
        if value is not None:
            json.loads(value.encode())
    except ValueError as error:
        raise click.UsageError(f"{option.opts[0]}: {value!a} is no JSON ({error}); write it as JSON", context) from None
    return value


def _type(context: click.Context, option: click.Parameter, value: str) -> str:
    """Return a message type. Raises UsageError for what can be none."""
    if not value.isprintable() or value.strip() != value or "," in value or not 1 <= len(value) <= 128:
        raise click.UsageError(f"--type: {value!a} can be no message type; it is one name, without commas", context)
    return value


@click.group()
def conform() -> None:
    """Try a handler, or a server's native side, against the numbered cases of its protocol."""


@conform.command(context_settings={"ignore_unknown_options": False})
@_case_option
@_json_option
@_junit_option
@_list_option
@_timeout_option
@click.option("--jobs", type=click.IntRange(1, 64), default=JOBS, show_default=True, metavar="N",
              help="Programs to try at once.")  # fmt: skip
@click.option("--curve", is_flag=True, help="Also play the cases with encryption (BESTER_KEY, BESTER_SERVER_KEY).")
@click.option("--tcp", is_flag=True, help="Play every case over tcp://127.0.0.1, for a library that has no ipc://.")
@click.option("--type", "type_", default="shout", show_default=True, callback=_type, metavar="TYPE",
              help="What BESTER_TYPES tells the program to serve.")  # fmt: skip
@click.option("--data", callback=_json, metavar="JSON",
              help="What the program takes, where it is no shout; what it answers is not compared then.")  # fmt: skip
@click.option("--bad", callback=_json, metavar="JSON", help="With --data: what the program cannot take.")
@click.argument("command", nargs=-1, metavar="-- COMMAND…")
def handler(
    numbers: tuple[int, ...], json_lines: bool, junit: Path | None, list_only: bool, timeout_s: float, jobs: int,
    curve: bool, tcp: bool, type_: str, data: str | None, bad: str | None, command: tuple[str, ...],
) -> int:  # fmt: skip
    """Start a handler program against a scripted broker, and report case by case.

    The program finds BESTER_FABRIC, BESTER_TYPES and BESTER_NAME in its environment. It answers a JSON string with the
    string in capitals, to the user who sent it, and fails on any other data; --data and --bad try any other program.
    """
    cases = _chosen("handler", numbers)
    if list_only:
        return _listed(cases)
    if not command:
        raise click.UsageError("no program to try; write it behind --, as in `bester conform handler -- node shout.js`")
    if bad is not None and data is None:
        raise click.UsageError("--bad goes with --data; give both")
    from bester.conform.handler_side import conform as play
    from bester.conform.handler_steps import Sample

    sample = None if data is None else Sample(data, bad)

    def played(on_result: Callable[[Result], None]) -> list[Result]:
        with _guarded() as watch:
            return _run(
                play(
                    command,
                    cases,
                    on_result,
                    within_s=timeout_s,
                    jobs=jobs,
                    curve=curve,
                    tcp=tcp,
                    watch=watch,
                    served=type_,
                    sample=sample,
                )
            )

    try:
        return _reported(played, json_lines, junit, "handler")
    except Unseen as unseen:
        raise click.ClickException(f"{command[0]}: {unseen}") from None
    except OSError as error:
        if error.filename != command[0]:
            raise
        raise click.UsageError(f"cannot start {command[0]}: {error.strerror}; see that the command is right") from None


@conform.command()
@config_option
@_case_option
@_json_option
@_junit_option
@_list_option
@_timeout_option
@click.option("--user", "users", multiple=True, metavar="NAME", help="Who may log in; three play every case.")
@click.option("--echo", default="echo", show_default=True, metavar="TYPE", help="A type that sends data back.")
@click.option("--chat", default="chat", show_default=True, metavar="TYPE", help="One as the stock handler chat.")
@click.option("--informer", metavar="PATH", help="The informer's Unix socket, to try it as well.")
@click.option("--slow", is_flag=True, help="Also play the cases that take half a minute.")
@click.argument("address", metavar="HOST:PORT", required=False)
def native(
    config_path: Path | None, numbers: tuple[int, ...], json_lines: bool, junit: Path | None, list_only: bool,
    timeout_s: float, users: tuple[str, ...], echo: str, chat: str, informer: str | None, slow: bool,
    address: str | None,
) -> int:  # fmt: skip
    """Try the native side of a server that runs, and report case by case.

    Without HOST:PORT it is the server that the configuration describes, with its informer.
    Where only accounts may log in, name some with --user; they share the password in BESTER_PASSWORD. What the server
    does not have (such as a handler of type chat) is not tried, and reported as such.
    """
    cases = _chosen("native", numbers)
    if list_only:
        return _listed(cases)
    if address is None:
        address, informer = _described(config_path, informer)
    from bester.conform.native_side import Server
    from bester.conform.native_side import conform as play

    host, port = _address(address)
    password = os.environ.get(PASSWORD_VARIABLE, "conform")
    if not all(map(is_text, (password, echo, chat, *users))):
        raise click.UsageError("a user, a type or the password is not UTF-8; write it so")
    server = Server(host, port, tuple(dict.fromkeys(users)), password, echo, chat, informer, slow)

    def played(on_result: Callable[[Result], None]) -> list[Result]:
        return _run(play(server, cases, on_result, within_s=timeout_s))

    try:
        return _reported(played, json_lines, junit, "native")
    except Unseen as unseen:
        raise click.ClickException(f"{address}: {unseen}") from None
    except OSError as error:
        if error.filename is not None:
            raise
        raise click.ClickException(f"{address}: {error.strerror or error}; see that the server runs there") from None


@contextmanager
def _guarded() -> Iterator[Callable[[str, int], None]]:
    """Keep a process that ends the programs under test, should this one be killed; yields the call that names them."""
    from bester.bridge.children import guard

    arguments = [sys.executable, "-I", "-S", guard.__file__]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdin is not None
        pipe = process.stdin

        def watch(word: str, pid: int) -> None:
            with suppress(OSError):  # the watcher was killed
                pipe.write(f"{word}{pid}\n".encode())
                pipe.flush()

        yield watch


def _run(playing: Coroutine[Any, Any, list[Result]]) -> list[Result]:
    """Run until all is played; SIGTERM and SIGHUP end it as Ctrl-C does, with no program left behind."""

    async def until_done() -> list[Result]:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        for number in (signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, task.cancel)
        return await playing

    try:
        return asyncio.run(until_done())
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


def _described(config_path: Path | None, informer: str | None) -> tuple[str, str | None]:
    """Return the TCP address of the server that the configuration describes, and its informer's socket."""
    config = load_config(config_path)
    address = config.native.tcp4 or config.native.tcp6
    if address is None:
        raise click.UsageError("the configuration names no TCP listener; give HOST:PORT")
    if informer is None and config.informer is not None:
        informer = str(config.directory / config.informer)
    return str(address), informer


def _address(text: str) -> tuple[str, int]:
    if "://" in text:
        raise click.UsageError(f"{text!r} is no HOST:PORT, and cases are played in plain text; name [native] tcp4")
    host, colon, port = text.rpartition(":")
    if not colon:
        host, port = text, str(DEFAULT_PORT)
    if not port.isdecimal() or not 1 <= int(port) <= 65535 or not host:
        raise click.UsageError(f"{text!r} is no HOST:PORT; write it as 127.0.0.1:2223")
    try:
        host.encode("idna")
    except UnicodeError:
        raise click.UsageError(f"{text!r}: {NO_NAME}; write it as 127.0.0.1:2223") from None
    return host.removeprefix("[").removesuffix("]"), int(port)


def _chosen(side: str, numbers: Sequence[int]) -> list[Case]:
    cases = load(side)
    wrong = sorted(set(numbers) - {case.number for case in cases})
    if wrong:
        raise click.UsageError(f"there is no {side} case {wrong[0]}; `bester conform {side} --list` shows them")
    return [case for case in cases if not numbers or case.number in numbers]


def _listed(cases: Sequence[Case]) -> int:
    for case in cases:
        out(f"{case.number:4}  {case.title}" + ("" if case.required else " (recommended)"))
    return 0


def _reported(
    played: Callable[[Callable[[Result], None]], list[Result]], json_lines: bool, junit_file: Path | None, name: str
) -> int:
    def on_result(result: Result) -> None:
        for line in [as_json(result)] if json_lines else lines(result):
            out(line)

    if junit_file is not None:
        junit_file.touch()  # a file that cannot be written is reported before the run, not after it
    results = _single(played, on_result)
    if junit_file is not None:
        junit_file.write_bytes(junit(results, f"bester.conform.{name}"))
    (err if json_lines else out)(summary(results))
    return 1 if any(result.breaks for result in results) else 0


def _single(
    played: Callable[[Callable[[Result], None]], list[Result]], on_result: Callable[[Result], None]
) -> list[Result]:
    """Play, and raise the first error alone where several tasks have ended with one."""
    try:
        return played(on_result)
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None
