"""A process of a world: running, stopped for a while, or not there."""

from __future__ import annotations

from collections.abc import Callable

from tests.world.clock import World


class Process:
    """A process whose input waits while the process is stopped, and waits in the senders' sockets while the process is
    not there."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.up = False
        self._thaw_at = 0.0
        self._backlog: list[Callable[[], None]] = []

    @property
    def frozen(self) -> bool:
        """Return whether the process is stopped, or not there."""
        return not self.up or self.world.now < self._thaw_at

    def freeze(self, seconds: float) -> None:
        """Stop the whole process for a while; input that comes meanwhile waits in its sockets."""
        if not self.up:
            return
        self.world.tell(self.name, "FREEZES", f"for {seconds:.1f} s")
        self._thaw_at = max(self._thaw_at, self.world.now + seconds)
        self.world.after(seconds, self.go_on)

    def go_on(self) -> None:
        """Run the calls that have waited, unless the process is still stopped."""
        if self.frozen:
            return
        backlog, self._backlog = self._backlog, []
        for place, call in enumerate(backlog):
            if self._is_stopped():  # a call has ended the process
                self._backlog += backlog[place:] if self.up else []
                return
            call()

    def _is_stopped(self) -> bool:  # a call: mypy would narrow a property to its earlier value
        return self.frozen

    def wait_for_it(self, call: Callable[[], None]) -> None:
        """Queue a call that has come until the process goes on, or is there."""
        self._backlog.append(call)

    def when_awake(self, call: Callable[[], None]) -> None:
        """Run an event of the process's own; drop the event where the process is not there."""
        if self.up and not self.frozen:
            call()
        elif self.up:
            self._backlog.append(call)

    def gone(self) -> None:
        """Note that the process has ended; its unfinished work is lost."""
        self.up = False
        self._thaw_at = 0.0
        self._backlog.clear()
