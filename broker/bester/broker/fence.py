"""Fence in the work of one of ZeroMQ's threads: tells when the thread has ended what it was at.

A thread of ZeroMQ does one thing after the other, and tells of an attempt to connect on the socket's monitor. So one
that fails at once, and is made now, is told of behind all that the thread is at now.
"""

from __future__ import annotations

from collections.abc import Callable

import zmq

from bester.broker.monitor import Monitor

_NOWHERE = "ipc:///dev/null/nobody"
"""Endpoint at which there can be no socket."""
_NEVER_MS = 1 << 30
"""Time until ZeroMQ would try again: the attempt is taken back before."""


class Fence:
    """Fence for the thread with the one bit of `affinity`, or the context's only one; `on_passed` is called on the
    running loop once for each `ask`, of which one may be under way."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], affinity: int, on_passed: Callable[[], None]) -> None:
        self._on_passed = on_passed
        self._socket = context.socket(zmq.DEALER)
        self._socket.linger = 0
        self._socket.affinity = affinity
        self._socket.reconnect_ivl = _NEVER_MS
        self._monitor = Monitor(self._socket, zmq.EVENT_CONNECT_RETRIED, self._on_event)

    def ask(self) -> None:
        """Ask for a call of `on_passed` once the thread has ended what it is at now."""
        self._socket.connect(_NOWHERE)

    def _on_event(self, event: int, value: int) -> None:
        self._socket.disconnect(_NOWHERE)
        self._on_passed()

    def close(self) -> None:
        """Call back no more."""
        self._monitor.close()
        self._socket.close()
