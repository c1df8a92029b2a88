"""Broker of `bester broker`: from a configuration to a running server."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from bester.broker.accounts import Logins, open_logins
from bester.broker.config import Config, PeerConfig
from bester.broker.core.settings import Budget, Route, Settings
from bester.broker.data_dir import LOCK, Claim, Lock, about_to_end, until_ended
from bester.broker.hosts import Hosts
from bester.broker.logs import facts
from bester.broker.loop import run
from bester.broker.names import Followed, Names
from bester.broker.server import Broker
from bester.broker.store import Store, open_store
from bester.broker.store.file import examine

DRAIN_S = 10.0
"""Time that messages have to finish after SIGTERM."""

NOWHERE = Hosts()

log = logging.getLogger("bester.broker")


def settings_of(config: Config, hosts: Hosts = NOWHERE) -> Settings:
    """Return the settings of the core; `hosts` are the known addresses of the native servers."""
    routes = {
        name: Route(
            name,
            peer.fabric,
            None if peer.native is None else str(peer.native),
            _entering(config, peer),
            peer.reports,
            peer.ordered,
            peer.send_types,
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
        type_users=config.type_users,
        type_commands=_commands(config),
        reachable=config.reachable,
    )


def _entering(config: Config, peer: PeerConfig) -> frozenset[str] | None:
    """Return the types that a server may send here: where federation is open, a listed server without `accept_types`
    may send what an unlisted one may."""
    return None if config.accept == "open" and not peer.accept_types else peer.accept_types


def _commands(config: Config) -> dict[str, frozenset[str]]:
    """Return the commands that the handlers of each type may use, where a handler of the type has `commands`."""
    return {
        type_: handler.commands
        for handler in config.handlers
        if handler.commands is not None
        for type_ in handler.types
    }


def _budgets(config: Config) -> dict[str, Budget]:
    """Return the time and attempts that each type's handlers have."""
    return {
        type_: Budget(handler.timeout_s, handler.attempts) for handler in config.handlers for type_ in handler.types
    }


@contextlib.asynccontextmanager
async def serving(config: Config, names: Names | None = None) -> AsyncIterator[Broker]:
    """Serve from the configured directory, with its accounts, and release everything at the end.

    The broker listens before any name is looked up. `names` are those of a bridge in the same process, if any.
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
    """Return the configured store. A file outside the locked data directory gets a lock of its own, and the lock of its
    directory if another server may have that. No lock file is left where no store can be."""
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
    """Serve the fabric alone until SIGTERM. Return the exit status."""

    async def main(stop: asyncio.Event) -> int:
        """Serve until `stop` is set, and finish what is in flight."""
        async with serving(config) as broker:
            listen = ", ".join(config.fabric.listen)
            extra = facts("broker-started", server=config.server.name, listen=listen)
            log.info("broker %s on %s", config.server.name, listen, extra=extra)
            on_ready()
            await stop.wait()
            about_to_end()
            await finish(broker.drain(DRAIN_S))
        return 0

    return run(main)


async def finish(draining: Awaitable[bool]) -> None:
    """Wait for a drain, and log a warning if messages were cut off."""
    if not await draining:
        extra = facts("drain-timeout", drain_s=DRAIN_S)
        log.warning("messages were still under way after %g s and are cut off", DRAIN_S, extra=extra)
