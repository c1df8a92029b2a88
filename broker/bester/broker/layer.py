"""A protocol to the transport below that is a transport to the protocol above, as TLS and WebSocket are. A shell."""

from __future__ import annotations

import asyncio
from typing import Any


class Layer(asyncio.Protocol, asyncio.Transport):
    """Passes on what a layer has no opinion of; `_below` is None before the connection is made."""

    __slots__ = ("_below",)

    def __init__(self) -> None:
        super().__init__()
        self._below: asyncio.Transport | None = None

    def is_closing(self) -> bool:
        return self._below is None or self._below.is_closing()

    def pause_reading(self) -> None:
        if self._below is not None:
            self._below.pause_reading()

    def resume_reading(self) -> None:
        if self._below is not None:
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
