"""Handlers that are useless though nobody saw them die: find them, and ask for their processes to be started again.

There are two kinds. A *stuck* handler is alive, but settled messages hold all its credit: it took too long over them
and answers none. The broker passes over such a handler until an answer comes. A *fallen* handler was silent for too
long, was taken for dead, and did not come back.
"""

from __future__ import annotations

from collections.abc import Collection

from bester.broker.core.dispatcher import Dispatcher
from bester.broker.core.effects import Effects, NoticeEvent, Restart
from bester.broker.core.peer import Peer
from bester.broker.core.pools import Worker
from bester.broker.core.settings import Settings
from bester.broker.core.worker_changes import WorkerChanges

STUCK_WHY = "all its credit is held by messages that took too long"


class Restarts:
    """The useless handlers of one broker. `tick` is called at every tick of the router."""

    def __init__(self, settings: Settings, dispatcher: Dispatcher, changes: WorkerChanges, out: Effects) -> None:
        self._limits = settings.limits
        self._dispatcher = dispatcher
        self._changes = changes
        self._out = out
        self._stuck: dict[Peer, None] = {}
        self._fallen: dict[int, tuple[float, str]] = {}  # by process: time and name

    def fell(self, peer: Peer, now: float) -> None:
        """Remember a handler that was given up for its silence, to see whether the handler comes back."""
        if peer.process is None:
            return
        self._fallen.pop(peer.process, None)
        while len(self._fallen) >= self._limits.max_fallen:
            del self._fallen[next(iter(self._fallen))]
            self._out.reached["max_fallen"] += 1
        self._fallen[peer.process] = (now, peer.name)

    def on_process_seen(self, process: int | None) -> None:
        """Forget a process that has sent HELLO."""
        if process is not None:
            self._fallen.pop(process, None)

    def tick(self, peers: Collection[Peer], now: float) -> None:
        """Find the handlers that have become stuck, those that are stuck no longer, and those that did not come
        back."""
        for peer in peers:
            worker = peer.worker
            if worker is not None and (worker.overdue or worker.full_since is not None):
                self._look_at(peer, worker, now)
        for peer in [peer for peer in self._stuck if peer.worker is None or not peer.worker.stuck]:
            del self._stuck[peer]
            if peer in peers and not peer.leaving:
                self._notice("handler-unstuck", peer)
        for process, (since, name) in list(self._fallen.items()):
            if now - since < self._limits.fallen_s:
                break
            del self._fallen[process]
            if not self._dispatcher.ending and all(peer.process != process for peer in peers):
                why = f"silent, and not back within {self._limits.fallen_s:g} s"
                self._out.calls.append(Restart(process, name, why))

    def _look_at(self, peer: Peer, worker: Worker, now: float) -> None:
        if not worker.is_full_of_overdue:
            worker.full_since = None
            return
        if worker.full_since is None:
            worker.full_since = now
        # While the broker ends there is nothing to wait for: a worker that frees credit gets no more messages.
        patience_s = 0.0 if self._dispatcher.ending else self._limits.stuck_s
        if worker.leaving or now - worker.full_since < patience_s:
            return
        self._changes.suspend(worker, now)
        self._stuck[peer] = None
        oldest_s = round(now - next(iter(worker.inflight.values())).since, 1)
        self._notice("handler-stuck", peer, places=worker.overdue, oldest_s=oldest_s, why=STUCK_WHY)
        if not self._dispatcher.ending:
            self._out.calls.append(Restart(peer.process, peer.name, STUCK_WHY))

    def _notice(self, event: NoticeEvent, peer: Peer, **more: object) -> None:
        self._out.notice(event, name=peer.name, types=sorted(peer.types), **more)
