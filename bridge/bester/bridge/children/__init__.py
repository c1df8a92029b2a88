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
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from typing import BinaryIO

from bester.bridge.children import guard
from bester.bridge.children.changes import Seen, seen
from bester.bridge.children.lives import HOPELESS_STATUS, Lives, State
from bester.bridge.children.output import Output
from bester.bridge.children.sockets import is_served
from bester.broker.config import Config, HandlerConfig
from bester.broker.logs import facts
from bester.broker.wire.codes import ConfigError

GRACE_S = 5.0
"""From SIGTERM to SIGKILL: a handler finishes what it holds, one that hangs does not hold up the end."""
RESTART_GRACE_S = 2.0
"""The same for one that is to be started again: it holds nothing that anybody waits for."""
LOOK_S = 1.0
"""How often a socket that another process serves is looked at."""
FREE_LOOKS = 3
"""Looks in a row at which nobody served it: whoever is about to start its program again is not forestalled."""
LAST_WORDS_S = 1.0
"""For the output of a child that has ended; a process that left its group may hold the pipe for ever."""

LOOK_S = 1.0
"""How often it is looked whether something has changed that may bring a child back which was given up."""
TYPES = "BESTER_TYPES"
HOPELESS_ERRORS = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.ENOEXEC})
"""Why a program cannot be started until somebody mends it; all else may pass."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Child:
    """One process to keep running: `argv` with these variables added to the environment.

    With `lifeline` its standard input is a pipe that ends when this process does, else it is empty. `serves` is the
    Unix socket that it will serve: it is not started while another process does.
    """

    name: str
    argv: tuple[str, ...]
    environment: Mapping[str, str]
    lifeline: bool = False
    serves: Path | None = None

    @property
    def types(self) -> frozenset[str]:
        """The message types it serves."""
        return frozenset(filter(None, self.environment.get(TYPES, "").split(",")))


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
            environment = {"BESTER_FABRIC": fabric, TYPES: ",".join(handler.types), "BESTER_NAME": name}
            argv = command or _python(handler, index)
            children.append(Child(name, argv, environment, lifeline=not command))
        if handler.program:
            children.append(Child(f"{handler.name}.program", handler.program, {}, serves=handler.socket))
    return children


def _python(handler: HandlerConfig, index: int) -> tuple[str, ...]:
    what = (handler.app,) if handler.app else ("--socket", str(handler.socket), "--order", handler.order)
    level = ("--log-level", "debug") if logging.getLogger().isEnabledFor(logging.DEBUG) else ()
    return (sys.executable, "-m", "bester.handlers", *what, "--log", "json", *level, "--child", str(index))


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
        self.lives: dict[str, Lives] = {child.name: Lives() for child in self._children}
        """What is known of each child, by its name."""
        self.on_given_up: Callable[[frozenset[str]], None] = lambda types: None
        """Gets the message types whose children are all given up, whenever they are others than before."""
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
                    known = facts("handler-killed", handler=name, grace_s=grace_s)
                    _log.warning("handler %s did not end within %g s and is killed", name, grace_s, extra=known)
                    self._signal(name, signal.SIGKILL)
            await self._everyone
            self._everyone = None
        if self._guard is not None and self._guard.stdin is not None:
            self._guard.stdin.close()
            await self._guard.wait()
            self._guard = None

    def served(self, name: str, types: Collection[str]) -> None:
        """A handler of this name and these types is of use now: whichever child it is has started well."""
        for child in self._children:
            is_it = child.name == name or not child.types.isdisjoint(types)
            if is_it and self.lives[child.name].served():
                _log.info("handler %s is back", child.name, extra=facts("handler-back", handler=child.name))
                self._tell_given_up()

    def _tell_given_up(self) -> None:
        gone: set[str] = set()
        left: set[str] = set()
        for child in self._children:
            (gone if self.lives[child.name].state is State.GIVEN_UP else left).update(child.types)
        self.on_given_up(frozenset(gone - left))

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
            known = facts("handler-ended", handler=name, why=why)
            _log.warning("handler %s is ended, to be started again: %s", name, why, extra=known)
            self._signal(name, signal.SIGTERM)
            loop = asyncio.get_running_loop()
            self._restarting[name] = loop.call_later(RESTART_GRACE_S, self._signal, name, signal.SIGKILL)
        return True

    async def _keep_all(self) -> None:
        async with asyncio.TaskGroup() as group:
            for child in self._children:
                group.create_task(self._keep(child), name=f"child {child.name}")

    async def _keep(self, child: Child) -> None:
        lives = self.lives[child.name]
        clock = asyncio.get_running_loop().time
        while not self._stopping.is_set():
            if child.serves is not None and not await self._has_socket(child.name, child.serves):
                return
            before, files = lives.state, seen(child.argv, self._directory)
            lives.started(clock())
            ended, hopeless = await self._live(child)
            wait_s = lives.on_exit(clock(), ended, hopeless=hopeless)
            if self._stopping.is_set():
                return
            known = facts("handler-ended", handler=child.name, why=ended, again_in_s=wait_s)
            if lives.state is not State.GIVEN_UP:
                _log.warning("handler %s %s; starting it again in %g s", child.name, ended, wait_s, extra=known)
                await self._stopped_within(wait_s)
                continue
            if before is not State.GIVEN_UP:
                self._give_up(child.name, lives)
            if await self._changed(child, files, wait_s):
                lives.changed()
                self._tell_given_up()

    async def _has_socket(self, name: str, path: Path) -> bool:
        """Wait until no other process serves a child's socket. False: the end is asked for.

        Whoever runs it may start it again: it is left to them until nobody has served it at FREE_LOOKS looks.
        """
        if not is_served(path):
            return True
        known = facts("socket-served", handler=name, socket=str(path))
        _log.warning(
            "handler %s is not started: a process serves %s already, and is used instead", name, path, extra=known
        )
        free = 0
        while free < FREE_LOOKS:
            if await self._stopped_within(LOOK_S):
                return False
            free = 0 if is_served(path) else free + 1
        known = facts("socket-free", handler=name, socket=str(path))
        _log.warning("handler %s is started: nobody serves %s any more", name, path, extra=known)
        return True

    def _give_up(self, name: str, lives: Lives) -> None:
        again = "as soon as its files change" if lives.hopeless else "once a minute, and as soon as its files change"
        _log.error(
            "handler %s is given up: %d times running it did not come up; it %s; it is tried again %s",
            name,
            lives.at_once,
            lives.why,
            again,
            extra=facts("handler-given-up", handler=name, why=lives.why, lives=lives.count),
        )
        self._tell_given_up()

    async def _changed(self, child: Child, files: Seen, wait_s: float | None) -> bool:
        """Wait until something has changed since `files` were seen, or so long; return whether it was that."""
        loop = asyncio.get_running_loop()
        deadline = None if wait_s is None else loop.time() + wait_s
        while not await self._stopped_within(LOOK_S):
            if seen(child.argv, self._directory) != files:
                _log.info("handler %s is tried again: files have changed", child.name,
                          extra=facts("handler-changed", handler=child.name))  # fmt: skip
                return True
            if deadline is not None and loop.time() >= deadline:
                return False
        return False

    async def _stopped_within(self, wait_s: float | None) -> bool:
        """Wait so long for the end to be asked for; return whether it was."""
        try:
            await asyncio.wait_for(self._stopping.wait(), wait_s)
        except TimeoutError:
            return False
        return True

    async def _live(self, child: Child) -> tuple[str, bool]:
        """Run a child from its start to its end; return how that came, for people, and whether it is hopeless."""
        said = Output(child.name)
        try:
            opened = _Pipes()
        except OSError as error:  # no descriptor just now
            return f"cannot be started: {error.strerror}", False
        with opened as pipes:
            try:
                process = await asyncio.create_subprocess_exec(
                    *child.argv,
                    stdin=pipes.stdin,
                    stdout=pipes.stdout,
                    stderr=pipes.stdout,
                    cwd=self._directory,
                    # What a Python program prints is to be seen when it is printed.
                    env={"PYTHONUNBUFFERED": "1", **os.environ, **child.environment},
                    start_new_session=True,
                )
            except OSError as error:
                return f"cannot be started: {error.strerror}", error.errno in HOPELESS_ERRORS
            except RuntimeError as error:  # asyncio wants a thread to watch it with, and the system has none just now
                return f"cannot be started: {error}", False
            self._tell_guard(b"+", process.pid)
            self.pids[child.name] = process.pid
            pipes.handed_over(child.lifeline)
            reading = asyncio.create_task(said.log(pipes.output()))
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
        if status < 0:
            return f"was ended by {signal.Signals(-status).name}", False
        cause = f": {said.cause}" if status and said.cause else ""
        return f"ended with exit status {status}{cause}", child.lifeline and status == HOPELESS_STATUS

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
        try:
            self._output, self.stdout = os.pipe()
        except OSError:
            os.close(self.stdin)
            os.close(self._lifeline)
            raise
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
