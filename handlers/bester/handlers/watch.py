"""Watches the loop of a worker from a thread of its own.

Code that blocks the loop (a plain library call in an async handler) silences the worker: the loop sends no heartbeats.
This thread sends them meanwhile, so that the broker knows that the process lives and is busy; for so long as that may
take, and no longer: a loop that hangs must not be vouched for. It finds out which function it is by looking at the
stack of the loop's thread, and says so once, when the loop is back.

What stops this thread, too, is told apart from that: a function in C that keeps the interpreter to itself, and a
process (or machine) that did not run at all.
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
from bester.handlers.stacks import Place, place_of

log = logging.getLogger("bester.handlers")

BEAT_S = 0.25
"""How often loop and thread look at each other; the precision of what is said about it."""
LEAST_BEAT_S = 0.02
"""However often heartbeats are asked for."""
NOTICED_S = 1.0
"""A loop that was held for less is not worth a line in the log."""
RUNNING = 0.1
"""The share of a processor that tells a process in which something ran from one that stood; a busy machine gives any
process less than it could use."""
STOPPING_S = 1.0
"""How long the thread may take to notice that it is to end; it never takes long."""


class Watched(Protocol):
    """What the watch looks after: a worker. All but `turned` is called from the watch's thread."""

    name: str

    def turned(self, now: float) -> None:
        """The loop has had a turn; called a few times a second, on the loop."""
        ...

    def breathe(self) -> None:
        """A handler holds the loop: let it have a turn before the next one begins."""
        ...

    def vouch(self) -> None:
        """Tell the broker that this process lives."""
        ...

    def patience_s(self, code: CodeType | None) -> float:
        """Return how long the function of this code may hold the loop before the worker is of no use."""
        ...

    def in_hand(self) -> list[str]:
        """Name the functions that are carried out on other threads, or else the one that was begun last."""
        ...

    def hangs(self, place: Place | None, held_s: float) -> None:
        """The loop is held for longer than that."""
        ...


class _Hold:
    """One time that the loop is held: `since` when, and where it was last seen."""

    def __init__(self, since: float) -> None:
        self.since = since
        self.place: Place | None = None
        self.vouched_at = -math.inf
        self.is_hanging = False


class Watch:
    """A running watch. `start` and `stop` it on the loop; `heartbeat_s` may be changed while it runs."""

    def __init__(self, worker: Watched, heartbeat_s: float) -> None:
        self.heartbeat_s = heartbeat_s
        self._worker = worker
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._stopped = threading.Event()
        self._turned = time.monotonic()
        self._hold: _Hold | None = None
        self._stall_s = 0.0  # of the present hold: for how long nothing at all ran
        self._timer: asyncio.TimerHandle | None = None
        self._thread = threading.Thread(target=self._watch, name="bester-watch", daemon=True)

    def start(self) -> None:
        """Begin to watch the running loop."""
        self._turn()
        self._thread.start()

    def stop(self) -> None:
        """Watch no longer."""
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
        since, self._turned = self._turned, now
        hold, self._hold = self._hold, None
        held_s = now - since - self._stall_s - self._beat_s / 2
        if hold is not None and held_s >= NOTICED_S:
            self._say(hold.place, held_s)
        self._stall_s = 0.0
        self._timer = self._loop.call_later(self._beat_s, self._turn)
        self._worker.turned(now)

    def _say(self, place: Place | None, held_s: float) -> None:
        """Say once what held the loop, now that it is over."""
        advice = "no other handler ran meanwhile; make it a plain def, or await what takes so long"
        name, what = self._worker.name, str(place or "something")
        known = facts("loop-held", name=name, function=what, held_s=round(held_s, 1))
        log.warning("%s: %s held the loop for %.1f s: %s", name, what, held_s, advice, extra=known)

    # --- on the thread ---

    def _watch(self) -> None:
        due, cpu_s = time.monotonic() + self._beat_s, time.process_time()
        while not self._stopped.wait(max(0.0, due - time.monotonic())):
            now = time.monotonic()
            if now - due >= NOTICED_S:
                self._stalled(now - due, time.process_time() - cpu_s)
            self._look(now)
            due, cpu_s = time.monotonic() + self._beat_s, time.process_time()

    def _look(self, now: float) -> None:
        since = self._turned
        held_s = now - since - self._beat_s
        if held_s < min(NOTICED_S, self.heartbeat_s / 2):
            return
        hold = self._hold
        if hold is None or hold.since != since:
            hold = _Hold(since)
        place = place_of(self._loop_thread)
        if place is not None and (place.function is not None or hold.place is None):
            hold.place = place
        if self._turned != since:  # it is back, and has said so without this
            return
        self._hold = hold
        self._worker.breathe()
        patience_s = self._worker.patience_s(None if hold.place is None else hold.place.code)
        vouches = held_s < patience_s - SILENT_HEARTBEATS * self.heartbeat_s
        if vouches and now - hold.vouched_at >= self.heartbeat_s:
            hold.vouched_at = now
            self._worker.vouch()
        if held_s >= patience_s and not hold.is_hanging:
            hold.is_hanging = True
            self._worker.hangs(hold.place, held_s)

    def _stalled(self, stall_s: float, cpu_s: float) -> None:
        """This thread could not run: say whether something in the process kept it from that, or the process stood."""
        if cpu_s < stall_s * RUNNING:
            text = "%s: this process did not run for %.1f s: it was stopped, or the machine had no time for it"
            known = facts("process-stood", name=self._worker.name, stood_s=round(stall_s, 1))
            log.warning(text, self._worker.name, stall_s, extra=known)
            self._turned += stall_s  # that was no fault of the loop
            return
        self._stall_s += stall_s
        place = place_of(self._loop_thread)
        at = [str(place)] if place is not None and place.function is not None else self._worker.in_hand()
        who = " or ".join(at) or "something"
        advice = "nothing else in this process could run; where that is to be, App(lease_ms=…) says for how long"
        name = self._worker.name
        known = facts("interpreter-held", name=name, function=who, held_s=round(stall_s, 1))
        log.warning("%s: %s kept the interpreter to itself for %.1f s: %s", name, who, stall_s, advice, extra=known)
