"""Facts about the files and the machine of a server, for the doctor. Nothing is changed, and no server is started."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import sqlite3
import stat
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from bester.bridge.children.plan import module_fault
from bester.bridge.listeners import BACKLOG
from bester.broker import database, unix_socket
from bester.broker.accounts import FILE as ACCOUNTS
from bester.broker.config import Config
from bester.broker.config_listeners import listeners_of
from bester.broker.data_dir import LOCK, OURS, is_shared
from bester.broker.doctor.local import Certificate, File, Local
from bester.broker.keys import KeyPair, read_pair
from bester.broker.postgres_schema import fault as database_fault
from bester.broker.store.file import examine
from bester.broker.store.postgres_brokers import clock_ahead_s, namespaces, server_fault
from bester.broker.store_brokers import BrokerSeen
from bester.broker.tls_files import Pair, client_context, server_context
from bester.broker.wire.codes import BesterError, ConfigError
from bester.cli.doctor.peers import reached
from bester.cli.doctor.ports import ports_of

SOMAXCONN = Path("/proc/sys/net/core/somaxconn")
LOCKS = Path("/proc/locks")
UNLIMITED = 1 << 30


def gather(config: Config, status: Mapping[str, Any] | None, trouble: str | None) -> Local:
    """Return the facts. `status` is that of the running server, `trouble` why a running one does not answer."""
    now_s = time.time()
    running = status is not None or trouble is not None
    owner = owner_of(config.server.data_dir) if running else None
    data_dir = _data_dir(config.server.data_dir)
    pair, keys = _keys(config)
    directories = dict.fromkeys(path.parent for path in (config.store.path, config.server.data_dir / ACCOUNTS) if path)
    return Local(
        config=str(config.path or "the default configuration"),
        running=status is not None,
        server=trouble,
        now_s=now_s,
        data_dir=data_dir,
        ports=ports_of(config, running=running, linked=status is None or bool(status["peers"].get("bridge"))),
        sockets=() if running else tuple(_sockets(config)),
        certificates=tuple(_certificates(config, now_s)),
        keys=_seen(keys, data_dir),
        stores=_seen(_stores(config), data_dir),
        brokers=_brokers_of(config),
        rooms=tuple(_rooms(directories)),
        files=tuple(_rooms_for_files(directories)),
        ahead_s=_newest(config.server.data_dir) - now_s,
        database_ahead_s=None if config.store.database is None else clock_ahead_s(config.store.database),
        descriptors=_descriptors(owner),
        connections=config.native.max_connections,
        backlog=_number(SOMAXCONN),
        peers=() if running else reached(config, pair),
        programs=tuple(_programs(config)),
        listen_backlog=BACKLOG,
    )


def _seen(files: Iterable[File], data_dir: File) -> tuple[File, ...]:
    """Return the files without those that no start will make, as the data directory cannot be used."""
    return tuple(each for each in files if each.fault or not data_dir.fault or os.path.lexists(each.path))


def _brokers_of(config: Config) -> tuple[BrokerSeen, ...]:
    """Return the brokers of a server with a shared store, none of one that has a single one, this one."""
    found = [] if config.store.database is None else namespaces(config.store.database)
    return () if all(each.name == config.server.broker for each in found) else tuple(found)


def _sockets(config: Config) -> Iterator[File]:
    """Yield the Unix sockets of a server that does not run, but for those in the data directory, a check of its own."""
    for each in listeners_of(config):
        if isinstance(each.at, Path) and each.at.parent != config.server.data_dir:
            path = str(each.at)
            fault = unix_socket.fault(path)
            yield File(str(each), path, None if fault is None else f"{path}: {fault}", f"{each}: {path} is free")


def owner_of(data_dir: Path) -> int | None:
    """Return the process that serves from a data directory, None where none does or the system does not show it.

    The lock is looked up, and not tried: a server that starts at this moment would find it taken.
    """
    try:
        inode = str((data_dir / LOCK).stat().st_ino)
        for line in LOCKS.read_text().splitlines():
            cells = line.split()
            if len(cells) > 5 and cells[1] == "FLOCK" and cells[5].rpartition(":")[2] == inode:
                return int(cells[4])
    except (OSError, ValueError):
        pass
    return None


def _data_dir(path: Path) -> File:
    key = "[server] data_dir"
    try:
        found = path.stat()
    except FileNotFoundError:
        if path.is_symlink():
            return File(key, str(path), f"{path}: leads to no directory; name another one as {key}")
        parent = next(each for each in path.parents if os.path.exists(each))
        if os.access(parent, os.W_OK | os.X_OK):
            return File(key, str(path), about=f"{path} is made at the first start")
        return File(key, str(path), f"{path}: cannot be made by this user; name another one as {key}")
    except OSError as error:
        return File(key, str(path), f"{path}: {error.strerror}; name a directory of your own as {key}")
    mode = stat.S_IMODE(found.st_mode)
    if not stat.S_ISDIR(found.st_mode):
        return File(key, str(path), f"{path}: is no directory; name another one as {key}")
    if mode & 0o077 and is_shared(path):
        return File(key, str(path), f"{path}: is shared with other users; name a directory of Bester's own as {key}")
    if found.st_uid != os.geteuid():
        return File(key, str(path), f"{path}: is another user's; run this as the user that the server runs as")
    if mode & 0o077:
        return File(key, str(path), f"{path}: other users may open it (mode {mode:04o}); chmod 700 {path}")
    if not os.access(path, os.W_OK | os.X_OK):
        return File(key, str(path), _unwritable(path))
    return File(key, str(path), about=f"{path} is this user's alone")


def _unwritable(path: Path) -> str:
    """Return the fault of a directory that this user cannot write to."""
    if os.statvfs(path).f_flag & os.ST_RDONLY:
        return f"{path}: its disk is mounted read-only; mount it for writing"
    return f"{path}: cannot be written to by this user; chmod 700 {path}"


def _certificates(config: Config, now_s: float) -> Iterator[Certificate]:
    tls = config.native.tls
    if tls is not None:
        try:
            _, validity = server_context(Pair(tls.cert, tls.key), tls.client_ca, now_s)
            yield Certificate(f"[native.tls] cert = {str(tls.cert)!r}", None, validity.end)
        except ConfigError as error:
            yield Certificate("[native.tls] cert", error.text)
    page = config.operator
    if page.cert is not None and page.key is not None:
        try:
            _, validity = server_context(Pair(page.cert, page.key), page.client_ca, now_s, "[operator]")
            yield Certificate(f"[operator] cert = {str(page.cert)!r}", None, validity.end)
        except ConfigError as error:
            yield Certificate("[operator] cert", error.text)
    for name, peer in config.servers.items():
        if peer.tls and peer.ca is not None:
            key = f"[servers.{name}] ca"
            try:
                client_context(key, peer.ca)
                yield Certificate(f"{key} = {str(peer.ca)!r}", None)
            except ConfigError as error:
                yield Certificate(key, error.text)


def _keys(config: Config) -> tuple[KeyPair | None, list[File]]:
    """Return the server's own pair, None where there is none to read, and the findings on the keys."""
    path, found, pair = config.key_file, [], None
    if not os.path.lexists(path) and config.fabric.key is None:
        found.append(File("[fabric] key", str(path), about=f"{path} is made at the first start"))
    else:
        try:
            pair = read_pair(path)
            found.append(File("[fabric] key", str(path), _unlike(path, pair), f"{path} has the key {pair.public}"))
        except ConfigError as error:
            found.append(File("[fabric] key", str(path), error.text))
    for name, peer in config.servers.items():
        if pair is not None and peer.key == pair.public:
            fault = (
                f"[servers.{name}] key: is this server's own key; list that of {name}: `bester keys` prints it there"
            )
            found.append(File(f"[servers.{name}] key", "", fault))
    if config.operator.token is not None:
        from bester.broker.operator.access import read_token

        token = str(config.operator.token)
        try:
            read_token(config.operator.token)
            found.append(File("[operator] token", token, about=f"{token} holds the operator's token"))
        except ConfigError as error:
            found.append(File("[operator] token", token, error.text))
    return pair, found


def _unlike(path: Path, pair: KeyPair) -> str | None:
    """Return the fault of a public key beside a secret one that is not of the same pair, None where there is none."""
    public = path.with_name(f"{path.name}.pub")
    with contextlib.suppress(OSError, UnicodeDecodeError):
        listed = public.read_text(encoding="ascii")[:100].strip()
        if listed != pair.public:
            return f"{public}: is not the public key of {path}, which is {pair.public}; write that key there"
    return None


def _stores(config: Config) -> Iterator[File]:
    path, found = config.store.path, config.store.database
    if found is not None:  # the accounts are there, too
        fault = database_fault(found) or server_fault(found, config.server.name)
        yield File("[store] url", found.where, fault, f"{found.where} answers")
        return
    if path is not None:
        made = path.parent != config.server.data_dir or os.path.exists(path.parent)
        fault = _damage(path, store=True) if made else None
        apart = made and path.parent != config.server.data_dir and os.path.isdir(path.parent)
        if fault is None and apart and not os.access(path.parent, os.W_OK | os.X_OK):
            fault = _unwritable(path.parent)
        yield File("[store] url", str(path), fault, _is_whole(path))
    accounts = config.server.data_dir / ACCOUNTS
    if config.auth == "accounts":
        yield File("accounts", str(accounts), _damage(accounts, store=False), _is_whole(accounts))


def _is_whole(path: Path) -> str:
    return f"{path} is whole" if os.path.exists(path) else f"{path} is made at the first start"


def _damage(path: Path, *, store: bool) -> str | None:
    """Return the fault of a database in words, None where it is whole, or is made at the first start."""
    try:
        there = examine(path) if store else database.look(path, "name another [server] data_dir")
        if not there:
            return None
        real = Path(os.path.realpath(path))
        how = "mode=ro" if os.path.exists(real.with_name(f"{real.name}-wal")) else "mode=ro&immutable=1"
        with closing(sqlite3.connect(f"{real.as_uri()}?{how}", uri=True)) as db:
            fault = database.damage(db, real)
    except BesterError as error:
        return error.text
    except sqlite3.Error as error:
        return None if database.is_busy(error) else f"{path}: {error}; {database.remedy(error)}"
    return None if fault is None else f"{path}: {fault}; {database.RESTORE}"


def _rooms(directories: Mapping[Path, None]) -> Iterator[tuple[str, float]]:
    for path in directories:
        with contextlib.suppress(OSError):
            disk = _disk_of(path)
            yield str(path), float(disk.f_bavail * disk.f_frsize)


def _rooms_for_files(directories: Mapping[Path, None]) -> Iterator[tuple[str, int]]:
    for path in directories:
        with contextlib.suppress(OSError):
            disk = _disk_of(path)
            if disk.f_files:  # 0: this disk has no such bound
                yield str(path), disk.f_favail


def _disk_of(path: Path) -> os.statvfs_result:
    return os.statvfs(next(each for each in (path, *path.parents) if os.path.exists(each)))


def _newest(data_dir: Path) -> float:
    """Return the time of the newest of the server's files, 0 where there is none."""
    newest = 0.0
    for name in OURS:
        with contextlib.suppress(OSError):
            newest = max(newest, (data_dir / name).stat().st_mtime)
    return newest


def _descriptors(owner: int | None) -> int:
    """Return the hard limit of descriptors of a server's process, or of this one: a server raises its own to it."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if owner:
        with contextlib.suppress(OSError, ValueError):
            hard = resource.prlimit(owner, resource.RLIMIT_NOFILE)[1]
    return UNLIMITED if hard == resource.RLIM_INFINITY else hard


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _programs(config: Config) -> Iterator[File]:
    for handler in config.handlers:
        if handler.app is not None:
            fault = module_fault(handler.app, config.directory)
            key = f"[handlers.{handler.name}] app"
            yield File(key, handler.app, fault and f"{key}: {fault}", f"{key} = {handler.app!r}: its module is there")
        argv = handler.command or handler.program
        if argv is None:
            continue
        key, name = f"[handlers.{handler.name}]", argv[0]
        path = str(config.directory / name) if "/" in name else name
        missing = shutil.which(path) is None
        fault = f"{key}: no program {name}; install it, or mend its path" if missing else None
        yield File(key, name, fault, f"{key} starts {name}")
