"""A running bridge: listeners, clock and forwarder around the core, with a broker in this process or over the fabric.

A shell, which decides nothing: everything is opened and closed in the right order.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from bester.bridge.bridge import Bridge
from bester.bridge.certificates import Certificates, Watch
from bester.bridge.credit import hello_options
from bester.bridge.first_frames import FirstFrames
from bester.bridge.forward import Forwarder
from bester.bridge.informer import Informer
from bester.bridge.limits import Limits
from bester.bridge.listeners import Listener, listen_unix, raise_descriptor_limit
from bester.bridge.native_listeners import open_listeners
from bester.bridge.ports import Shell
from bester.bridge.session import Session
from bester.bridge.standstill import Standstill
from bester.broker.clocks import with_sleep
from bester.broker.config import Config
from bester.broker.fabric import FabricLink
from bester.broker.keys import LinkKeys
from bester.broker.layer_turns import LayerTurns
from bester.broker.logs import facts
from bester.broker.names import Followed, Names
from bester.broker.reload import Apply, Prepare
from bester.broker.systemd import service_manager
from bester.broker.turn import Turn
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

log = logging.getLogger("bester.bridge")


class _Direct:
    """Link to a broker in this process."""

    def __init__(self, send: Callable[[Sequence[Message]], int]) -> None:
        self.send_all = send

    def send(self, message: Message) -> bool:
        """Take a message; False where there is no room for it now."""
        return self.send_all((message,)) == 1

    def give_up(self) -> None:
        """Do nothing: a broker in this process takes every message."""


class _Ticker:
    """Clock of the core: calls `tick`, and that of `standstill`."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, bridge: Bridge, standstill: Standstill, period_s: float = TICK_S
    ) -> None:
        self._loop = loop
        self._bridge = bridge
        self._standstill = standstill
        self._period_s = period_s
        self._until_figures = 0
        self._timer = loop.call_later(period_s, self._tick)

    def _tick(self) -> None:
        self._timer = self._loop.call_later(self._period_s, self._tick)
        self._bridge.tick(judge=self._standstill.tick(with_sleep()))
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
        ticker = _Ticker(asyncio.get_running_loop(), self.bridge, Standstill(with_sleep()), DRAIN_TICK_S)
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

    def prepare(config: Config, _: contextlib.ExitStack) -> Apply:
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


def _shell(loop: asyncio.AbstractEventLoop, turn: Turn, first_frames: FirstFrames) -> Shell:
    """Return the loop, the turn and the log, as the core of a bridge calls them."""
    return Shell(
        clock=time.monotonic,  # a uvloop loop's own stands still within a turn, which budgets of a turn measure
        soon=turn.soon,
        later=loop.call_soon,
        reading=turn,
        brief=turn.brief,
        first_frame_bytes=first_frames.limit_bytes,
        in_doubt=first_frames.is_in_doubt,
        on_doubt=first_frames.put_off,
        ended=_on_ended,
        notice=_notice,
    )


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
    bridge = Bridge(limits, _shell(loop, turn, first_frames), brokers=brokers)
    standstill = Standstill(with_sleep())
    forwarder = Forwarder(
        limits, bridge.forwards.on_forwarded, looked_up, certificates.of_server, config.reachable, bridge.reached,
        LayerTurns(time.monotonic, loop.call_soon), standstill,
    )  # fmt: skip
    bridge.forwards.carry = forwarder.forward
    bridge.more_figures = certificates.figures
    service = Service(bridge, forwarder, certificates, first_frames, turn)
    informer = Informer(limits, bridge.ask, lambda: service.urls, bridge.reached)
    async with contextlib.AsyncExitStack() as stack:
        if names is None:
            stack.callback(looked_up.close)
        stack.push_async_callback(service.end)
        await open_listeners(config.native, service.listeners.append, bridge, certificates, shared=shared)
        if config.informer is not None:
            asking = await listen_unix("[informer] unix", str(config.informer), informer, mode=0o600)
            stack.callback(informer.close)
            stack.callback(asking.close)
        service_manager().check_all_taken()
        ticker = _Ticker(loop, bridge, standstill)
        stack.callback(ticker.stop)
        stack.callback(Watch(certificates).stop)
        first_frames.start()
        yield service
