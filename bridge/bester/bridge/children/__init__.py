"""Starts the declared handlers as child processes, starts them again when they die, and leaves none behind.

Each child leads a process group of its own, so that what it started goes with
it. It speaks to its children through signals and their standard output only,
never through the fabric: whether a handler answers is the broker's to know, who
may ask for one to be started again.
"""

from __future__ import annotations

import asyncio
import errno
import importlib.util
import logging
import os
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from typing import BinaryIO

from bester.bridge.children import guard
from bester.bridge.children.backoff import Backoff
from bester.broker.config import Config, HandlerConfig
from bester.broker.pace import PACED
from bester.broker.wire.codes import ConfigError

GRACE_S = 5.0
"""From SIGTERM to SIGKILL: a handler finishes what it holds, one that hangs does not hold up the end."""
RESTART_GRACE_S = 2.0
"""The same for one that is to be started again: it holds nothing that anybody waits for."""
LINE_LIMIT = 4096
"""Characters of one line of a child's output that are logged together."""
READ_BYTES = 16 * 1024
LAST_WORDS_S = 1.0
"""For the output of a child that has ended; a process that left its group may hold the pipe for ever."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Child:
    """One process to keep running: `argv` with these variables added to the environment.

    With `lifeline` its standard input is a pipe that ends when this process does, else it is empty.
    """

    name: str
    argv: tuple[str, ...]
    environment: Mapping[str, str]
    lifeline: bool = False


def plan(config: Config, fabric: str) -> list[Child]:
    """Return a child for each worker of each handler; `fabric` is the URL they connect to.

    Raises ConfigError for a command whose program is not there, and for an app whose module is not.
    """
    children = []
    for handler in config.handlers:
        command = _command(config, handler)
        _look_for_module(config, handler)
        for index in range(handler.workers):
            name = handler.name if handler.workers == 1 else f"{handler.name}.{index}"
            environment = {"BESTER_FABRIC": fabric, "BESTER_TYPES": ",".join(handler.types), "BESTER_NAME": name}
            argv = command or _python(handler, index)
            children.append(Child(name, argv, environment, lifeline=not command))
        if handler.program:
            children.append(Child(f"{handler.name}.program", handler.program, {}))
    return children


def _python(handler: HandlerConfig, index: int) -> tuple[str, ...]:
    what = (handler.app,) if handler.app else ("--socket", str(handler.socket))
    return (sys.executable, "-m", "bester.handlers", *what, "--untimed", "--child", str(index))


def _command(config: Config, handler: HandlerConfig) -> tuple[str, ...]:
    if not handler.command:
        return ()
    program, *arguments = handler.command
    # As a shell in the configuration's directory would find it.
    found = shutil.which(str(config.directory / program) if os.sep in program else program)
    if found is None:
        where = f"{config.path}: [handlers.{handler.name}] command"
        raise ConfigError(f"{where}: no program {program!r} is found; install it, or write its path")
    return (found, *arguments)


def _look_for_module(config: Config, handler: HandlerConfig) -> None:
    """Raise ConfigError where an app's module is not there; what is wrong inside it, the child says that imports it."""
    module = (handler.app or "").partition(":")[0]
    if module and not _is_there(module, config.directory):
        where = f"{config.path}: [handlers.{handler.name}] app"
        what = f"there is no module {module!r} in {config.directory} or among the installed ones"
        raise ConfigError(f"{where}: {what}; correct its name, or install it")


def _is_there(module: str, directory: Path) -> bool:
    """Say whether Python would find a module from `directory`. Nothing is imported; when in doubt, it is there."""
    importlib.invalidate_caches()
    top, *inner = module.split(".")
    try:
        spec = PathFinder.find_spec(top, [str(directory), *sys.path]) or importlib.util.find_spec(top)
        for part in inner:
            if spec is None or spec.submodule_search_locations is None:
                return False
            spec = PathFinder.find_spec(f"{spec.name}.{part}", spec.submodule_search_locations)
    except (ImportError, KeyError, ValueError):  # such as a folder without __init__.py inside another
        return True
    return spec is not None


class Children:
    """Runs children until `stop`. Belongs to one event loop."""

    def __init__(self, children: Sequence[Child], directory: Path) -> None:
        """`directory` is where the children run; Python finds its modules there."""
        self._children = tuple(children)
        self._directory = directory
        self._stopping = asyncio.Event()
        self._everyone: asyncio.Task[None] | None = None
        self._guard: asyncio.subprocess.Process | None = None
        self.pids: dict[str, int] = {}
        """The process of each child that runs now, by its name."""
        self._restarting: dict[str, asyncio.TimerHandle] = {}

    async def start(self) -> None:
        """Start the guard, then every child; returns without waiting for them to be of use."""
        if not self._children:
            return
        self._guard = await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            "-S",
            guard.__file__,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
        self._everyone = asyncio.create_task(self._keep_all(), name="children")

    async def stop(self, grace_s: float = GRACE_S) -> None:
        """End every child with SIGTERM, after `grace_s` with SIGKILL, and wait for it. Twice does no harm."""
        self._stopping.set()
        for name in list(self.pids):
            self._signal(name, signal.SIGTERM)
        if self._everyone is not None:
            done, _ = await asyncio.wait([self._everyone], timeout=grace_s)
            if not done:
                for name in list(self.pids):
                    _log.warning("handler %s did not end within %g s and is killed", name, grace_s)
                    self._signal(name, signal.SIGKILL)
            await self._everyone
            self._everyone = None
        if self._guard is not None and self._guard.stdin is not None:
            self._guard.stdin.close()
            await self._guard.wait()
            self._guard = None

    def restart(self, process: int, why: str) -> bool:
        """End the child that this process is, or belongs to, and have it started again. False: it is no child."""
        try:
            group = os.getpgid(process)
        except ProcessLookupError:
            return False
        name = next((name for name, pid in self.pids.items() if pid == group), None)
        if name is None or self._stopping.is_set():
            return name is not None
        if name not in self._restarting:
            _log.warning("handler %s is ended, to be started again: %s", name, why)
            self._signal(name, signal.SIGTERM)
            loop = asyncio.get_running_loop()
            self._restarting[name] = loop.call_later(RESTART_GRACE_S, self._signal, name, signal.SIGKILL)
        return True

    async def _keep_all(self) -> None:
        async with asyncio.TaskGroup() as group:
            for child in self._children:
                group.create_task(self._keep(child), name=f"child {child.name}")

    async def _keep(self, child: Child) -> None:
        backoff = Backoff()
        clock = asyncio.get_running_loop().time
        while not self._stopping.is_set():
            backoff.started(clock())
            ended = await self._live(child)
            wait_s = backoff.died(clock())
            if self._stopping.is_set():
                return
            _log.warning("handler %s %s; starting it again in %g s", child.name, ended, wait_s)
            try:
                await asyncio.wait_for(self._stopping.wait(), wait_s)
            except TimeoutError:
                pass

    async def _live(self, child: Child) -> str:
        """Run a child from its start to its end; return how it ended, for people."""
        with _Pipes() as pipes:
            try:
                process = await asyncio.create_subprocess_exec(
                    *child.argv,
                    stdin=pipes.stdin,
                    stdout=pipes.stdout,
                    stderr=pipes.stdout,
                    cwd=self._directory,
                    env={**os.environ, **child.environment},
                    start_new_session=True,
                )
            except OSError as error:
                return f"cannot be started: {error.strerror}"
            self._tell_guard(b"+", process.pid)
            self.pids[child.name] = process.pid
            pipes.handed_over(child.lifeline)
            reading = asyncio.create_task(_log_lines(child.name, pipes.output()))
            if self._stopping.is_set():  # the end was asked for while it started
                self._signal(child.name, signal.SIGTERM)
            try:
                status = await process.wait()
            finally:
                restarting = self._restarting.pop(child.name, None)
                if restarting is not None:
                    restarting.cancel()
                self._signal(child.name, signal.SIGKILL)  # what it has left behind in its group
                del self.pids[child.name]
                self._tell_guard(b"-", process.pid)
                await asyncio.wait([reading], timeout=LAST_WORDS_S)
                reading.cancel()
        return f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with exit status {status}"

    def _signal(self, name: str, number: int) -> None:
        try:
            os.killpg(self.pids[name], number)
        except OSError as error:
            if error.errno not in (errno.ESRCH, errno.EPERM):  # the group is gone, or only a zombie
                raise

    def _tell_guard(self, sign: bytes, pid: int) -> None:
        if self._guard is not None and self._guard.stdin is not None and not self._guard.stdin.is_closing():
            self._guard.stdin.write(b"%b%d\n" % (sign, pid))


class _Pipes:
    """Standard input and output of one child, as plain descriptors: a stray grandchild that keeps them binds nobody."""

    def __init__(self) -> None:
        self.stdin, self._lifeline = os.pipe()
        self._output, self.stdout = os.pipe()
        self._open = {self.stdin, self._lifeline, self._output, self.stdout}

    def __enter__(self) -> _Pipes:
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self._open:
            os.close(descriptor)

    def handed_over(self, lifeline: bool) -> None:
        """Close the child's ends, now that it has them; without a lifeline its input ends here."""
        for descriptor in (self.stdin, self.stdout) if lifeline else (self.stdin, self.stdout, self._lifeline):
            os.close(descriptor)
            self._open.remove(descriptor)

    def output(self) -> BinaryIO:
        """Return what the child writes; whoever takes it closes it."""
        self._open.remove(self._output)
        return os.fdopen(self._output, "rb", 0)


async def _log_lines(name: str, output: BinaryIO) -> None:
    """Log what a child writes, line by line, a line of any length in pieces; closes `output`."""
    stream = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(stream)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, output)
    rest = b""
    try:
        while data := await stream.read(READ_BYTES):
            *lines, rest = (rest + data).split(b"\n")
            if len(rest) > LINE_LIMIT:
                lines.append(rest)
                rest = b""
            _log_all(name, lines)
        _log_all(name, [rest] if rest else [])
    finally:
        transport.close()


def _log_all(name: str, lines: Sequence[bytes]) -> None:
    for line in lines:
        text = line.decode(errors="replace").rstrip()
        for start in range(0, len(text), LINE_LIMIT):
            _log.info("%s | %s", name, text[start : start + LINE_LIMIT], extra=PACED)
