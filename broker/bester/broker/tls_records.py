"""Records of TLS that have come, handed on a few at a time. Pure.

OpenSSL reads on until it finds data. A peer may send records that hold none, such as requests for new keys, each of
which costs as much as a short frame, and has an answer: 9,000 of them, a quarter of a MiB, took fifteen seconds in one
call, before any login. OpenSSL 3.0 has no bound of its own on them.
"""

from __future__ import annotations

AT_ONCE = 8
AT_ONCE_BYTES = 16 * 1024
"""Records, and bytes of them, between two looks at the clock. A record of 16 KiB may hold 900 tickets for later
sessions, which take OpenSSL 7 ms."""
MOST_USELESS = 32
MOST_USELESS_BYTES = 64 * 1024
"""Records in a row that hold no data, behind the handshake, and their bytes: a server sends some tickets, and either
side new keys now and then. With more of them the peer is cut."""
_HEADER_BYTES = 5
_ALERT = 0x15


class Records:
    """Bytes that have come and were not handed to TLS. `whole` counts the records that were, up to their end, and
    `handed_bytes` their bytes, since the last data. With `keeps_alerts` no alert is handed on, nor what is behind it;
    `is_over` says that one has come."""

    __slots__ = ("_at", "_came", "_rest", "handed_bytes", "is_over", "keeps_alerts", "whole")

    def __init__(self) -> None:
        self._came = b""
        self._at = 0  # up to which `_came` was handed on
        self._rest = 0  # bytes to come of the record that was handed on in part
        self.whole = self.handed_bytes = 0
        self.keeps_alerts = self.is_over = False

    def on_data(self) -> None:
        """Count anew: what was handed on held data, or was the handshake."""
        self.whole = self.handed_bytes = 0

    def fault(self) -> str | None:
        """Return what is wrong where too much was handed on without data."""
        if self.whole > MOST_USELESS:
            return f"it sends more than {MOST_USELESS} records of TLS in a row without data"
        if self.handed_bytes > MOST_USELESS_BYTES:
            return f"it sends more than {MOST_USELESS_BYTES >> 10} KiB of TLS in a row without data"
        return None

    def add(self, data: bytes) -> None:
        """Add bytes that have come."""
        self._came = self._came[self._at :] + data if self._came else data
        self._at = 0

    def drop(self) -> None:
        """Drop what has come and was not handed on."""
        self._came, self._at = b"", 0

    def take(self, most: int = AT_ONCE) -> bytes:
        """Return the bytes of the next records, `most` of them at most; empty where none has come, or too little of
        one."""
        came, rest, at, left = self._came, self._rest, self._at, most
        first, end = at, len(came)
        while left and at < end and at - first < AT_ONCE_BYTES:
            if not rest:
                if self.keeps_alerts and came[at] == _ALERT:
                    self.is_over = True
                    break
                if end - at < _HEADER_BYTES:
                    break
                rest = _HEADER_BYTES + (came[at + 3] << 8 | came[at + 4])
            step = min(rest, end - at)
            at += step
            rest -= step
            if not rest:
                left -= 1
        self._rest = rest
        self.whole += most - left
        self.handed_bytes += at - first
        if at == end:
            self._came, self._at = b"", 0
            return came[first:]
        self._at = at
        return came[first:at]
