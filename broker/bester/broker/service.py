"""`bester broker`: from a configuration to a running broker."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from bester.broker.accounts import Logins, open_logins
from bester.broker.config import Config
from bester.broker.core.values import Route, Settings
from bester.broker.data_dir import LOCK, Claim, Lock, about_to_end, until_ended
from bester.broker.kept import Budget
from bester.broker.logs import facts
from bester.broker.loop import run
from bester.broker.server import Broker
from bester.broker.store import Store, open_store
from bester.broker.store.place import examine
from bester.broker.wire.address import is_loopback

DRAIN_S = 10.0
"""How long messages may take to finish after SIGTERM."""

log = logging.getLogger("bester.broker")


async def settings_of(config: Config) -> Settings:
    """Return what the core is told, with the addresses of native servers looked up."""
    routes = {
        name: Route(name, peer.fabric, None if peer.native is None else str(peer.native), peer.accept_types)
        for name, peer in config.servers.items()
    }
    return Settings(
        name=config.server.name,
        open_accounts=config.auth == "open",
        accept=config.accept,
        routes=routes,
        hosts=await _hosts(config),
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


async def _hosts(config: Config) -> dict[str, tuple[str, ...]]:
    """Return the names of the native servers at each IP address. On loopback, v4 and v6 are one host."""
    loop = asyncio.get_running_loop()
    found: dict[str, list[str]] = {}
    for name, peer in config.servers.items():
        if peer.native is None:
            continue
        try:
            rows = await loop.getaddrinfo(peer.native.host, None, type=socket.SOCK_STREAM)
        except OSError as error:
            log.warning("[servers.%s] native: %s: %s; it is not let in until a restart", name, peer.native, error)
            continue
        addresses = {str(row[4][0]) for row in rows}
        if any(is_loopback(address) for address in addresses):
            addresses |= {"127.0.0.1", "::1"}
        for address in addresses:
            found.setdefault(address, []).append(name)
    return {address: tuple(names) for address, names in found.items()}


@contextlib.asynccontextmanager
async def serving(config: Config) -> AsyncIterator[Broker]:
    """A broker that serves from the configured directory, with its accounts; everything is given back at the end."""
    with contextlib.ExitStack() as stack:
        await until_ended(config.server.data_dir)
        claim = Claim(config.server.data_dir)
        stack.callback(claim.close)
        logins: Logins = open_logins(config)
        stack.callback(logins.close)
        store = _store_of(config, stack)
        async with Broker(await settings_of(config), config.fabric.listen, logins, store) as broker:
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
