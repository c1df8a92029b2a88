"""Servers of a story as live processes: each a `bester up` with its handlers as children, all ended together.

They share a process group of their own, so that Ctrl-C reaches the demo alone and the demo ends them in order; if the
demo itself is killed, the guard that leads the group kills them all. (Handlers are ended by their servers.)
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from bester.bridge.children import guard
from bester.broker.config import Config
from bester.broker.wire.codes import BesterError

STOP_S = 10.0
"""Seconds from SIGTERM to SIGKILL: longer than a server gives its own handlers."""
LOG_TAIL_BYTES = 2000


class Servers:
    """Runs one `bester up` for each configuration, from `async with` to its end."""

    def __init__(self, configs: Sequence[Config], environment: Mapping[str, str]) -> None:
        """`environment` is added to that of the servers, and so to that of their handlers."""
        self._configs = configs
        self._environment = {**os.environ, **environment}
        self._running: dict[str, asyncio.subprocess.Process] = {}
        self._guard: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        try:
            self._guard = watch = await asyncio.create_subprocess_exec(
                sys.executable, "-I", "-S", guard.__file__, stdin=asyncio.subprocess.PIPE, process_group=0
            )
            assert watch.stdin is not None
            watch.stdin.write(b"+%d\n" % watch.pid)  # the group, before any process is in it
            for config in self._configs:
                self._running[config.server.name] = await self._start(config, watch.pid)
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def _start(self, config: Config, group: int) -> asyncio.subprocess.Process:
        assert config.path is not None
        with open(_log(config), "wb") as log:  # noqa: ASYNC230 (a new file on the local disk)
            return await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "bester.cli", "up", "-c", config.path.name),
                cwd=config.directory,
                env=self._environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=group,
            )

    async def __aexit__(self, *_: object) -> None:
        running = [process for process in self._running.values() if process.returncode is None]
        for process in running:
            process.terminate()
        ends = [asyncio.ensure_future(process.wait()) for process in running]
        if ends:
            await asyncio.wait(ends, timeout=STOP_S)
        for process in running:
            if process.returncode is None:
                process.kill()
        await asyncio.gather(*ends)
        if self._guard is not None:
            assert self._guard.stdin is not None
            self._guard.stdin.write(b"-%d\n" % self._guard.pid)
            self._guard.stdin.close()
            await self._guard.wait()

    def check(self) -> None:
        """Raise BesterError where a server has ended."""
        for name, process in self._running.items():
            if process.returncode is not None:
                raise BesterError(
                    "unreachable", f"{name} ended with exit status {process.returncode}; {self.last_log_lines()}"
                )

    def last_log_lines(self) -> str:
        """Return the last line of every server's log, as one line."""
        return "; ".join(f"{config.server.name}: {_last_line(_log(config))}" for config in self._configs)


def _log(config: Config) -> Path:
    return config.directory / f"{config.server.name}.log"


def _last_line(log: Path) -> str:
    text = log.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace").strip() if log.exists() else ""
    return text.rpartition("\n")[2] or "nothing logged"
