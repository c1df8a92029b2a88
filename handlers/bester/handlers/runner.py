"""Runs a handler program: `python -m bester.handlers MODULE:APP`, and `bester handler`.

Exit status 0 done (SIGTERM, SIGINT), 1 failed, 2 wrong usage. A user's mistake is one line on standard error.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import math
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import zmq

from bester.broker.pace import Pace
from bester.broker.wire.address import parse_endpoint
from bester.handlers.app import App
from bester.handlers.loading import LoadError, load
from bester.handlers.stacks import line_of
from bester.handlers.worker import DRAIN_S, Worker

DEFAULT_FABRIC = "ipc://bester-data/fabric.sock"
"""Where a server started in this directory listens, unless it was told otherwise."""
MAX_WORKERS = 256
FIRST_RESTART_S = 0.5
LAST_RESTART_S = 30.0
STEADY_S = 10.0
"""A worker process that lived so long is restarted at once; others after a delay that doubles between the two."""
SLOW_IMPORT_S = 5.0
"""An import that takes longer is said in the log: until it has ended, nothing is served."""
LAST_S = DRAIN_S + 5.0
"""From SIGTERM to the end of the process, whatever holds the loop."""
EXIT_S = 2.0
"""How long threads that the user's code has started may hold up the end once the worker has stopped."""

log = logging.getLogger("bester.handlers")


def main(argv: Sequence[str] | None = None) -> int:
    """Run as a command; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bester.handlers", description="Run a Bester handler.")
    parser.add_argument("app", metavar="MODULE:APP", nargs="?", help="the app, as in mychat:app")
    parser.add_argument("--socket", metavar="PATH", help="instead: a handler of the reference daemon, listening there")
    parser.add_argument("--fabric", metavar="URL", help=f"the server's fabric (BESTER_FABRIC, or {DEFAULT_FABRIC})")
    parser.add_argument("--types", metavar="T,T", help="serve these message types (BESTER_TYPES, or all of the app's)")
    parser.add_argument("--name", help="label at the server (BESTER_NAME)")
    parser.add_argument("--workers", metavar="N", type=int, default=1, help="processes to run (1)")
    parser.add_argument("--child", metavar="I", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--untimed", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    return run(
        options.app,
        socket=options.socket,
        fabric=options.fabric,
        types=options.types.split(",") if options.types else None,
        name=options.name,
        workers=options.workers,
        child=options.child,
        untimed=options.untimed,
    )


def run(
    spec: str | None,
    *,
    socket: str | None = None,
    fabric: str | None = None,
    types: Sequence[str] | None = None,
    name: str | None = None,
    workers: int = 1,
    child: int | None = None,
    untimed: bool = False,
    environ: Mapping[str, str] = os.environ,
) -> int:
    """Run the app that `spec` (MODULE:APP) names, or a reference handler at `socket`, until SIGTERM or SIGINT.

    What is None comes from the environment: BESTER_FABRIC, BESTER_TYPES (comma-separated), BESTER_NAME. With
    `workers` above 1, so many processes are run, and restarted when they die. `child`: this is one of them, number
    I, and ends when its standard input does; number 0 alone runs timers and tasks. `untimed`: whoever reads the log
    notes the time. Returns the exit status.
    """
    form = "%(levelname)s %(message)s" if untimed else "%(asctime)s %(levelname)s %(message)s"
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format=form)
    for handler in logging.getLogger().handlers:
        handler.addFilter(Pace())
    if types is None and environ.get("BESTER_TYPES"):
        types = environ["BESTER_TYPES"].split(",")
    types = [type_.strip() for type_ in types if type_.strip()] if types else None
    endpoint = fabric or environ.get("BESTER_FABRIC") or DEFAULT_FABRIC
    name = name or environ.get("BESTER_NAME")
    try:
        parse_endpoint(endpoint)
    except ValueError as error:
        return _say(f"--fabric (or BESTER_FABRIC): {error}")
    if not 1 <= workers <= MAX_WORKERS:
        return _say(f"--workers is a number from 1 to {MAX_WORKERS}, not {workers}")
    try:
        with _slow_import_is_said(spec):
            app = _app(spec, socket, types)
        worker = Worker(app, endpoint, name=name, types=types, background=not child)
    except (LoadError, ValueError) as error:
        return _say(f"{spec}: {error}" if isinstance(error, ValueError) else str(error))
    if workers == 1:
        return _on_loop(lambda: _serve(worker, is_child=child is not None))
    command = [sys.executable, "-m", "bester.handlers", "--fabric", endpoint]
    command += [spec] if spec else ["--socket", str(socket)]
    command += ["--types", ",".join(types)] if types else []
    return _on_loop(lambda: _supervise(command, name or worker.name, workers))


def _app(spec: str | None, socket: str | None, types: Sequence[str] | None) -> App:
    if (spec is None) == (socket is None):
        raise LoadError("say which handler to run: MODULE:APP, as in mychat:app, or --socket PATH")
    if spec is not None:
        return load(spec)
    assert socket is not None
    if not types:
        raise LoadError("--socket: say which message types it handles, with --types or BESTER_TYPES")
    try:
        from bester.handlers.legacy import legacy_app  # part of the server: it needs msgspec
    except ImportError as error:
        raise LoadError(f"--socket needs the module {error.name!r}: pip install {error.name}") from None
    return legacy_app(socket, types)


@contextlib.contextmanager
def _slow_import_is_said(spec: str | None) -> Iterator[None]:
    """Say where an import stands that takes long; once."""
    thread = threading.get_ident()

    def say() -> None:
        text = "importing %s has taken %g s so far, and is at %s; nothing is served before it has ended"
        log.warning(text, spec, SLOW_IMPORT_S, line_of(thread))

    timer = threading.Timer(SLOW_IMPORT_S, say)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _say(text: str) -> int:
    sys.stderr.write(f"bester: {text}\n")
    return 2


def _on_loop(work: Callable[[], Any]) -> int:
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        status: int = runner.run(work())
        return status


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


@contextlib.contextmanager
def _told_to_stop(at_once: Callable[[], None] = lambda: None) -> Iterator[asyncio.Event]:
    """Return an event that SIGTERM and SIGINT set. `at_once` is called wherever the main thread is at that moment, even
    while a function holds the loop: it must take no lock."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()

    def told(number: int, frame: object) -> None:
        at_once()
        loop.call_soon_threadsafe(stop.set)

    before = {number: signal.signal(number, told) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


class _LastResort:
    """Ends a process that cannot end: a function holds its loop, or threads that it would wait for hang."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._limit_s = math.inf
        self._status = 1
        self._told, self._tell = os.pipe()  # a signal handler may write there, whatever it has interrupted
        threading.Thread(target=self._wait, name="bester-last-resort", daemon=True).start()

    def end_within(self, seconds: float, status: int) -> None:
        """End the process in so many seconds at the latest; said again, the new time counts."""
        self._limit_s, self._status = seconds, status
        os.write(self._tell, b"!")

    def _wait(self) -> None:
        limit_s: float | None = None
        while select.select([self._told], [], [], limit_s)[0]:
            os.read(self._told, 1)
            limit_s = self._limit_s
        log.warning("%s: something still holds this process, which ends without waiting any longer", self._name)
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        os._exit(self._status)


def _end_hung(name: str) -> None:
    log.error("%s: this process ends, so that it is started again", name)
    os._exit(1)  # the loop is held: nothing gentler is carried out any more


async def _serve(worker: Worker, is_child: bool) -> int:
    last = _LastResort(worker.name)
    with _told_to_stop(lambda: last.end_within(LAST_S, 1)) as stop:
        if is_child:
            worker.on_hung(lambda: _end_hung(worker.name))
        try:
            worker.start()
        except zmq.ZMQError as error:
            return _say(f"cannot connect to {worker.endpoint}: {error.strerror}; give another --fabric")
        if is_child:
            await _watch_input(stop)
        over, told = asyncio.ensure_future(worker.wait_over()), asyncio.ensure_future(stop.wait())
        await asyncio.wait((over, told), return_when=asyncio.FIRST_COMPLETED)
        over.cancel()
        told.cancel()
        await worker.stop()
    refusal = worker.refusal
    if refusal is not None:
        sys.stderr.write(
            f"bester: the server at {worker.endpoint} refuses this handler: {refusal.code}: {refusal.text}\n"
        )
    status = 0 if refusal is None and worker.failure is None else 1
    last.end_within(EXIT_S, status)
    return status


class _Lifeline(asyncio.Protocol):
    """Standard input, held by the parent process: it ends with the parent, however that ends."""

    def __init__(self, stop: asyncio.Event) -> None:
        self._stop = stop

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop.set()


async def _watch_input(stop: asyncio.Event) -> None:
    await asyncio.get_running_loop().connect_read_pipe(lambda: _Lifeline(stop), sys.stdin)


# --- several processes ---


async def _supervise(command: Sequence[str], name: str, workers: int) -> int:
    with _told_to_stop() as stop:
        async with asyncio.TaskGroup() as group:
            children = [group.create_task(_keep_running(command, name, index, stop)) for index in range(workers)]
    return max(child.result() for child in children)


async def _keep_running(command: Sequence[str], name: str, index: int, stop: asyncio.Event) -> int:
    """Run one worker process, again when it dies, until told to stop; return the last exit status of note."""
    loop = asyncio.get_running_loop()
    delay_s = FIRST_RESTART_S
    while True:
        arguments = [*command, "--name", f"{name}.{index}", "--child", str(index)]
        process = await asyncio.create_subprocess_exec(*arguments, stdin=asyncio.subprocess.PIPE)
        begun = loop.time()
        ended = asyncio.ensure_future(process.wait())
        told = asyncio.ensure_future(stop.wait())
        await asyncio.wait((ended, told), return_when=asyncio.FIRST_COMPLETED)
        told.cancel()
        if stop.is_set():
            if not ended.done():
                process.terminate()
            return 1 if await ended else 0
        status = await ended
        delay_s = FIRST_RESTART_S if loop.time() - begun >= STEADY_S else min(delay_s * 2, LAST_RESTART_S)
        log.error("%s.%d ended with status %d; starting it again in %g s", name, index, status, delay_s)
        try:
            async with asyncio.timeout(delay_s):
                await stop.wait()
                return 0
        except TimeoutError:
            continue
