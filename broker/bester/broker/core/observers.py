"""Observers of answers: functions that see each message of a type together with its handler's answer. Pure."""

from __future__ import annotations

from collections.abc import Callable

from bester.broker.core.jobs import Job
from bester.broker.wire.messages import Command, Reply

Observer = Callable[[Job, Reply, float], None]
"""Called with a job, the answer of its handler and the time, before the answer is carried out. An observer changes
neither."""


class Observers(dict[str, tuple[Observer, ...]]):
    """The observers of a broker by type. The dispatcher asks only whether there are any, as long as there are none."""

    __slots__ = ()

    def add(self, type_: str, observer: Observer) -> None:
        """Let an observer see the answers to a type."""
        self[type_] = (*self.get(type_, ()), observer)

    def remove(self, type_: str, observer: Observer) -> None:
        """Let an observer see no more answers to a type."""
        left = tuple(each for each in self.get(type_, ()) if each != observer)
        if left:
            self[type_] = left
        else:
            self.pop(type_, None)


def size_of(job: Job, reply: Reply) -> int:
    """Return the bytes that a message and its answer hold, near enough."""
    return len(job.body) + sum(len(each.body) + sum(map(len, each.targets)) for each in reply.commands)


def plain(reply: Reply) -> Reply:
    """Return a reply as the tuple that it stands for: one that was read in a run is a value of another class, and two
    such values are compared by their classes, too."""
    commands = [Command(each.command, each.targets, each.body, each.type) for each in reply.commands]
    return Reply(reply.token, reply.status, commands, reply.note, reply.code)
