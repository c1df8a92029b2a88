"""Several processes of one bridge at one address: started, restarted when they die, and ended together.

Each worker is a bridge of its own, with a name and an epoch of its own, and listens on a socket of its own: the system
gives each new connection to one of them (SO_REUSEPORT). The parent holds the ports, so that they stay while a worker is
restarted, and that a port of 0 is the same one for all. A Unix socket is served by the first worker alone.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace

from bester.bridge.lifeline import ParentEnd
from bester.bridge.listeners import TLS_KEY, WEB_KEY, bind_tcp, check_plaintext, family_of
from bester.bridge.service import DRAIN_S
from bester.bridge.standalone import require_listener
from bester.broker import descriptors
from bester.broker.config import Config
from bester.broker.logs import facts
from bester.broker.loop import run
from bester.broker.systemd import service_manager
from bester.broker.wire.address import HostPort
from bester.broker.wire.codes import ConfigError

MAX_WORKERS = 64
"""Worker processes of one bridge; each costs some 40 MB, and more than the machine's cores are of no use."""
FIRST_RESTART_S = 0.2
LAST_RESTART_S = 10.0
STEADY_S = 10.0
"""A worker that lived so long is restarted soon; others after a delay that doubles between the two bounds. Meanwhile
the other workers get the new connections."""
GRACE_S = DRAIN_S + 5.0
"""From SIGTERM to SIGKILL: a worker waits for reports, and one that hangs does not hold up the end."""

log = logging.getLogger("bester.bridge")


def addresses_of(config: Config) -> list[tuple[str, HostPort, int]]:
    """Return the TCP listeners of a configuration, in a fixed order: key, address and family of each."""
    native = config.native
    found = [("[native] tcp4", native.tcp4, int(socket.AF_INET)), ("[native] tcp6", native.tcp6, int(socket.AF_INET6))]
    found += [(TLS_KEY, address, family_of(address)) for address in (() if native.tls is None else native.tls.listen)]
    found += [(WEB_KEY, native.websocket, family_of(native.websocket))] if native.websocket is not None else []
    return [(key, address, family) for key, address, family in found if address is not None]


def for_worker(config: Config, index: int, ports: Sequence[int]) -> Config:
    """Return the configuration of one worker: `ports` are those of the TCP listeners, in the order of `addresses_of`.
    Raises ConfigError where there are not as many."""
    native, left = config.native, list(ports)
    if len(left) != len(addresses_of(config)):
        raise ConfigError("[native] has other listeners than when the workers were started; restart the bridge")

    def at_port(address: HostPort | None) -> HostPort | None:
        return None if address is None else address._replace(port=left.pop(0))

    tcp4, tcp6 = at_port(native.tcp4), at_port(native.tcp6)
    tls = native.tls
    if tls is not None:
        tls = replace(tls, listen=tuple(address._replace(port=left.pop(0)) for address in tls.listen))
    websocket = at_port(native.websocket)
    unix = native.unix if index == 0 else None
    native = replace(native, tcp4=tcp4, tcp6=tcp6, tls=tls, websocket=websocket, unix=unix)
    return replace(config, native=native, informer=config.informer if index == 0 else None)


def run_workers(
    config: Config, workers: int, command: Sequence[str], on_ready: Callable[[list[str]], None] = lambda addresses: None
) -> int:
    """Run so many workers until SIGTERM; return the exit status. `command` starts a worker, with `--child` and its
    number and ports behind. `on_ready` gets the addresses once all of them serve. Raises ConfigError."""
    if not 1 <= workers <= MAX_WORKERS:
        raise ConfigError(f"--workers is a number from 1 to {MAX_WORKERS}, not {workers}")
    require_listener(config)
    if not addresses_of(config):
        raise ConfigError("--workers shares TCP ports, and [native] names none; set tcp4, or leave --workers out")
    if service_manager().passes_sockets:
        raise ConfigError(
            "systemd passes sockets, and each worker opens one of its own: leave out --workers, or the .socket unit"
        )

    async def main(stop: asyncio.Event) -> int:
        """Hold the ports, and run the workers until `stop` is set."""
        with ExitStack() as held:
            ports = []
            for key, address, family in addresses_of(config):
                sock = await _reserve(key, address, family, insecure=config.native.insecure)
                held.enter_context(sock)
                ports.append(sock.getsockname()[1])
            return await _Workers(workers, [*command, "--ports", ",".join(map(str, ports))], stop, on_ready).run()

    return run(main)


async def _reserve(key: str, address: HostPort, family: int, *, insecure: bool) -> socket.socket:
    """Return a socket that holds an address for the workers, and does not listen. Raises ConfigError where somebody
    else listens there, be it another bridge with workers."""
    if key.startswith("[native] tcp"):
        check_plaintext(key, address, insecure)
    if address.port:
        probe = await bind_tcp(key, address, family=family)
        probe.close()
    return await bind_tcp(key, address, family=family, shared=True)


class _Workers:
    """Workers of one parent process, until `stop` is set or one of them cannot start."""

    def __init__(
        self, count: int, command: Sequence[str], stop: asyncio.Event, on_ready: Callable[[list[str]], None]
    ) -> None:
        self._count = count
        self._command = command
        self._stop = stop
        self._on_ready = on_ready
        self._served: dict[int, list[str]] = {}  # addresses of the workers that have served, by number
        self._running: dict[int, asyncio.subprocess.Process] = {}
        self._statuses: list[int] = []
        self._reloading: set[int] = set()  # workers that a SIGHUP does not end any more
        self._to_reload: set[int] = set()  # others that a SIGHUP is for: they may have read the configuration already

    async def run(self) -> int:
        """Run all workers; return the worst exit status at the end."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._reload)
        try:
            async with asyncio.TaskGroup() as group:
                for index in range(self._count):
                    group.create_task(self._keep_running(index), name=f"worker {index}")
        finally:
            for process in self._running.values():  # cancelled: a second signal
                process.kill()
        return max(self._statuses, default=0)

    def _reload(self) -> None:
        self._to_reload.update(range(self._count))
        for index in self._reloading:
            self._pass_on(index)

    def _reloads(self, index: int) -> None:
        self._reloading.add(index)
        self._pass_on(index)

    def _pass_on(self, index: int) -> None:
        """Have a worker read the configuration again, where a SIGHUP has come for it."""
        if index in self._to_reload:
            self._to_reload.discard(index)
            with suppress(ProcessLookupError):  # it has just ended, and the next one reads the configuration
                self._running[index].send_signal(signal.SIGHUP)

    def _ready(self, index: int, addresses: list[str]) -> None:
        is_first = index not in self._served
        self._served[index] = addresses
        if is_first and len(self._served) == self._count:
            self._on_ready(self._served[0])

    async def _keep_running(self, index: int) -> None:
        """Run one worker until the stop, restarted when it dies. One that ends by itself before it has ever served ends
        all: its reason is in the log, and another start would change nothing."""
        loop = asyncio.get_running_loop()
        delay_s = FIRST_RESTART_S
        while not self._stop.is_set():
            begun = loop.time()
            status = 0
            try:
                status = await self._run_once(index)
            except OSError as error:  # no process or descriptor just now: the others go on
                why, came = f"cannot be started: {error.strerror}", True
            else:
                why = f"was ended by signal {-status}" if status < 0 else f"ended with exit status {status}"
                came = status < 0 or index in self._served
            if self._stop.is_set():
                self._statuses.append(0 if status in (0, -signal.SIGTERM) else 1)  # the signal may come before the loop
                return
            if not came:
                self._statuses.append(status or 1)
                self._stop.set()
                return
            delay_s = FIRST_RESTART_S if loop.time() - begun >= STEADY_S else min(delay_s * 2, LAST_RESTART_S)
            fields = facts("bridge-worker-ended", worker=index, why=why, again_in_s=delay_s)
            log.error("worker %d %s; starting it again in %g s", index, why, delay_s, extra=fields)
            await _is_set_within(self._stop, delay_s)

    async def _run_once(self, index: int) -> int:
        """Run one worker from start to end; return its exit status, negative for the signal that ended it."""
        mine, its = socket.socketpair()
        with mine, its:
            descriptors.require(descriptors.OF_A_CHILD)
            self._to_reload.discard(index)
            # In a session of its own: Ctrl-C at a terminal is for the parent, which ends the workers.
            process = await asyncio.create_subprocess_exec(
                *self._command, "--child", str(index), stdin=its.fileno(), start_new_session=True
            )
            its.close()
            self._running[index] = process
            mine.setblocking(False)
            loop = asyncio.get_running_loop()
            line, _ = await loop.create_connection(
                lambda: ParentEnd(lambda: self._reloads(index), lambda addresses: self._ready(index, addresses)),
                sock=mine.dup(),
            )
            ended, stopped = asyncio.ensure_future(process.wait()), asyncio.ensure_future(self._stop.wait())
            try:
                await asyncio.wait((ended, stopped), return_when=asyncio.FIRST_COMPLETED)
                if not ended.done():
                    process.terminate()
                    await asyncio.wait((ended,), timeout=GRACE_S)
                if not ended.done():
                    fields = facts("bridge-worker-killed", worker=index, grace_s=GRACE_S)
                    log.warning("worker %d did not end within %g s and is killed", index, GRACE_S, extra=fields)
                    process.kill()
                return await ended
            finally:
                stopped.cancel()
                line.close()
                self._reloading.discard(index)
                if ended.done():
                    del self._running[index]


async def _is_set_within(event: asyncio.Event, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            return await event.wait()
    except TimeoutError:
        return False
