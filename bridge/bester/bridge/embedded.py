"""`bester up`: broker and bridge on one event loop, with a direct call in place of ZeroMQ between them, and the
declared handlers as child processes.

A shell: the parts are put together, and taken apart in an order that loses nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import AsyncExitStack

from bester.bridge import service as bridge_service
from bester.bridge.children.plan import plan
from bester.bridge.children.supervisor import GRACE_S, Children
from bester.bridge.service import Service
from bester.broker import loop
from bester.broker import service as broker_service
from bester.broker.config import Config
from bester.broker.data_dir import about_to_end
from bester.broker.logs import facts
from bester.broker.names import Names
from bester.broker.reload import Reloader
from bester.broker.server import Broker
from bester.broker.store.postgres_brokers import namespaces
from bester.broker.turn import Turn
from bester.broker.wire.address import parse_endpoint
from bester.broker.wire.codes import ConfigError

log = logging.getLogger("bester.up")

LAST_DRAIN_S = 0.5
"""Least time of the broker to finish work for others than clients."""
HURRY_S = 0.2
"""Time of handlers from SIGTERM to SIGKILL after a second signal, or after a failure."""


def run_up(
    config: Config,
    on_ready: Callable[[list[str]], None] = lambda addresses: None,
    read: Callable[[], Config] | None = None,
    on_page: Callable[[str], None] = lambda address: None,
) -> int:
    """Serve until SIGTERM or SIGINT. Return the exit status; `on_ready` gets the native addresses when the listeners
    are open. `read` reads the configuration again at SIGHUP. `on_page` gets `host:port` of the operator's page, if any.

    Raises ConfigError or BesterError where something cannot be opened.
    """
    endpoint = _endpoint_of_handlers(config)
    if _has_several_brokers(config):
        _warn_of_others(len(config.fabric.connect))

    async def main(stop: asyncio.Event) -> int:
        """Serve until `stop` is set, and finish what is under way."""
        children = Children(plan(config, endpoint), config.directory)
        async with AsyncExitStack() as stack:
            broker, bridge = await _open(config, stack)
            broker.hooks.on_handler = children.served
            children.on_given_up = broker.router.on_types_given_up
            broker.hooks.restart = children.restart
            stack.push_async_exit(lambda kind, *_: children.stop(HURRY_S if kind else GRACE_S))
            await children.start()
            reloader = Reloader(config, read)
            reloader.add(*broker_service.live_part(broker))
            reloader.add(*bridge_service.live_part(bridge))
            reloader.start()
            on_ready(bridge.addresses)
            if broker.operator_address is not None:
                on_page(broker.operator_address)
            await stop.wait()
            reloader.close()
            about_to_end()
            await _drain(broker, bridge)
        return 0

    return loop.run(main)


def _has_several_brokers(config: Config) -> bool:
    """Return whether the file names several brokers: then the endpoints and keys of handlers are written in it."""
    return len(config.fabric.connect) > 1


def _endpoint_of_handlers(config: Config) -> str:
    """Return the endpoint for declared handlers: ipc where there is one, because the system names the process there.

    Raises ConfigError where declared handlers could not connect.
    """
    listen = config.fabric.listen
    if not listen:
        raise ConfigError("[fabric] listen is empty; handlers could not reach this server: leave the key out")
    endpoint = next((endpoint for endpoint in listen if endpoint.startswith("ipc://")), listen[0])
    if (
        config.handlers
        and not _has_several_brokers(config)
        and (config.fabric.curve or not parse_endpoint(endpoint).local)
        and endpoint.startswith("tcp:")
    ):
        text = "every listener is encrypted, and declared handlers have no keys"
        raise ConfigError(f'[fabric] listen: {text}; add "ipc://DATA_DIR/fabric.sock" to the list')
    return endpoint


async def _open(config: Config, stack: AsyncExitStack) -> tuple[Broker, Service]:
    """Open broker and bridge, and link them; `stack` closes them."""
    names = Names()
    stack.callback(names.close)
    turn = Turn()
    broker = await stack.enter_async_context(broker_service.serving(config, names, turn))
    bridge = await stack.enter_async_context(bridge_service.serving(config, names, turn))
    bridge.attach(broker.attach(bridge.bridge.receive))
    if config.store.database is not None and not _has_several_brokers(config):
        found = await asyncio.to_thread(namespaces, config.store.database)
        living = [each.name for each in found if each.state == "lives" and each.name != config.server.broker]
        if living:
            _warn_of_others(1 + len(living))
    return broker, bridge


def _warn_of_others(brokers: int) -> None:
    """Say in the log that users of the server's other brokers are away here."""
    text = "the bridge of `bester up` is linked to its own broker alone, so that users of the other brokers are away "
    text += "for it: run `bester broker`, `bester bridge` and `bester handler` where a server has several"
    log.warning(text, extra=facts("several-brokers", brokers=brokers))


async def _drain(broker: Broker, bridge: Service) -> None:
    """Finish what is under way. Clients first: no new messages, reports for the old ones; then the work of handlers and
    for servers. Both in the same time: nobody waits for an answer after that."""
    loop_time = asyncio.get_running_loop().time
    latest = loop_time() + broker_service.DRAIN_S
    broker.router.announce_end()
    bridge.refuse_new()
    await bridge.drain(broker_service.DRAIN_S)
    await broker_service.finish(broker.drain(max(latest - loop_time(), LAST_DRAIN_S)))
