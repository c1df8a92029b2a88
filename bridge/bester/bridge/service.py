"""A running bridge: listeners, clock and forwarder around the core, with a broker in this process or over the fabric.

A shell: it opens and closes things in the right order and decides nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import Any

from bester.bridge.bridge import Bridge
from bester.bridge.connection import Connection
from bester.bridge.first_frames import FirstFrames
from bester.bridge.forward import Forwarder
from bester.bridge.informer import Informer
from bester.bridge.limits import Limits
from bester.bridge.listeners import Listener, listen_tcp, listen_unix, raise_descriptor_limit
from bester.broker.config import Config
from bester.broker.fabric import FabricLink
from bester.broker.logs import facts
from bester.broker.loop import run
from bester.broker.names import Followed, Names
from bester.broker.wire.codes import ConfigError
from bester.broker.wire.link_client import LinkClient
from bester.broker.wire.messages import VERSION, Hello, Message

TICK_S = 0.5
"""How often the core looks at its deadlines; they are seconds long."""
DRAIN_TICK_S = 0.05
"""The same while everybody leaves: whoever waits for this process to end waits for the last of them."""
DRAIN_S = 10.0
"""How long clients may wait for their reports after SIGTERM."""
FAREWELL_S = 2.0
"""The last of that: who still waits is told that no report will come, and has this long to take it."""
ABORT_S = 1.0
"""How long the loop may take to give up connections that were cut."""

log = logging.getLogger("bester.bridge")


class _Direct:
    """The way to a broker in this process."""

    def __init__(self, say: Callable[[Sequence[Message]], int]) -> None:
        self.send_all = say

    def send(self, message: Message) -> bool:
        """Take a message; False: not now."""
        return self.send_all((message,)) == 1


class _Ticker:
    """Tells the core to look at the time."""

    def __init__(self, loop: asyncio.AbstractEventLoop, bridge: Bridge, period_s: float = TICK_S) -> None:
        self._loop = loop
        self._bridge = bridge
        self._period_s = period_s
        self._timer = loop.call_later(period_s, self._tick)

    def _tick(self) -> None:
        self._timer = self._loop.call_later(self._period_s, self._tick)
        self._bridge.tick()

    def stop(self) -> None:
        """Look no more."""
        self._timer.cancel()


class Service:
    """What runs inside `serving`: the core, and where it listens."""

    def __init__(self, bridge: Bridge, forwarder: Forwarder) -> None:
        self.bridge = bridge
        self.forwarder = forwarder
        self.listeners: list[Listener] = []
        self._epoch = secrets.token_hex(4)
        self._name = f"bridge-{self._epoch}"  # two bridges of one server are told apart in its log, and by their ids
        self._empty = asyncio.Event()
        self.has_broker = asyncio.Event()
        """Set when a broker has answered for the first time."""
        bridge.on_empty = self._empty.set

    @property
    def addresses(self) -> list[str]:
        """Where it listens: `host:port` with the port that was taken, or a path."""
        return [listener.address for listener in self.listeners]

    @property
    def urls(self) -> dict[str, str]:
        """The same as the informer names it."""
        return {f"listener{number}": listener.url for number, listener in enumerate(self.listeners)}

    def _hello_options(self) -> dict[str, Any]:
        return {"epoch": self._epoch, "listeners": [listener.url for listener in self.listeners]}

    def attach(self, say: Callable[[Sequence[Message]], int]) -> None:
        """Use a broker in this process: `say` tells it something and returns how much of it was taken.

        What the broker says goes to `bridge.receive`.
        """
        self.bridge.connect(_Direct(say))
        say((Hello(VERSION, "bridge", self._name, self._hello_options()),))

    def link(self, endpoint: str) -> FabricLink:
        """Use the broker at a fabric endpoint; the link is to be started, and closed in the end."""
        bridge = self.bridge

        def ready() -> None:
            bridge.on_link_ready()
            self.has_broker.set()

        link = FabricLink(
            endpoint,
            LinkClient("bridge", self._name, self._hello_options()),
            on_messages=bridge.receive,
            on_ready=ready,
            on_lost=bridge.on_link_lost,
        )
        bridge.connect(link)
        return link

    def refuse_new(self) -> None:
        """Take no more connections."""
        for listener in self.listeners:
            listener.close()

    async def drain(self, timeout_s: float = DRAIN_S) -> bool:
        """Take nothing more from anybody; wait until all reports are out. False: some did not come in time, and those
        who waited for them were told so."""
        self.refuse_new()
        self._empty.clear()
        self.bridge.shut_down()
        ticker = _Ticker(asyncio.get_running_loop(), self.bridge, DRAIN_TICK_S)
        try:
            await asyncio.wait_for(self._empty.wait(), max(timeout_s - FAREWELL_S, 0))
        except TimeoutError:
            self.bridge.give_up()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._empty.wait(), min(timeout_s, FAREWELL_S))
            return False
        finally:
            ticker.stop()
        return True

    async def end(self) -> None:
        """Cut whoever is left."""
        self.refuse_new()
        await self.forwarder.close()
        self._empty.clear()
        if self.bridge.connections:
            count = self.bridge.connections
            log.info("cutting %d connections", count, extra=facts("connections-cut", count=count))
            self.bridge.abort()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._empty.wait(), ABORT_S)


def limits_of(config: Config) -> Limits:
    """Return the bounds with what the operator set, and as many connections as the system has descriptors for."""
    native = config.native
    return replace(
        Limits(),
        max_frame=native.max_frame,
        max_connections=min(native.max_connections, raise_descriptor_limit()),
        max_connections_per_user=native.max_connections_per_user,
        max_connections_per_address=native.max_connections_per_address,
    )


def _notice(text: str) -> None:
    # The place that is logged, and paced, is the core's line.
    log.warning("%s", text, extra=facts("broker-link"), stacklevel=2)


@contextlib.asynccontextmanager
async def serving(config: Config, names: Names | None = None) -> AsyncIterator[Service]:
    """A bridge that listens where the configuration says. It has no broker until `attach` or `link`.

    It listens before any name is looked up. `names` is a broker's in the same process, which looks them up as well.
    Raises ConfigError where it cannot listen. At the end whoever is left is cut; call `drain` first to let them finish.
    """
    loop = asyncio.get_running_loop()
    limits = limits_of(config)
    looked_up = names or Names()
    first_frames = FirstFrames(config, limits, Followed(config.native_hosts, looked_up))
    bridge = Bridge(
        limits,
        clock=loop.time,
        soon=loop.call_soon,
        first_frame_bytes=first_frames.limit_bytes,
        in_doubt=first_frames.is_in_doubt,
        on_doubt=first_frames.put_off,
        notice=_notice,
    )
    forwarder = Forwarder(limits, bridge.on_forwarded, looked_up)
    bridge.forward = forwarder.forward
    service = Service(bridge, forwarder)
    informer = Informer(limits, bridge.ask, lambda: service.urls)
    async with contextlib.AsyncExitStack() as stack:
        if names is None:
            stack.callback(looked_up.close)
        stack.push_async_callback(service.end)
        await _listen(config, service, loop)
        if config.informer is not None:
            asking = await listen_unix("[informer] unix", str(config.informer), informer, mode=0o600)
            stack.callback(informer.close)
            stack.callback(asking.close)
        ticker = _Ticker(loop, bridge)
        stack.callback(ticker.stop)
        first_frames.start()
        yield service


async def _listen(config: Config, service: Service, loop: asyncio.AbstractEventLoop) -> None:
    native = config.native

    def connection() -> Connection:
        return Connection(service.bridge, loop)

    for key, address, family in (
        ("[native] tcp4", native.tcp4, socket.AF_INET),
        ("[native] tcp6", native.tcp6, socket.AF_INET6),
    ):
        if address is not None:
            listener = await listen_tcp(key, address, connection, family=family, insecure=native.insecure)
            service.listeners.append(listener)
    if native.unix is not None:
        service.listeners.append(await listen_unix("[native] unix", str(native.unix), connection))


async def _announce(service: Service, on_ready: Callable[[list[str]], None]) -> None:
    """Until the broker has answered, whoever logs in is refused: only then is it worth saying that we serve."""
    await service.has_broker.wait()
    on_ready(service.addresses)


def run_bridge(config: Config, on_ready: Callable[[list[str]], None] = lambda addresses: None) -> int:
    """Serve clients and servers with a broker that runs elsewhere, until SIGTERM. Returns the exit status.

    `on_ready` gets the addresses when they are open. Raises ConfigError.
    """
    if len(config.fabric.connect) != 1:
        raise ConfigError("[fabric] connect names several brokers; a bridge has one: leave one of them")
    if config.native.tcp4 is None and config.native.tcp6 is None and config.native.unix is None:
        raise ConfigError('[native] names no listener; say tcp4 = "127.0.0.1:2223", tcp6 or unix')

    async def main(stop: asyncio.Event) -> int:
        """Serve until `stop` is set, or the broker has refused us for good."""
        async with serving(config) as service:
            link = service.link(config.fabric.connect[0])
            link.start()
            try:
                listen, name = ", ".join(service.addresses), link.link_client.hello.name
                known = facts("bridge-started", name=name, listen=listen, broker=link.endpoint)
                log.info("%s on %s, broker at %s", name, listen, link.endpoint, extra=known)
                async with asyncio.TaskGroup() as group:
                    announcing = group.create_task(_announce(service, on_ready))
                    stopping = group.create_task(stop.wait())
                    over = group.create_task(link.over.wait())
                    await asyncio.wait((stopping, over), return_when=asyncio.FIRST_COMPLETED)
                    for task in (announcing, stopping, over):
                        task.cancel()
                if not await service.drain():
                    known = facts("drain-timeout", drain_s=DRAIN_S)
                    log.warning("messages were still under way; their senders were told so", extra=known)
            finally:
                await link.close(timeout_s=1.0)
            if link.link_client.refusal is not None and not stop.is_set():
                why = link.link_client.refusal.text
                log.error("the broker refuses this bridge: %s", why, extra=facts("bridge-refused", why=why))
                return 1
        return 0

    return run(main)
