"""Watches the loop of a worker from a thread of its own.

Code that blocks the loop (a plain library call in an async handler) silences the worker: the loop sends no heartbeats.
The watch's thread sends them meanwhile, so that the broker knows that the process lives and is busy; only for as long
as a message may take, for no heartbeat may vouch for a loop that hangs. The watch finds the function in the stack of
the loop's thread, and logs the function once, when the loop is back.

Two other causes also stop this thread, and are distinguished: a C function that holds the interpreter, and a process
(or machine) that did not run at all.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from types import CodeType
from typing import Protocol

from bester.broker.logs import facts
from bester.broker.wire.messages import SILENT_HEARTBEATS
from bester.handlers.stacks import Position, position_of

log = logging.getLogger("bester.handlers")

BEAT_S = 0.25
"""Period at which loop and thread check each other; also the precision of the logged times."""
LEAST_BEAT_S = 0.02
"""Least period, for any heartbeat interval."""
NOTICED_S = 1.0
"""Shortest hold of the loop that is logged."""
RUNNING = 0.1
"""Share of a processor that tells a process with running code from one that stood; a busy machine gives any process
less than a full share."""
STOPPING_S = 1.0
"""Seconds that the thread may take to notice its end; it never takes long."""


class Watched(Protocol):
    """A watched worker. Every method but `on_turn` is called from the watch's thread."""

    name: str

    def on_turn(self, now: float) -> None:
        """Act on a turn of the loop; called a few times a second, on the loop."""
        ...

    def hold_back(self) -> None:
        """Let the loop run before the next handler begins; called while a handler holds the loop."""
        ...

    def vouch(self) -> None:
        """Send a heartbeat to the broker."""
        ...

    def patience_s(self, code: CodeType | None) -> float:
        """Return the seconds that the function of this code may hold the loop before the worker counts as hanging."""
        ...

    def in_hand(self) -> list[str]:
        """Return the names of the functions that run on other threads, or else of the one begun last."""
        ...

    def on_hang(self, position: Position | None, held_s: float) -> None:
        """Act on a loop that is held for longer than `patience_s`."""
        ...


class _Hold:
    """A period in which the loop is held: its begin `since`, and the last known position."""

    def __init__(self, since: float) -> None:
        self.since = since
        self.position: Position | None = None
        self.vouched_at = -math.inf
        self.is_hanging = False


class Watch:
    """A watch of the running loop. Call `start` and `stop` on the loop; `heartbeat_s` may be changed meanwhile."""

    def __init__(self, worker: Watched, heartbeat_s: float) -> None:
        self.heartbeat_s = heartbeat_s
        self._worker = worker
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._stopped = threading.Event()
        self._last_turn = time.monotonic()
        self._hold: _Hold | None = None
        self._stall_s = 0.0  # seconds of the present hold in which no thread ran
        self._timer: asyncio.TimerHandle | None = None
        self._thread = threading.Thread(target=self._watch, name="bester-watch", daemon=True)

    def start(self) -> None:
        """Start to watch the running loop."""
        self._turn()
        self._thread.start()

    def stop(self) -> None:
        """Stop the watch and its thread."""
        self._stopped.set()
        if self._timer is not None:
            self._timer.cancel()
        self._thread.join(STOPPING_S)

    @property
    def _beat_s(self) -> float:
        return max(LEAST_BEAT_S, min(BEAT_S, self.heartbeat_s / 4))

    # --- on the loop ---

    def _turn(self) -> None:
        now = time.monotonic()
        since, self._last_turn = self._last_turn, now
        hold, self._hold = self._hold, None
        held_s = now - since - self._stall_s - self._beat_s / 2
        if hold is not None and held_s >= NOTICED_S:
            self._log_hold(hold.position, held_s)
        self._stall_s = 0.0
        self._timer = self._loop.call_later(self._beat_s, self._turn)
        self._worker.on_turn(now)

    def _log_hold(self, position: Position | None, held_s: float) -> None:
        """Log once the function that held the loop, after the hold."""
        advice = "no other handler ran meanwhile; make it a plain def, or await what takes so long"
        name, function = self._worker.name, str(position or "something")
        fields = facts("loop-held", name=name, function=function, held_s=round(held_s, 1))
        log.warning("%s: %s held the loop for %.1f s: %s", name, function, held_s, advice, extra=fields)

    # --- on the thread ---

    def _watch(self) -> None:
        due, cpu_s = time.monotonic() + self._beat_s, time.process_time()
        while not self._stopped.wait(max(0.0, due - time.monotonic())):
            now = time.monotonic()
            if now - due >= NOTICED_S:
                self._log_stall(now - due, time.process_time() - cpu_s)
            self._look(now)
            due, cpu_s = time.monotonic() + self._beat_s, time.process_time()

    def _look(self, now: float) -> None:
        since = self._last_turn
        held_s = now - since - self._beat_s
        if held_s < min(NOTICED_S, self.heartbeat_s / 2):
            return
        hold = self._hold
        if hold is None or hold.since != since:
            hold = _Hold(since)
        position = position_of(self._loop_thread)
        if position is not None and (position.function is not None or hold.position is None):
            hold.position = position
        if self._last_turn != since:  # the loop is back, and has logged the hold without this position
            return
        self._hold = hold
        self._worker.hold_back()
        patience_s = self._worker.patience_s(None if hold.position is None else hold.position.code)
        vouches = held_s < patience_s - SILENT_HEARTBEATS * self.heartbeat_s
        if vouches and now - hold.vouched_at >= self.heartbeat_s:
            hold.vouched_at = now
            self._worker.vouch()
        if held_s >= patience_s and not hold.is_hanging:
            hold.is_hanging = True
            self._worker.on_hang(hold.position, held_s)

    def _log_stall(self, stall_s: float, cpu_s: float) -> None:
        """Log why this thread could not run: a function held the interpreter, or the whole process stood."""
        if cpu_s < stall_s * RUNNING:
            text = "%s: this process did not run for %.1f s: it was stopped, or the machine had no time for it"
            fields = facts("process-stood", name=self._worker.name, stood_s=round(stall_s, 1))
            log.warning(text, self._worker.name, stall_s, extra=fields)
            self._last_turn += stall_s  # the stall was no fault of the loop
            return
        self._stall_s += stall_s
        position = position_of(self._loop_thread)
        at = [str(position)] if position is not None and position.function is not None else self._worker.in_hand()
        who = " or ".join(at) or "something"
        advice = "no other thread could run; where that is intended, set App(lease_ms=…)"
        name = self._worker.name
        fields = facts("interpreter-held", name=name, function=who, held_s=round(stall_s, 1))
        log.warning("%s: %s kept the interpreter to itself for %.1f s: %s", name, who, stall_s, advice, extra=fields)
