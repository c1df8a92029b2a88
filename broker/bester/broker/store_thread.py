"""The thread that waits for the store's disk, so that the loop does not."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue


class StoreThread:
    """Runs one function after the other beside the loop, and calls `done` after each.

    The thread begins with the first function: a start waits until the system lets the thread run, which takes longer
    than a small commit, so that the thread stays. The thread is a daemon: a disk that never answers must not keep the
    process.
    """

    def __init__(self, done: Callable[[], None]) -> None:
        self._done = done
        self._works: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def run(self, work: Callable[[], None]) -> None:
        """Run a function after those before it. Raises RuntimeError where the system has no thread."""
        if self._thread is None:
            thread = threading.Thread(target=self._serve, name="store", daemon=True)
            thread.start()
            self._thread = thread
        self._works.put(work)

    def close(self) -> None:
        """End the thread after the functions that it has."""
        self._works.put(None)

    def _serve(self) -> None:
        while (work := self._works.get()) is not None:
            work()
            self._done()
