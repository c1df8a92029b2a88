"""A process of a world: it runs, or it is stopped for a while, or it is not there."""

from __future__ import annotations

from collections.abc import Callable

from tests.world.clock import World


class Process:
    """What comes to a process that is stopped waits until it goes on; what comes to one that is not there waits in the
    senders' sockets until it is."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.up = False
        self._thaw_at = 0.0
        self._backlog: list[Callable[[], None]] = []

    @property
    def frozen(self) -> bool:
        """Is it stopped, or not there?"""
        return not self.up or self.world.now < self._thaw_at

    def freeze(self, seconds: float) -> None:
        """Stop the whole process for a while; what comes meanwhile waits in its sockets."""
        if not self.up:
            return
        self.world.tell(self.name, "FREEZES", f"for {seconds:.1f} s")
        self._thaw_at = max(self._thaw_at, self.world.now + seconds)
        self.world.after(seconds, self.go_on)

    def go_on(self) -> None:
        """Do what has waited, if it is not stopped any more."""
        if self.frozen:
            return
        backlog, self._backlog = self._backlog, []
        for place, call in enumerate(backlog):
            if self._is_stopped():  # one of them has ended it
                self._backlog += backlog[place:] if self.up else []
                return
            call()

    def _is_stopped(self) -> bool:  # a call: mypy would take a property for what it was before
        return self.frozen

    def wait_for_it(self, call: Callable[[], None]) -> None:
        """Something has come: it waits until the process goes on, or is there."""
        self._backlog.append(call)

    def when_awake(self, call: Callable[[], None]) -> None:
        """An event of the process's own: it is dropped where that is not there."""
        if self.up and not self.frozen:
            call()
        elif self.up:
            self._backlog.append(call)

    def gone(self) -> None:
        """It has ended, and what it had not done is lost."""
        self.up = False
        self._thaw_at = 0.0
        self._backlog.clear()
