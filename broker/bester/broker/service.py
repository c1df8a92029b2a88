"""`bester broker`: from a configuration to a running broker."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from bester.broker.accounts import Logins, open_logins
from bester.broker.config import Config
from bester.broker.core.settings import Route, Settings
from bester.broker.data_dir import LOCK, Claim, Lock, about_to_end, until_ended
from bester.broker.hosts import Hosts
from bester.broker.logs import facts
from bester.broker.loop import run
from bester.broker.names import Followed, Names
from bester.broker.server import Broker
from bester.broker.store import Store, open_store
from bester.broker.store.file import examine
from bester.broker.store_requests import Budget

DRAIN_S = 10.0
"""How long messages may take to finish after SIGTERM."""

NOWHERE = Hosts()

log = logging.getLogger("bester.broker")


def settings_of(config: Config, hosts: Hosts = NOWHERE) -> Settings:
    """Return what the core is told; `hosts` is where the native servers are, as far as that is known."""
    routes = {
        name: Route(
            name,
            peer.fabric,
            None if peer.native is None else str(peer.native),
            peer.accept_types,
            peer.reports,
            peer.ordered,
        )
        for name, peer in config.servers.items()
    }
    return Settings(
        name=config.server.name,
        open_accounts=config.auth == "open",
        accept=config.accept,
        routes=routes,
        hosts=hosts.servers,
        unknown_hosts=hosts.unknown,
        declared_types=frozenset(type_ for handler in config.handlers for type_ in handler.types),
        admin_info=config.admin_info,
        bounds=config.store.bounds,
        budgets=_budgets(config),
    )


def _budgets(config: Config) -> dict[str, Budget]:
    """Return what the handlers of a type may take."""
    return {
        type_: Budget(handler.timeout_s, handler.attempts) for handler in config.handlers for type_ in handler.types
    }


@contextlib.asynccontextmanager
async def serving(config: Config, names: Names | None = None) -> AsyncIterator[Broker]:
    """A broker that serves from the configured directory, with its accounts; everything is given back at the end.

    It listens before any name is looked up. `names` is a bridge's in the same process, which looks them up as well.
    """
    with contextlib.ExitStack() as stack:
        await until_ended(config.server.data_dir)
        claim = Claim(config.server.data_dir)
        stack.callback(claim.close)
        logins: Logins = open_logins(config)
        stack.callback(logins.close)
        store = _store_of(config, stack)
        if names is None:
            names = Names()
            stack.callback(names.close)
        followed = Followed(config.native_hosts, names)
        async with Broker(settings_of(config, followed.table()), config.fabric.listen, logins, store) as broker:
            broker.look_up = followed.look_again
            followed.start(broker.hosts_changed)
            yield broker


def _store_of(config: Config, stack: contextlib.ExitStack) -> Store:
    """Return the configured store. Where its file is not in the claimed directory, it is claimed by itself; and so is
    the directory it is in, where that is another server's. No lock is left where nothing of Bester's can be."""
    path = config.store.path
    real = Path(os.path.realpath(path)) if path is not None else None
    if real is not None and real.parent != config.server.data_dir.resolve():
        examine(real)
        locks = [real.with_name(f"{real.name}.lock"), *[real.parent / LOCK] * (real.parent / LOCK).exists()]
        for each in locks:
            lock = Lock(each, real, "[store] url")
            stack.callback(lock.close)
    store = open_store(path, config.store.synchronous, config.store.bounds)
    stack.callback(store.close)
    return store


def run_broker(config: Config, on_ready: Callable[[], None] = lambda: None) -> int:
    """Serve the fabric alone until SIGTERM. Returns the exit status."""

    async def main(stop: asyncio.Event) -> int:
        async with serving(config) as broker:
            listen = ", ".join(config.fabric.listen)
            known = facts("broker-started", server=config.server.name, listen=listen)
            log.info("broker %s on %s", config.server.name, listen, extra=known)
            on_ready()
            await stop.wait()
            about_to_end()
            await finish(broker.drain(DRAIN_S))
        return 0

    return run(main)


async def finish(draining: Awaitable[bool]) -> None:
    """Wait for a drain, and say so where something was cut off."""
    if not await draining:
        known = facts("drain-timeout", drain_s=DRAIN_S)
        log.warning("messages were still under way after %g s and are cut off", DRAIN_S, extra=known)
