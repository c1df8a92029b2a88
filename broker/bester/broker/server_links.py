"""Links of the broker to other servers of the fabric, one for each; opened anew where address or key has changed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack

import zmq

from bester.broker.core import policy
from bester.broker.core.effects import Effects, Link
from bester.broker.core.router import Router
from bester.broker.core.settings import Grant, Route
from bester.broker.fabric import FabricLink
from bester.broker.keys import KeyPair, LinkKeys
from bester.broker.turn import Turn
from bester.broker.wire.codes import ConfigError, WireError
from bester.broker.wire.link_client import LinkClient
from bester.broker.wire.messages import Malformed, Message

CLOSE_S = 0.5
"""Time of a link for its GOODBYE, and what is sent before it."""


class ServerLinks:
    """Links to the configured servers. `carry_out` carries out the core's effects, `on_unsendable` logs a message that
    cannot be sent; `pair` are this server's keys, `group` has the tasks of links that are closed."""

    def __init__(
        self, router: Router, pair: KeyPair | None, turn: Turn, group: asyncio.TaskGroup,
        carry_out: Callable[[Effects], None], on_unsendable: Callable[[Message, WireError], None],
    ) -> None:  # fmt: skip
        self._router = router
        self._pair = pair
        self._turn = turn
        self._group = group
        self._carry_out = carry_out
        self._on_unsendable = on_unsendable
        self._links: dict[Link, FabricLink] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def open(self, route: Route) -> None:
        """Open the link to a server of the fabric; a server that is reached otherwise has none. Raises ConfigError, and
        OSError where the system has no descriptors for the link."""
        if route.fabric is not None:
            link = self._new(route, route.fabric)
            _reserve(route.name, link)
            self._start(route.name, link)

    def _start(self, name: str, fabric: FabricLink) -> None:
        self._links[_link_to(name)] = fabric
        fabric.start()

    def _new(self, route: Route, endpoint: str) -> FabricLink:
        """Return a link to a server at an endpoint, which is not started yet. Raises ConfigError."""
        name = route.name
        link = _link_to(name)
        keys = None
        if route.key is not None:
            if self._pair is None:
                raise ConfigError(f"[servers.{name}] key: an encrypted link needs this server's own key as well")
            keys = LinkKeys(self._pair, route.key)

        def received(messages: list[Message | Malformed]) -> None:
            self._carry_out(self._router.receive_all(link, messages, time.monotonic()))

        return FabricLink(
            endpoint,
            LinkClient("server", self._router.settings.name, {}),
            keys=keys,
            called=name,
            most_values=policy.most_values(self._router.settings, link),
            on_messages=received,
            on_ready=lambda: self._carry_out(self._router.on_server_ready(name, time.monotonic())),
            on_lost=lambda why: self._carry_out(self._router.on_server_lost(name, why, time.monotonic())),
            on_unsendable=self._on_unsendable,
            turn=self._turn,
        )

    def prepare(
        self, routes: Mapping[str, Route], grants: Mapping[str, Grant], opened: ExitStack
    ) -> Callable[[], None]:
        """Return a function that takes in the servers and keys of a configuration that was read again: links to servers
        that are new, or whose address or key has changed, are opened anew.

        All that can fail is done here; `opened` releases it where the configuration is not applied. Raises ConfigError,
        and OSError where the system has no descriptors for the new links.
        """
        before = self._router.settings.routes
        changed = {name for name in before.keys() | routes.keys() if _way(before.get(name)) != _way(routes.get(name))}
        links: dict[str, FabricLink] = {}
        for name in changed & routes.keys():
            endpoint = routes[name].fabric
            if endpoint is not None:
                links[name] = self._new(routes[name], endpoint)
                _reserve(name, links[name])
                opened.callback(links[name].release)

        def apply() -> None:
            now = time.monotonic()
            for name in changed:
                gone = "not listed here any more" if name not in routes else "its address or key has changed here"
                self._end(name, gone, now)
            self._carry_out(self._router.on_reloaded(routes, grants, now))
            for name, fabric in links.items():
                self._start(name, fabric)

        return apply

    def _end(self, name: str, why: str, now: float) -> None:
        """Close the link to a server that is not listed any more, or elsewhere, if there is one."""
        fabric = self._links.pop(_link_to(name), None)
        if fabric is not None:
            self._carry_out(self._router.on_server_lost(name, why, now))
            task = self._group.create_task(fabric.close(timeout_s=CLOSE_S))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    def retry(self, server: str) -> None:
        """Try a lost link now, without waiting for its back-off."""
        self._links[_link_to(server)].retry()

    def send(self, link: Link, messages: Sequence[Message]) -> None:
        """Send messages to a server; the core is told of those that cannot be sent."""
        fabric = self._links.get(link)
        for message in messages:
            if fabric is None or not fabric.send(message):
                self._carry_out(self._router.on_undeliverable(link, message, time.monotonic()))

    async def close(self) -> None:
        """Close all links."""
        await asyncio.gather(*(link.close(timeout_s=CLOSE_S) for link in self._links.values()))
        for task in list(self._closing):
            task.cancel()


def _link_to(server: str) -> Link:
    return Link("server", server.encode())


def _reserve(server: str, link: FabricLink) -> None:
    """Do all that can fail at the start of a link. Raises ConfigError for an address that ZeroMQ does not take, and
    OSError where the system has no descriptors."""
    try:
        link.reserve()
    except zmq.ZMQError as error:
        why = zmq.strerror(error.errno or 0)
        raise ConfigError(f"[servers.{server}] fabric: {link.endpoint}: {why}; check the address") from None


def _way(route: Route | None) -> tuple[str, str | None] | None:
    """Return how a server of the fabric is reached, None where it is none."""
    return None if route is None or route.fabric is None else (route.fabric, route.key)
