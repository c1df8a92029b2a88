"""The lease of a broker's namespace in PostgreSQL: who may write there.

A lease has an epoch, which counts up with every process that takes the lease. Every transaction of a broker checks its
own epoch and renews the lease; a broker whose lease was taken, however alive it feels, can write and read nothing.
"""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bester.broker.postgres_schema import new_epoch
from bester.broker.processes import exists
from bester.broker.store.postgres_keys import written
from bester.broker.store.rows import read_text
from bester.broker.store_requests import Held

if TYPE_CHECKING:
    from bester.broker.postgres import Connection

LEASE_S = 10.0
"""Time for which a lease lives after its last renewal: longer than any pause of a healthy process."""
RENEW_S = 3.0
"""Age at which an idle broker renews its lease: three tries fit into its life."""
ADOPTION_MS = 30_000
"""Patience of a start with a broker that adopts what is there just now: a part of that takes seconds, and PostgreSQL
ends one that has stopped in the middle."""


class Lease(NamedTuple):
    """A lease that this process holds on namespace `ns`. `commits` counts the transactions of the namespace."""

    ns: int
    epoch: int
    commits: int


# Parts of an adoption follow each other at once. An adopter that has moved none for the time of a lease has ended.
MOVED = f"""
FROM adoption a WHERE a.broker = b.name AND b.until < a.at
AND a.at BETWEEN clock_timestamp() - {LEASE_S} * INTERVAL '1 second' AND clock_timestamp()
"""
_ADOPTER = f"""
SELECT (SELECT a.adopter {MOVED} ORDER BY a.serial DESC LIMIT 1) FROM broker b
WHERE b.name = %s AND EXISTS (SELECT 1 FROM entry e WHERE e.ns = b.ns AND e.outcome IS NULL)
"""  # noqa: S608 (own words)
_OF_OTHER_SERVERS = """
SELECT b.name, b.holder, n.name, extract(epoch FROM b.until - clock_timestamp())::float8, b.lease, b.until
FROM broker b CROSS JOIN LATERAL
    (SELECT s.name FROM server_name s WHERE s.ns = b.ns ORDER BY s.serial DESC LIMIT 1) AS n
WHERE b.until > clock_timestamp() AND n.name <> %s ORDER BY b.until DESC
"""


def take(connection: Connection, name: str, server: str | None = None) -> Lease | Held:
    """Take the lease of a broker's namespace, which is made where it is missing.

    A lease that lives is left alone, unless its holder was a process of this machine that is no more. So is a schema in
    which a broker of another server than `server` lives: the two would adopt each other's mailboxes. And so is a
    namespace of which another broker has moved a part away: what two brokers have of one mailbox is in no order. Raises
    psycopg.Error."""
    if adopted := _adopted(connection, name):  # without a lock, by which the adopter would be held up
        return adopted
    with connection.transaction():
        connection.execute("SELECT set_config('lock_timeout', %s, true)", (str(ADOPTION_MS),))
        connection.execute(
            "INSERT INTO broker (name, epoch) VALUES (%s, %s) ON CONFLICT (name) DO NOTHING", (name, new_epoch())
        )
        row = connection.execute(
            "SELECT ns, lease, commits, holder, until, extract(epoch FROM until - clock_timestamp())::float8 "
            "FROM broker WHERE name = %s FOR UPDATE",
            (name,),
        ).fetchone()
        assert row is not None
        others = None if server is None else other_server(connection, server)
        if others is not None:
            return others
        ns, epoch, commits, holder, until, left_s = row
        if left_s > 0 and not is_gone(holder):
            why = f"broker {name!r} is held by {_shown(holder)}; stop that, or give this one another [server] broker"
            return Held(why, left_s, (name, epoch, until))
        if adopted := _adopted(connection, name):
            return adopted
        connection.execute(
            "UPDATE broker SET lease = %s, holder = %s, until = clock_timestamp() + %s * INTERVAL '1 second' "
            "WHERE ns = %s",
            (epoch + 1, this_process(), LEASE_S, ns),
        )
    return Lease(ns, epoch + 1, commits)


def _adopted(connection: Connection, name: str) -> Held | None:
    """Return what a start waits for where another broker is adopting the namespace, or None. Raises psycopg.Error."""
    (adopter,) = connection.execute(_ADOPTER.encode(), (name,)).fetchone() or (None,)
    if adopter is None:
        return None
    return Held(f"waiting until broker {adopter!r} has adopted what broker {name!r} has left", LEASE_S, ())


def other_server(connection: Connection, server: str) -> Held | None:
    """Return the lease of a living broker of another server in the schema, None where there is none. Raises
    psycopg.Error."""
    for name, holder, other, left_s, epoch, until in connection.execute(_OF_OTHER_SERVERS, (written(server),)):
        if not is_gone(holder):
            why = f"the schema is that of server {read_text(other)!r}, whose broker {name!r} is {_shown(holder)}"
            remedy = "name another [store] schema, or stop that broker first if the server has a new name"
            return Held(f"{why}; {remedy}", left_s, (name, epoch, until))
    return None


def _shown(holder: str) -> str:
    """Return the process of a lease, for people."""
    who = _read(holder)
    return f"process {who.get('pid')} on {who.get('host')}" if who else "another process"


def this_process() -> str:
    """Return a text that names this process among those of all machines."""
    pid = os.getpid()
    return json.dumps({"host": platform.node(), "pid": pid, "start": _start_of(pid), **_machine()})


def is_gone(holder: str) -> bool:
    """Return whether a process that this text names surely is no more: it was of this machine, and its number is free
    or another process's."""
    who = _read(holder)
    machine = _machine()
    if not all(machine.values()) or any(who.get(key) != value for key, value in machine.items()):
        return False
    pid = who.get("pid")
    if type(pid) is not int or not who.get("start"):
        return False
    return not exists(pid) or _start_of(pid) != who["start"]


def _read(holder: str) -> dict[str, object]:
    try:
        who = json.loads(holder)
    except ValueError:
        return {}
    return who if type(who) is dict else {}


def _machine() -> dict[str, str]:
    """Return what names this run of this machine, and the processes that a process can see."""
    return {"boot": _text("/proc/sys/kernel/random/boot_id"), "space": _link("/proc/self/ns/pid")}


def _start_of(pid: int) -> str:
    """Return when a process was started, in ticks of its machine; empty for one that has ended and only waits for its
    parent, and where the system does not tell."""
    fields = _text(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return fields[19] if len(fields) > 19 and fields[0] not in "ZX" else ""


def _text(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace").strip()
    except OSError:
        return ""


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""
