"""Reports of other servers that have begun and not ended: their bytes over all connections. Pure.

A server may stop in the middle of a report for as long as the wait for it lasts, and each report has a large bound.
Above the bound of all together the address with most byte-seconds makes way, by its connection with most: whoever has
held much for long. A report that is being sent has held its bytes for moments only.
"""

from __future__ import annotations

from collections.abc import Callable


class _Half:
    """Report of which `size` bytes are held since `began_at`; `cut` ends its connection."""

    __slots__ = ("address", "began_at", "cut", "size")

    def __init__(self, address: str, began_at: float, cut: Callable[[], None]) -> None:
        self.address = address
        self.began_at = began_at
        self.cut = cut
        self.size = 0

    def weight(self, now: float) -> float:
        """Return the byte-seconds of the report; in its first moment its bytes alone count."""
        return self.size * (now - self.began_at + 0.001)


class HalfReports:
    """Unfinished reports, one a connection at most, of `most_bytes` together."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._halves: dict[object, _Half] = {}
        self._total_bytes = 0

    def hold(self, connection: object, address: str, size: int, now: float, cut: Callable[[], None]) -> int:
        """Note that `size` bytes of a report are held of a connection to an address, 0 where it has ended. Return how
        many connections were cut for it, with `cut`; that of this one may be called."""
        half = self._halves.pop(connection, None)
        self._total_bytes -= half.size if half is not None else 0
        if not size:
            return 0
        half = half or _Half(address, now, cut)
        half.size = size
        self._halves[connection] = half
        self._total_bytes += size
        return self._make_way(now) if self._total_bytes > self._most_bytes else 0

    def _make_way(self, now: float) -> int:
        """Cut the heaviest connections of the heaviest addresses; an eighth of the bound is freed at once, so that the
        weighing of all is paid for by many bytes."""
        by_address: dict[str, list[tuple[float, object]]] = {}
        for connection, half in self._halves.items():
            by_address.setdefault(half.address, []).append((half.weight(now), connection))
        count, enough = 0, self._most_bytes - self._most_bytes // 8
        for rows in sorted(by_address.values(), key=lambda rows: -sum(weight for weight, _ in rows)):
            for _, connection in sorted(rows, key=lambda row: -row[0]):
                if self._total_bytes <= enough:
                    return count
                half = self._halves.pop(connection)
                self._total_bytes -= half.size
                half.cut()
                count += 1
        return count
