"""`bester bridge`: a bridge alone in its process, linked over the fabric to one broker, or to all of a server."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from bester.bridge.brokers import MAX_BROKERS
from bester.bridge.lifeline import Lifeline
from bester.bridge.service import DRAIN_S, Service, live_part, serving
from bester.broker.config import Config
from bester.broker.fabric import FabricLink
from bester.broker.keys import LinkKeys, link_keys
from bester.broker.logs import facts
from bester.broker.loop import run
from bester.broker.reload import Reloader
from bester.broker.wire.codes import ConfigError

log = logging.getLogger("bester.bridge")


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
            if lifeline is not None:
                lifeline.reloads()
            links = [service.link(*each, number) for number, each in enumerate(zip(endpoints, keys, strict=True))]
            for link in links:
                link.start()
            try:
                listen, name, at = ", ".join(service.addresses), links[0].link_client.hello.name, ", ".join(endpoints)
                fields = facts("bridge-started", name=name, listen=listen, broker=at)
                log.info("%s on %s, broker at %s", name, listen, at, extra=fields)
                await _until_over(service, links, stop, lifeline.ready if lifeline else on_ready)
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


def require_listener(config: Config) -> None:
    """Raise ConfigError where a bridge would listen nowhere."""
    native_config, tls = config.native, config.native.tls
    plain = (native_config.tcp4, native_config.tcp6, native_config.unix)
    if all(each is None for each in plain) and (tls is None or not tls.listen):
        raise ConfigError('[native] names no listener; set tcp4 = "127.0.0.1:2223", tcp6 or unix')


def keys_to(config: Config, endpoint: str) -> LinkKeys | None:
    """Return the keys of an encrypted link to a broker at an endpoint, None where the link is not encrypted. Raises
    ConfigError."""
    fabric = config.fabric
    key = config.key_file if fabric.server_key is not None else fabric.key
    names = ("--key FILE (or [fabric] key)", "--server-key KEY (or [fabric] server_key)")
    return link_keys(endpoint, key, fabric.server_key, names)


async def _announce(service: Service, on_ready: Callable[[list[str]], None]) -> None:
    """Call `on_ready` when a broker has answered: until then logins are refused."""
    await service.has_broker.wait()
    on_ready(service.addresses)


async def _until_over(
    service: Service, links: Sequence[FabricLink], stop: asyncio.Event, on_ready: Callable[[list[str]], None]
) -> None:
    """Wait until `stop` is set, or every link has ended for good; announce the bridge meanwhile."""
    async with asyncio.TaskGroup() as group:
        announcing = group.create_task(_announce(service, on_ready))
        stopping = group.create_task(stop.wait())
        over = group.create_task(_all_over(links))
        await asyncio.wait((stopping, over), return_when=asyncio.FIRST_COMPLETED)
        for task in (announcing, stopping, over):
            task.cancel()


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
