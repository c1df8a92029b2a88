"""Broker of `bester broker`: from a configuration to a running server."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from bester.broker import otel
from bester.broker.config import Config, HandlerConfig, PeerConfig
from bester.broker.core.settings import Budget, Grant, Route, Settings
from bester.broker.data_dir import LOCK, Claim, Lock, about_to_end, until_ended
from bester.broker.hosts import Hosts
from bester.broker.keys import KeyPair, server_pair
from bester.broker.logins import open_logins
from bester.broker.logs import facts
from bester.broker.loop import run
from bester.broker.names import Followed, Names
from bester.broker.reload import Apply, Prepare, Reloader
from bester.broker.server import Broker
from bester.broker.store import Store, open_store
from bester.broker.store.file import examine
from bester.broker.systemd import service_manager
from bester.broker.turn import Turn
from bester.broker.users import Logins
from bester.broker.wire.address import parse_endpoint
from bester.broker.wire.codes import BesterError, ConfigError

DRAIN_S = 10.0
"""Time that messages have to finish after SIGTERM."""

FENCE_LOOK_S = 0.5
"""Time between two looks at whether another process has taken the store: until the end nothing is written anyway."""
LEASE_LOOK_S = 0.25
"""Time between two looks at a lease that another process holds."""

NOWHERE = Hosts()

log = logging.getLogger("bester.broker")


def grants_of(config: Config) -> dict[str, Grant]:
    """Return what each known public key is good for."""
    grants = {
        party.key: Grant(party.role, party.name, party.types, party.commands)
        for party in config.fabric.parties.values()
    }
    return grants | {peer.key: Grant("server", peer.name) for peer in config.servers.values() if peer.key is not None}


def routes_of(config: Config) -> dict[str, Route]:
    """Return the configured servers by name."""
    return {
        name: Route(
            name,
            peer.fabric,
            None if peer.native is None else str(peer.native),
            _entering(config, peer),
            peer.reports,
            peer.ordered,
            peer.key,
            peer.tls,
            name in config.certified_servers,
            peer.send_types,
            peer.trace,
        )
        for name, peer in config.servers.items()
    }


def settings_of(config: Config, hosts: Hosts = NOWHERE, *, spans: bool = False) -> Settings:
    """Return the settings of the core; `hosts` are the known addresses of the native servers, `spans` is True where
    spans are exported."""
    return Settings(
        name=config.server.name,
        broker="" if config.store.database is None else config.server.broker,
        open_accounts=config.auth == "open",
        accept=config.accept,
        routes=routes_of(config),
        grants=grants_of(config),
        hosts=hosts.servers,
        unknown_hosts=hosts.unknown,
        declared_types=frozenset(type_ for handler in _serving(config) for type_ in handler.types),
        shadows=frozenset(handler.name for handler in config.handlers if handler.shadow),
        auth_handlers=frozenset(name for handler in config.handlers if handler.auth for name in handler.process_names),
        admin_info=config.admin_info,
        bounds=config.store.bounds,
        budgets=_budgets(config),
        type_users=config.type_users,
        type_commands=_commands(config),
        reachable=config.reachable,
        spans=spans,
    )


def _entering(config: Config, peer: PeerConfig) -> frozenset[str] | None:
    """Return the types that a server may send here: where federation is open, a listed server without `accept_types`
    may send what an unlisted one may."""
    return None if config.accept == "open" and not peer.accept_types else peer.accept_types


def _serving(config: Config) -> list[HandlerConfig]:
    """Return the declared handlers whose commands are carried out."""
    return [handler for handler in config.handlers if not (handler.shadow or handler.auth)]


def _commands(config: Config) -> dict[str, frozenset[str]]:
    """Return the commands that the handlers of each type may use, where a handler of the type has `commands`."""
    return {
        type_: handler.commands
        for handler in _serving(config)
        if handler.commands is not None
        for type_ in handler.types
    }


def _budgets(config: Config) -> dict[str, Budget]:
    """Return the time and attempts that each type's handlers have."""
    return {
        type_: Budget(handler.timeout_s, handler.attempts) for handler in _serving(config) for type_ in handler.types
    }


@contextlib.asynccontextmanager
async def serving(config: Config, names: Names | None = None, turn: Turn | None = None) -> AsyncIterator[Broker]:
    """Serve from the configured directory, with its accounts, and release everything at the end.

    The broker listens before any name is looked up. `names` and `turn` are those of a bridge in the same process, if
    any.
    """
    with contextlib.ExitStack() as stack:
        await until_ended(config.server.data_dir)
        claim = Claim(config.server.data_dir)
        stack.callback(claim.close)
        logins: Logins = open_logins(config)
        stack.callback(logins.close)
        store = _store_of(config, stack)
        await until_free(store)
        if names is None:
            names = Names()
            stack.callback(names.close)
        followed = Followed(config.native_hosts, names)
        pair = _pair_of(config)
        exporter = otel.configured(config.server.name)
        if exporter is not None:
            stack.callback(exporter.close)
        async with Broker(
            settings_of(config, followed.table(), spans=exporter is not None),
            config.fabric.listen,
            logins,
            store,
            pair=pair,
            curve=config.fabric.curve,
            store_file=config.store.path,
            turn=turn,
        ) as broker:
            if exporter is not None:
                broker.hooks.export = exporter.export
            broker.hooks.look_up = followed.look_again
            broker.hooks.follow = followed.replace
            followed.start(broker.hosts_changed)
            watch = asyncio.get_running_loop().create_task(_until_fenced(store)) if store.is_remote else None
            try:
                if config.operator.http is None:
                    yield broker
                else:
                    from bester.broker.operator import http  # most servers run without: the library loads slowly

                    async with http.serving(broker, config.operator) as address:
                        broker.operator_address = address
                        yield broker
            finally:
                if watch is not None:
                    watch.cancel()
        if store.fenced:
            raise BesterError("not-allowed", store.fenced)


async def _until_fenced(store: Store) -> None:
    """Ask this process to end once its store may not be written any more: another process has the messages."""
    while not store.fenced:  # noqa: ASYNC110 (a thread finds that out)
        await asyncio.sleep(FENCE_LOOK_S)
    os.kill(os.getpid(), signal.SIGTERM)


def _pair_of(config: Config) -> KeyPair | None:
    """Return this server's keys; None where new ones cannot be written, and no listener needs them: what needs no key
    is served.

    Raises ConfigError for a key file that cannot be read, or has to be written and cannot.
    """
    try:
        return server_pair(config.key_file)
    except ConfigError as error:
        endpoints = map(parse_endpoint, config.fabric.listen)
        encrypted = any(each.tcp is not None and (config.fabric.curve or not each.local) for each in endpoints)
        if encrypted or os.path.lexists(config.key_file):
            raise
        log.warning(
            "%s; until a start with a key nothing is encrypted", error.text, extra=facts("no-key", why=error.text)
        )
        return None


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
    store = open_store(
        path,
        config.store.synchronous,
        config.store.bounds,
        database=config.store.database,
        broker=config.server.broker,
        server=config.server.name,
    )
    stack.callback(store.close)
    return store


async def until_free(store: Store) -> None:
    """Wait until a lease that is not renewed any more has run out, and until a broker that adopts what is there has
    done so. Raises BesterError where the lease is renewed: its holder lives."""
    if not store.is_remote:
        return
    first: dict[object, tuple[object, ...]] = {}  # states by broker: others of the server may have to run out as well
    state: tuple[object, ...] = ()
    told = ""
    while (held := await asyncio.to_thread(store.claim)) is not None:
        if held.state and first.setdefault(held.state[0], held.state) != held.state:
            raise BesterError("not-allowed", held.why)
        if not told or bool(held.state) != bool(state):
            told = f"waiting up to {held.left_s:.0f} s for the lease of a broker that may have ended"
            told = told if held.state else held.why
            log.info("%s", told, extra=facts("store-lease", left_s=round(held.left_s, 1)))
        state = held.state
        await asyncio.sleep(min(max(held.left_s, 0.0), LEASE_LOOK_S))


def live_part(broker: Broker) -> tuple[tuple[str, ...], Prepare]:
    """Return the keys that a running broker takes in live, and the part of a Reloader that does so."""

    def prepare(config: Config, opened: contextlib.ExitStack) -> Apply:
        """Return a function that takes in the routes, grants and names of a configuration. Raises ConfigError, and
        OSError where the system has no descriptors for new links."""
        links = broker.prepare(routes_of(config), grants_of(config), opened)

        def apply() -> None:
            links()
            broker.hooks.follow(config.native_hosts)
            broker.hooks.reread_operator()

        return apply

    return ("servers", "fabric.parties"), prepare


def run_broker(
    config: Config, on_ready: Callable[[], None] = lambda: None, read: Callable[[], Config] | None = None
) -> int:
    """Serve the fabric alone until SIGTERM. Return the exit status. `read` reads the configuration again at SIGHUP."""

    async def main(stop: asyncio.Event) -> int:
        """Serve until `stop` is set, and finish what is in flight."""
        async with serving(config) as broker:
            listen = ", ".join(config.fabric.listen)
            service_manager().check_all_taken()
            extra = facts("broker-started", server=config.server.name, listen=listen)
            log.info("broker %s on %s", config.server.name, listen, extra=extra)
            reloader = Reloader(config, read)
            reloader.add(*live_part(broker))
            reloader.start()
            on_ready()
            await stop.wait()
            reloader.close()
            about_to_end()
            await finish(broker.drain(DRAIN_S))
        return 0

    return run(main)


async def finish(draining: Awaitable[bool]) -> None:
    """Wait for a drain, and log a warning if messages were cut off."""
    if not await draining:
        extra = facts("drain-timeout", drain_s=DRAIN_S)
        log.warning("messages were still under way after %g s and are cut off", DRAIN_S, extra=extra)
