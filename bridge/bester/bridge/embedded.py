"""`bester up`: broker and bridge on one event loop, with a direct call in place of ZeroMQ between them, and the
declared handlers as child processes.

A shell: it puts the parts together and takes them apart in an order that loses nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import AsyncExitStack

from bester.bridge import service as bridge_service
from bester.bridge.children.plan import plan
from bester.bridge.children.supervisor import GRACE_S, Children
from bester.broker import loop
from bester.broker import service as broker_service
from bester.broker.config import Config
from bester.broker.data_dir import about_to_end
from bester.broker.names import Names
from bester.broker.wire.codes import ConfigError

log = logging.getLogger("bester.up")

LAST_DRAIN_S = 0.5
"""What the broker has at least to finish what it owes to others than clients."""
HURRY_S = 0.2
"""What handlers have from SIGTERM to SIGKILL where somebody asked twice for the end, or it comes by a failure."""


def _endpoint(listen: tuple[str, ...]) -> str:
    """Return where the declared handlers connect: to ipc if there is any, where the system names the process."""
    return next((endpoint for endpoint in listen if endpoint.startswith("ipc://")), listen[0])


def run_up(config: Config, on_ready: Callable[[list[str]], None] = lambda addresses: None) -> int:
    """Serve until SIGTERM or SIGINT. Returns the exit status; `on_ready` gets the native addresses when they are open.

    Raises ConfigError or BesterError where something cannot be opened.
    """
    if not config.fabric.listen:
        raise ConfigError("[fabric] listen is empty; handlers could not reach this server: leave the key out")

    async def main(stop: asyncio.Event) -> int:
        """Serve until `stop` is set, and finish what is under way."""
        children = Children(plan(config, _endpoint(config.fabric.listen)), config.directory)
        async with AsyncExitStack() as stack:
            names = Names()
            stack.callback(names.close)
            broker = await stack.enter_async_context(broker_service.serving(config, names))
            bridge = await stack.enter_async_context(bridge_service.serving(config, names))
            bridge.attach(broker.attach(bridge.bridge.receive))
            broker.on_handler = children.served
            children.on_given_up = broker.router.on_types_given_up
            broker.restart = children.restart
            stack.push_async_exit(lambda kind, *_: children.stop(HURRY_S if kind else GRACE_S))
            await children.start()
            on_ready(bridge.addresses)
            await stop.wait()
            about_to_end()
            # Clients first: no new messages, reports for the old ones; then what handlers and servers still owe. Both
            # in the same time: what was not answered in that, nobody waits for any more.
            loop_time = asyncio.get_running_loop().time
            latest = loop_time() + broker_service.DRAIN_S
            bridge.refuse_new()
            await bridge.drain(broker_service.DRAIN_S)
            await broker_service.finish(broker.drain(max(latest - loop_time(), LAST_DRAIN_S)))
        return 0

    return loop.run(main)
