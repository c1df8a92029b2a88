"""Supervisor of child processes: starts them, starts them again when they end, and leaves none behind.

Each child leads a process group of its own, so that processes which the child started end with the child. The
supervisor uses signals and standard output only, never the fabric: whether a handler answers is for the broker to know,
which may ask for a restart.
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
from bester.broker import descriptors
from bester.broker.logs import facts

GRACE_S = 5.0
"""From SIGTERM to SIGKILL: a handler finishes its messages, and one that hangs does not hold up the end."""
RESTART_GRACE_S = 2.0
"""From SIGTERM to SIGKILL of a child that is to be started again: nobody waits for its messages."""
SOCKET_LOOK_S = 1.0
"""Time between two looks at a socket that another process serves."""
FREE_LOOKS = 3
"""Looks in a row at a socket that nobody serves: a user about to start the program again gets this long."""
CHANGE_LOOK_S = 1.0
"""Time between two looks for a change that may bring back a child that was given up."""
LAST_OUTPUT_S = 1.0
"""Time for the output of a child that has ended; a process that left its group may hold the pipe for ever."""
HOPELESS_ERRORS = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.ENOEXEC})
"""Errors with which a program cannot be started until somebody mends it; all others may pass."""

_log = logging.getLogger("bester.bridge.children")


class Children:
    """Supervisor of children, until `stop`. Belongs to one event loop."""

    def __init__(self, children: Sequence[Child], directory: Path) -> None:
        """Children run in `directory`; Python finds its modules there."""
        self._children = tuple(children)
        self._directory = directory
        self._stopping = asyncio.Event()
        self._running: asyncio.Task[None] | None = None
        self._guard: asyncio.subprocess.Process | None = None
        self.pids: dict[str, int] = {}
        """Process of each running child, by name."""
        self.lives: dict[str, Lives] = {child.name: Lives() for child in self._children}
        """Lives of each child, by name."""
        self.on_given_up: Callable[[frozenset[str]], None] = lambda types: None
        """Called with the message types whose children are all given up, at each change."""
        self._restarting: dict[str, asyncio.TimerHandle] = {}

    async def start(self) -> None:
        """Start the guard, then every child; return without waiting until they serve."""
        if not self._children:
            return
        descriptors.require(descriptors.OF_A_CHILD)
        self._guard = await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            "-S",
            guard.__file__,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
        self._running = asyncio.create_task(self._run_all(), name="children")

    async def stop(self, grace_s: float = GRACE_S) -> None:
        """End every child with SIGTERM, after `grace_s` with SIGKILL, and wait for them. May be called twice."""
        self._stopping.set()
        for name in list(self.pids):
            self._signal(name, signal.SIGTERM)
        if self._running is not None:
            done, _ = await asyncio.wait([self._running], timeout=grace_s)
            if not done:
                for name in list(self.pids):
                    fields = facts("handler-killed", handler=name, grace_s=grace_s)
                    _log.warning("handler %s did not end within %g s and is killed", name, grace_s, extra=fields)
                    self._signal(name, signal.SIGKILL)
            await self._running
            self._running = None
        if self._guard is not None and self._guard.stdin is not None:
            self._guard.stdin.close()
            await self._guard.wait()
            self._guard = None

    def served(self, name: str, types: Collection[str]) -> None:
        """Note that a handler with this name and these types serves: its child has started well.

        The name identifies the child. A handler with a name of its own may be any child that serves one of the types.
        """
        here = [child for child in self._children if not child.elsewhere]
        named = [child for child in here if child.name == name]
        for child in named or [child for child in here if not child.types.isdisjoint(types)]:
            if self.lives[child.name].served():
                _log.info("handler %s is back", child.name, extra=facts("handler-back", handler=child.name))
                self._report_given_up()

    def _report_given_up(self) -> None:
        gone: set[str] = set()
        left: set[str] = set()
        for child in [child for child in self._children if not (child.shadow or child.elsewhere)]:
            (gone if self.lives[child.name].state is State.GIVEN_UP else left).update(child.types)
        self.on_given_up(frozenset(gone - left))

    def restart(self, process: int, why: str) -> bool:
        """End the child that owns this process, and have it started again; False where no child owns the process."""
        try:
            group = os.getpgid(process)
        except ProcessLookupError:
            return False
        name = next((name for name, pid in self.pids.items() if pid == group), None)
        if name is None or self._stopping.is_set():
            return name is not None
        if name not in self._restarting:
            fields = facts("handler-ended", handler=name, why=why)
            _log.warning("handler %s is ended, to be started again: %s", name, why, extra=fields)
            self._signal(name, signal.SIGTERM)
            loop = asyncio.get_running_loop()
            self._restarting[name] = loop.call_later(RESTART_GRACE_S, self._signal, name, signal.SIGKILL)
        return True

    async def _run_all(self) -> None:
        async with asyncio.TaskGroup() as group:
            for child in self._children:
                group.create_task(self._run(child), name=f"child {child.name}")

    async def _run(self, child: Child) -> None:
        lives = self.lives[child.name]
        clock = asyncio.get_running_loop().time
        while not self._stopping.is_set():
            before, files = lives.state, seen(child.argv, self._directory)
            try:
                if child.serves is not None and not await self._has_socket(child.name, child.serves):
                    return
                lives.started(clock())
                ended, hopeless = await self._run_once(child)
            except Exception as error:  # noqa: BLE001 (a fault of one life ends that life; the other children go on)
                ended, hopeless = f"cannot be kept running: {type(error).__name__}: {error}", False
                fields = facts("handler-fault", handler=child.name)
                _log.debug("while handler %s ran", child.name, exc_info=error, extra=fields)
            wait_s = lives.on_exit(clock(), ended, hopeless=hopeless)
            if self._stopping.is_set():
                return
            fields = facts("handler-ended", handler=child.name, why=ended, again_in_s=wait_s)
            if lives.state is not State.GIVEN_UP:
                _log.warning("handler %s %s; starting it again in %g s", child.name, ended, wait_s, extra=fields)
                await self._stopped_within(wait_s)
                continue
            if before is not State.GIVEN_UP:
                self._give_up(child.name, lives)
            if await self._changed(child, files, wait_s):
                lives.changed()
                self._report_given_up()

    async def _has_socket(self, name: str, path: Path) -> bool:
        """Wait until no other process serves a child's socket; False where the supervisor is stopping.

        The other process may be restarted by its own supervisor, and is preferred until FREE_LOOKS looks have found
        nobody serving.
        """
        if not is_served(path):
            return True
        fields = facts("socket-served", handler=name, socket=str(path))
        _log.warning(
            "handler %s is not started: a process serves %s already, and is used instead", name, path, extra=fields
        )
        free = 0
        while free < FREE_LOOKS:
            if await self._stopped_within(SOCKET_LOOK_S):
                return False
            free = 0 if is_served(path) else free + 1
        fields = facts("socket-free", handler=name, socket=str(path))
        _log.warning("handler %s is started: nobody serves %s any more", name, path, extra=fields)
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
        self._report_given_up()

    async def _changed(self, child: Child, files: Seen, wait_s: float | None) -> bool:
        """Wait for a change since `files` were seen, at most `wait_s`; return whether there was one."""
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
        """Wait at most `wait_s` for the stop; return whether it came."""
        try:
            await asyncio.wait_for(self._stopping.wait(), wait_s)
        except TimeoutError:
            return False
        return True

    async def _run_once(self, child: Child) -> tuple[str, bool]:
        """Run a child from start to end; return a description of the end, and whether it is hopeless."""
        output = Output(child.name)
        try:
            opened = Pipes()
        except OSError as error:  # no descriptor is free
            return f"cannot be started: {error.strerror}", False
        with opened as pipes:
            try:
                descriptors.require(descriptors.OF_A_CHILD)
                process = await asyncio.create_subprocess_exec(
                    *child.argv,
                    stdin=pipes.stdin,
                    stdout=pipes.stdout,
                    stderr=pipes.stdout,
                    cwd=self._directory,
                    env=_environment(child),
                    start_new_session=True,
                )
            except OSError as error:
                return f"cannot be started: {error.strerror}", error.errno in HOPELESS_ERRORS
            except RuntimeError as error:  # asyncio watches a child from a thread, and the system has none just now
                return f"cannot be started: {error}", False
            self._tell_guard(b"+", process.pid)
            self.pids[child.name] = process.pid
            pipes.handed_over(child.lifeline)
            reading = asyncio.create_task(output.log(pipes.output()))
            if self._stopping.is_set():  # stopped while the child started
                self._signal(child.name, signal.SIGTERM)
            try:
                status = await process.wait()
            finally:
                restarting = self._restarting.pop(child.name, None)
                if restarting is not None:
                    restarting.cancel()
                self._signal(child.name, signal.SIGKILL)  # processes that the child has left behind in its group
                del self.pids[child.name]
                self._tell_guard(b"-", process.pid)
                await asyncio.wait([reading], timeout=LAST_OUTPUT_S)
                reading.cancel()
        is_early = child.lifeline and output.is_silent and not (child.shadow or self.lives[child.name].has_served)
        early = " while it was imported or started, without a line" if is_early else ""  # as by os._exit, or a crash
        if status < 0:
            return f"was ended by {_signal_name(-status)}{early}", False
        cause = f": {output.cause}" if status and output.cause else early
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


def _environment(child: Child) -> dict[str, str]:
    """Return the environment of a child; without a buffer the output of a Python program is seen when it is printed."""
    ours = {name: value for name, value in os.environ.items() if name not in child.withheld}
    return {"PYTHONUNBUFFERED": "1", **ours, **child.environment}


def _signal_name(number: int) -> str:
    """Return the name of a signal, such as SIGKILL; most real-time signals have no name, but a number."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
