"""A protocol to the transport below that is a transport to the protocol above, as TLS and WebSocket are. A shell."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from typing import Any


class Layer(asyncio.Protocol, asyncio.Transport):
    """Passes on what a layer has no opinion of; `_below` is None before the connection is made.

    A layer that waits for its turn to take apart what has come is not read from, whatever the protocol above says.
    """

    __slots__ = ("_above_pauses", "_below", "_end_waits", "_waits")

    _above: asyncio.Protocol  # set by the layer

    def __init__(self) -> None:
        super().__init__()
        self._below: asyncio.Transport | None = None
        self._waits = False
        self._above_pauses = False
        self._end_waits = False  # behind what has come the peer has ended the stream

    @property
    def sender(self) -> Hashable:
        """Return the party to which the connection belongs, None where the protocol above knows of none."""
        sender: Hashable = getattr(self._above, "sender", None)
        return sender

    def _wait(self) -> None:
        """Read no more before this layer has caught up."""
        if not self._waits and self._below is not None:
            self._waits = True
            self._below.pause_reading()

    def _catch_up(self) -> None:
        """Read on, or take in the end of the stream that has come, where this layer has waited."""
        if not self._waits:
            return
        self._waits = False
        below = self._below
        if below is None or below.is_closing():
            return
        if self._end_waits:
            if not self.eof_received():
                below.close()
        elif not self._above_pauses:
            below.resume_reading()

    def is_closing(self) -> bool:
        return self._below is None or self._below.is_closing()

    def pause_reading(self) -> None:
        self._above_pauses = True
        if self._below is not None:
            self._below.pause_reading()

    def resume_reading(self) -> None:
        self._above_pauses = False
        if self._below is not None and not self._waits:
            self._below.resume_reading()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        if self._below is not None:
            self._below.set_write_buffer_limits(high, low)

    def get_write_buffer_size(self) -> int:
        """Return how many bytes have not left the transport below; 0: everything written has left."""
        return 0 if self._below is None else self._below.get_write_buffer_size()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return a fact of the transport below."""
        return default if self._below is None else self._below.get_extra_info(name, default)
