"""A running bridge: listeners, clock and forwarder around the core, with a broker in this process or over the fabric.

A shell, which decides nothing: everything is opened and closed in the right order.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from bester.bridge import native
from bester.bridge.bridge import Bridge
from bester.bridge.brokers import MAX_BROKERS
from bester.bridge.certificates import Certificates, Watch
from bester.bridge.connection import Connection
from bester.bridge.credit import hello_options
from bester.bridge.first_frames import FirstFrames
from bester.bridge.forward import Forwarder
from bester.bridge.informer import Informer
from bester.bridge.lifeline import Lifeline
from bester.bridge.limits import Limits
from bester.bridge.listeners import (
    Factory,
    Listener,
    listen_tcp,
    listen_tls,
    listen_unix,
    listen_web,
    raise_descriptor_limit,
)
from bester.bridge.session import Session
from bester.broker.config import Config, NativeConfig
from bester.broker.fabric import FabricLink
from bester.broker.keys import LinkKeys, link_keys
from bester.broker.logs import facts
from bester.broker.loop import run
from bester.broker.names import Followed, Names
from bester.broker.reload import Apply, Prepare, Reloader
from bester.broker.systemd import service_manager
from bester.broker.tls_faults import TlsError
from bester.broker.tls_stream import TlsStream
from bester.broker.turn import Turn
from bester.broker.wire.codes import ConfigError
from bester.broker.wire.link_client import LinkClient
from bester.broker.wire.messages import VERSION, Hello, Message
from bester.broker.wire.runs import read_deliveries, write_run

TICK_S = 0.5
"""Time between two looks of the core at its deadlines, which are seconds long."""
FIGURES_S = 2.0
"""Time between two messages to the broker with the counts of this bridge: a display shows them soon enough."""
DRAIN_TICK_S = 0.05
"""The same during the drain: the end of the process waits for the last connection."""
DRAIN_S = 10.0
"""Time of clients for their reports after SIGTERM."""
FAREWELL_S = 2.0
"""The last part of that: clients without a report get `timeout`, and have this long to read it."""
ABORT_S = 1.0
"""Time of the loop to give up connections that were cut."""

PLAIN_ANSWER = native.refused("tls-required")
"""Answer to plain text at a listener of TLS."""
PLAIN_HTTP = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 21\r\n\r\nuse wss:// (TLS) here"
"""The same at a listener of WebSockets over TLS."""

log = logging.getLogger("bester.bridge")


class _Direct:
    """Link to a broker in this process."""

    def __init__(self, send: Callable[[Sequence[Message]], int]) -> None:
        self.send_all = send

    def send(self, message: Message) -> bool:
        """Take a message; False where there is no room for it now."""
        return self.send_all((message,)) == 1


class _Ticker:
    """Clock of the core: calls `tick`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, bridge: Bridge, period_s: float = TICK_S) -> None:
        self._loop = loop
        self._bridge = bridge
        self._period_s = period_s
        self._until_figures = 0
        self._timer = loop.call_later(period_s, self._tick)

    def _tick(self) -> None:
        self._timer = self._loop.call_later(self._period_s, self._tick)
        self._bridge.tick()
        self._until_figures -= 1
        if self._until_figures <= 0 and self._bridge.is_ready:
            self._until_figures = round(FIGURES_S / self._period_s)
            self._bridge.tell_figures()

    def stop(self) -> None:
        """Make no more calls."""
        self._timer.cancel()


class Service:
    """The core and its listeners inside `serving`."""

    def __init__(
        self, bridge: Bridge, forwarder: Forwarder, certificates: Certificates, first_frames: FirstFrames, turn: Turn
    ) -> None:
        self.bridge = bridge
        self._turn = turn
        self.certificates = certificates
        self.first_frames = first_frames
        self.forwarder = forwarder
        self.listeners: list[Listener] = []
        self._epoch = secrets.token_hex(4)
        self._name = f"bridge-{self._epoch}"  # tells two bridges of one server apart in its log, and by their ids
        self._empty = asyncio.Event()
        self.has_broker = asyncio.Event()
        """Set when a broker has answered for the first time."""
        self._links: list[FabricLink] = []
        self._leaving: dict[FabricLink, asyncio.Task[None]] = {}
        bridge.on_empty = self._empty.set

    @property
    def addresses(self) -> list[str]:
        """Addresses of the listeners: `host:port` with the actual port, or a path."""
        return [listener.address for listener in self.listeners]

    @property
    def urls(self) -> dict[str, str]:
        """URLs of the listeners, as the informer names them."""
        return {f"listener{number}": listener.url for number, listener in enumerate(self.listeners)}

    def _hello_options(self) -> dict[str, Any]:
        listeners = [listener.url for listener in self.listeners]
        return {"epoch": self._epoch, "listeners": listeners, **hello_options(self.bridge.brokers.limits_of_one)}

    def attach(self, send: Callable[[Sequence[Message]], int]) -> None:
        """Use a broker in this process: `send` sends messages to the broker and returns how many were taken.

        Messages of the broker go to `bridge.receive`.
        """
        self.bridge.connect(_Direct(send))
        send((Hello(VERSION, "bridge", self._name, self._hello_options()),))

    def link(self, endpoint: str, keys: LinkKeys | None = None, number: int = 0) -> FabricLink:
        """Return a link to the broker at a fabric endpoint; the caller starts and closes the link. `keys` encrypt the
        link. `number` is that of the broker among several."""
        bridge = self.bridge
        broker = bridge.brokers.all[number]

        def ready() -> None:
            twin = self._twin(fabric)
            if twin is not None:
                self._part(fabric, twin)
                return
            bridge.on_link_ready(fabric.link_client.options, broker)
            self.has_broker.set()

        def received(frames: list[bytes]) -> bool:
            """Take a batch of deliveries alone; return False for any other."""
            run = read_deliveries(frames)
            if run is None:
                return False
            bridge.receive(run, broker)
            return True

        def lost(why: str) -> None:
            bridge.on_link_lost(why, broker)

        several = bridge.brokers.are_several
        fabric = FabricLink(
            endpoint,
            LinkClient("bridge", self._name, self._hello_options()),
            on_messages=partial(bridge.receive, broker=broker) if several else bridge.receive,
            on_ready=ready,
            on_lost=lost,
            keys=keys,
            on_frames=received,
            pack=write_run,
            turn=self._turn,
        )
        bridge.connect(fabric, broker)
        self._links.append(fabric)
        return fabric

    def _twin(self, fabric: FabricLink) -> FabricLink | None:
        """Return another link to the same life of the same broker, if there is one that stays."""
        life = fabric.link_client.options.get("life")
        same = (
            link
            for link in self._links
            if link is not fabric
            and link not in self._leaving
            and not link.over.is_set()
            and link.link_client.options.get("life") == life
        )
        return next(same, None) if life is not None else None

    def _part(self, fabric: FabricLink, twin: FabricLink) -> None:
        """Leave a broker that another link leads to as well: it would give up one of the links for the other."""
        fields = facts("broker-twice", endpoint=fabric.endpoint, other=twin.endpoint)
        text = "%s and %s lead to one broker, and the first of them is not used: leave it out of [fabric] connect"
        log.error(text, fabric.endpoint, twin.endpoint, extra=fields)
        self._leaving[fabric] = asyncio.get_running_loop().create_task(fabric.close(timeout_s=1.0))

    def refuse_new(self) -> None:
        """Accept no more connections."""
        for listener in self.listeners:
            listener.close()

    async def drain(self, timeout_s: float = DRAIN_S) -> bool:
        """Take no more frames; wait until all reports are out. Return False where some did not come in time; their
        clients got `timeout`."""
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
        """Cut the remaining connections."""
        self.refuse_new()
        await self.forwarder.close()
        self._empty.clear()
        if self.bridge.connections:
            count = self.bridge.connections
            log.info("cutting %d connections", count, extra=facts("connections-cut", count=count))
            self.bridge.abort()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._empty.wait(), ABORT_S)


def live_part(service: Service) -> tuple[tuple[str, ...], Prepare]:
    """Return the keys that a running bridge takes in live, and the part of a Reloader that does so."""

    def prepare(config: Config) -> Apply:
        """Return a function that takes in the servers of a configuration. Raises ConfigError."""
        certificates = service.certificates.prepare(config)

        def apply() -> None:
            certificates()
            service.first_frames.replace(config.native_hosts)

        return apply

    return ("servers",), prepare


def limits_of(config: Config) -> Limits:
    """Return the bounds with the operator's settings, and as many connections as the system has descriptors for."""
    native = config.native
    return replace(
        Limits(),
        max_frame=native.max_frame,
        max_connections=min(native.max_connections, raise_descriptor_limit()),
        messages_per_s=native.messages_per_s,
        max_connections_per_user=native.max_connections_per_user,
        max_connections_per_address=native.max_connections_per_address,
    )


def _on_ended(session: Session, why: str) -> None:
    known = facts("connection-ended", why=why, address=session.address, user=session.user)
    who = f"{session.user} at {session.address}" if session.user else session.address
    log.warning("connection of %s ended: %s", who, why, extra=known)


def _notice(text: str) -> None:
    # The logged place, and the one that log limits count, is the core's line.
    log.warning("%s", text, extra=facts("broker-link"), stacklevel=2)


@contextlib.asynccontextmanager
async def serving(
    config: Config,
    names: Names | None = None,
    turn: Turn | None = None,
    brokers: Sequence[str] = ("",),
    *,
    shared: bool = False,
) -> AsyncIterator[Service]:
    """Run a bridge with the listeners of the configuration, for as many brokers as there are places in `brokers`. The
    bridge has none of them until `attach` or `link`. `shared`: other processes listen at the same TCP addresses.

    Listeners open before any name is looked up. `names` and `turn` are those of a broker in the same process. Raises
    ConfigError where a listener cannot be opened. At the end the remaining connections are cut; call `drain` first to
    let them finish.
    """
    loop = asyncio.get_running_loop()
    turn = turn or Turn()
    certificates = Certificates(config)
    limits = limits_of(config)
    looked_up = names or Names()
    first_frames = FirstFrames(config, limits, Followed(config.native_hosts, looked_up))
    bridge = Bridge(
        limits,
        clock=time.monotonic,  # a uvloop loop's own stands still within a turn, which budgets of a turn measure
        soon=turn.soon,
        later=loop.call_soon,
        reading=turn,
        first_frame_bytes=first_frames.limit_bytes,
        in_doubt=first_frames.is_in_doubt,
        on_doubt=first_frames.put_off,
        ended=_on_ended,
        notice=_notice,
        brokers=brokers,
    )
    forwarder = Forwarder(
        limits, bridge.on_forwarded, looked_up, certificates.of_server, config.reachable, bridge.reached
    )
    bridge.forward = forwarder.forward
    bridge.more_figures = certificates.figures
    service = Service(bridge, forwarder, certificates, first_frames, turn)
    informer = Informer(limits, bridge.ask, lambda: service.urls, bridge.reached)
    async with contextlib.AsyncExitStack() as stack:
        if names is None:
            stack.callback(looked_up.close)
        stack.push_async_callback(service.end)
        await _listen(config, service, loop, shared=shared)
        if config.informer is not None:
            asking = await listen_unix("[informer] unix", str(config.informer), informer, mode=0o600)
            stack.callback(informer.close)
            stack.callback(asking.close)
        service_manager().check_all_taken()
        ticker = _Ticker(loop, bridge)
        stack.callback(ticker.stop)
        stack.callback(Watch(certificates).stop)
        first_frames.start()
        yield service


async def _listen(config: Config, service: Service, loop: asyncio.AbstractEventLoop, *, shared: bool) -> None:
    listeners = config.native

    def connection() -> Connection:
        return Connection(service.bridge, loop)

    for key, address, family in (
        ("[native] tcp4", listeners.tcp4, socket.AF_INET),
        ("[native] tcp6", listeners.tcp6, socket.AF_INET6),
    ):
        if address is not None:
            listener = await listen_tcp(
                key, address, connection, family=family, insecure=listeners.insecure, shared=shared
            )
            service.listeners.append(listener)
    if listeners.unix is not None:
        service.listeners.append(await listen_unix("[native] unix", str(listeners.unix), connection))
    for address in () if listeners.tls is None else listeners.tls.listen:
        service.listeners.append(await listen_tls(address, lambda: _secure(service, loop), shared=shared))
    if listeners.websocket is not None:
        factory, secure = _web(listeners, service, loop), listeners.tls is not None
        service.listeners.append(await listen_web(listeners.websocket, factory, secure=secure, shared=shared))


def _web(native: NativeConfig, service: Service, loop: asyncio.AbstractEventLoop) -> Factory:
    """Return the maker of a WebSocket listener's protocols: over TLS where there are certificates."""
    from bester.bridge.web_stream import Unended, WebStream  # most servers run without

    limits = service.bridge.limits
    unended = Unended(limits.unfinished_bytes, limits.frame_s + native.max_frame / limits.frame_rate)

    def plain() -> WebStream:
        """Return the protocol of a connection without TLS, or below it."""
        connection = Connection(service.bridge, loop)

        def refused(why: str) -> None:
            address = connection.address
            log.warning(
                "WebSocket of %s refused: %s", address, why, extra=facts("web-refused", address=address, why=why)
            )

        return WebStream(
            connection, unended=unended, origins=native.websocket_origins, max_frame=native.max_frame, refused=refused
        )

    def secure() -> TlsStream:
        """Return the protocol of a connection with TLS."""
        return TlsStream(plain(), service.certificates.listener, plain_answer=PLAIN_HTTP)

    return plain if native.tls is None else secure


def _secure(service: Service, loop: asyncio.AbstractEventLoop) -> TlsStream:
    """Return the protocol of a connection to a listener of TLS."""
    connection = Connection(service.bridge, loop)

    def failed(fault: TlsError) -> None:
        address = connection.address
        log.warning(
            "TLS with %s failed: %s", address, fault, extra=facts("tls-failed", address=address, why=str(fault))
        )

    context = service.certificates.listener
    return TlsStream(connection, context, plain_answer=PLAIN_ANSWER, opened=connection.secured, failed=failed)


async def _all_over(links: Sequence[FabricLink]) -> None:
    """Wait until every link has ended for good, and log each refusal but the last."""
    waits = {asyncio.ensure_future(link.over.wait()): link for link in links}
    try:
        while waits:
            done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for each in done:
                link = waits.pop(each)
                if link.link_client.refusal is not None and waits:
                    why = link.link_client.refusal.text
                    text = "the broker at %s refuses this bridge, which goes on with the others: %s"
                    log.error(text, link.endpoint, why, extra=facts("bridge-refused", broker=link.endpoint, why=why))
    finally:
        for each in waits:
            each.cancel()


async def _announce(service: Service, on_ready: Callable[[list[str]], None]) -> None:
    """Call `on_ready` when a broker has answered: until then logins are refused."""
    await service.has_broker.wait()
    on_ready(service.addresses)


def keys_to(config: Config, endpoint: str) -> LinkKeys | None:
    """Return the keys of an encrypted link to a broker at an endpoint, None where the link is not encrypted. Raises
    ConfigError."""
    fabric = config.fabric
    key = config.key_file if fabric.server_key is not None else fabric.key
    names = ("--key FILE (or [fabric] key)", "--server-key KEY (or [fabric] server_key)")
    return link_keys(endpoint, key, fabric.server_key, names)


def require_listener(config: Config) -> None:
    """Raise ConfigError where a bridge would listen nowhere."""
    native_config, tls = config.native, config.native.tls
    plain = (native_config.tcp4, native_config.tcp6, native_config.unix)
    if all(each is None for each in plain) and (tls is None or not tls.listen):
        raise ConfigError('[native] names no listener; set tcp4 = "127.0.0.1:2223", tcp6 or unix')


def run_bridge(
    config: Config,
    on_ready: Callable[[list[str]], None] = lambda addresses: None,
    read: Callable[[], Config] | None = None,
    lifeline: Lifeline | None = None,
) -> int:
    """Serve clients and servers with brokers in other processes, until SIGTERM. Return the exit status.

    `on_ready` gets the addresses when the listeners are open. `read` reads the configuration again at SIGHUP. With a
    `lifeline` this process is one of several at the same addresses. Raises ConfigError.
    """
    endpoints = config.fabric.connect
    if len(set(endpoints)) < len(endpoints):
        raise ConfigError("[fabric] connect names a broker twice; each of the server's brokers stands there once")
    if len(endpoints) > MAX_BROKERS:
        raise ConfigError(
            f"[fabric] connect names {len(endpoints)} brokers; a bridge is linked to at most {MAX_BROKERS}"
        )
    require_listener(config)
    keys = [keys_to(config, endpoint) for endpoint in endpoints]

    async def main(stop: asyncio.Event) -> int:
        """Serve until `stop` is set, or every broker has refused this bridge for good."""
        if lifeline is not None:
            await lifeline.follow(stop)
        async with serving(config, brokers=endpoints, shared=lifeline is not None) as service:
            reloader = Reloader(config, read)
            reloader.add(*live_part(service))
            reloader.start()
            links = [service.link(*each, number) for number, each in enumerate(zip(endpoints, keys, strict=True))]
            for link in links:
                link.start()
            try:
                listen, name, at = ", ".join(service.addresses), links[0].link_client.hello.name, ", ".join(endpoints)
                fields = facts("bridge-started", name=name, listen=listen, broker=at)
                log.info("%s on %s, broker at %s", name, listen, at, extra=fields)
                async with asyncio.TaskGroup() as group:
                    announcing = group.create_task(_announce(service, lifeline.ready if lifeline else on_ready))
                    stopping = group.create_task(stop.wait())
                    over = group.create_task(_all_over(links))
                    await asyncio.wait((stopping, over), return_when=asyncio.FIRST_COMPLETED)
                    for task in (announcing, stopping, over):
                        task.cancel()
                if not await service.drain():
                    fields = facts("drain-timeout", drain_s=DRAIN_S)
                    log.warning("messages were still under way; their senders got `timeout`", extra=fields)
            finally:
                reloader.close()
                await asyncio.gather(*(link.close(timeout_s=1.0) for link in links))
            refusals = [link.link_client.refusal.text for link in links if link.link_client.refusal is not None]
            if refusals and not stop.is_set():
                why = refusals[-1]
                log.error("the broker refuses this bridge: %s", why, extra=facts("bridge-refused", why=why))
                return 1
        return 0

    return run(main)
