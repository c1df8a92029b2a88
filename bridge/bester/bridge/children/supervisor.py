"""Starts child processes, starts them again when they end, and leaves none behind.

Each child leads a process group of its own, so that processes which the child started end with the child. The
supervisor uses signals and standard output only, never the fabric: whether a handler answers is for the broker to
know, which may ask for a restart.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from bester.bridge.children import guard
from bester.bridge.children.changes import Seen, seen
from bester.bridge.children.lives import HOPELESS_STATUS, Lives, State
from bester.bridge.children.output import Output
from bester.bridge.children.pipes import Pipes
from bester.bridge.children.plan import Child
from bester.bridge.children.sockets import is_served
from bester.broker.logs import facts

GRACE_S = 5.0
"""From SIGTERM to SIGKILL: a handler finishes its messages, and one that hangs does not hold up the end."""
RESTART_GRACE_S = 2.0
"""The same for a child that is to be started again: nobody waits for its messages any more."""
SOCKET_LOOK_S = 1.0
"""Time between two looks at a socket that another process serves."""
FREE_LOOKS = 3
"""Looks in a row at a socket that nobody serves: a user about to start the program again gets this long."""
CHANGE_LOOK_S = 1.0
"""Time between two looks for a change that may bring back a child that was given up."""
LAST_WORDS_S = 1.0
"""Time for the output of a child that has ended; a process that left its group may hold the pipe for ever."""
HOPELESS_ERRORS = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.ENOEXEC})
"""Errors with which a program cannot be started until somebody mends it; all others may pass."""

_log = logging.getLogger("bester.bridge.children")


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
            if await self._stopped_within(SOCKET_LOOK_S):
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
        while not await self._stopped_within(CHANGE_LOOK_S):
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
        with Pipes() as pipes:
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
