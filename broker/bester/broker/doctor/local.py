"""Checks on files, ports and limits of the machine, with a server or without. Pure: facts go in, findings come out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

from bester.broker.doctor.findings import Check, Finding, Found, certificate, disk, found, several, span, text_of
from bester.broker.doctor.live import CLOCK_WARNING_S, clock_off, of_brokers
from bester.broker.store_brokers import BrokerSeen

ASIDE = 128
"""Descriptors that a process needs besides its connections: files, sockets of the fabric, libraries."""
ENOUGH = 0.9
"""Part of the configured connections for which there must be descriptors: for a few less nobody changes a machine."""
SOMAXCONN = 4096
"""The kernel's own default since Linux 5.4; with less, clients that all reconnect at once wait for TCP's timers."""
FUTURE_S = 60.0
"""Time by which a file may be newer than now: file servers have clocks of their own."""
ROOM_FILES = 16
"""Files for which a disk must have room: those of a start (databases and their logs, lock, key, sockets), twice."""

PortState = Literal["free", "listening", "taken", "denied", "no-address"]


class Port(NamedTuple):
    """A listener: its key in the configuration, its address, and its state. `holder` names the process that listens
    there, where the system shows it; the server's own is `listening`, anybody else's `taken`."""

    key: str
    address: str
    state: PortState
    holder: str = ""


class File(NamedTuple):
    """A file with its `fault` in words, which include the remedy; None where it is good. `about` says what is good."""

    key: str
    path: str
    fault: str | None = None
    about: str = ""


class Certificate(NamedTuple):
    """A certificate: its fault in words, or its end in seconds since 1970."""

    key: str
    fault: str | None
    end_s: float = 0.0


class Peer(NamedTuple):
    """Another server, and why there is no link to it; None where it was reached with the listed key."""

    name: str
    address: str
    fault: str | None
    key_wrong: bool = False


class Local(NamedTuple):
    """Facts about the files and the machine of one server.

    `server` is the trouble of a running server that does not answer, None where it answers or none runs. `fault` is
    that of the configuration, which leaves nothing else to look at. `descriptors` is the limit of open files of the
    server, or of this shell where none runs; `backlog` is the kernel's `somaxconn`, None where the system shows none.
    `ahead_s` is by how much the newest of the server's files is in the future, `database_ahead_s` by how much the clock
    of the database is ahead, None where there is none or it does not tell. `rooms` are the bytes free by directory,
    `files` the files for which there is room, where the disk counts them.
    """

    config: str
    fault: str | None = None
    running: bool = False
    server: str | None = None
    now_s: float = 0.0
    data_dir: File | None = None
    ports: tuple[Port, ...] = ()
    sockets: tuple[File, ...] = ()
    certificates: tuple[Certificate, ...] = ()
    keys: tuple[File, ...] = ()
    stores: tuple[File, ...] = ()
    rooms: tuple[tuple[str, float], ...] = ()
    files: tuple[tuple[str, int], ...] = ()
    ahead_s: float = 0.0
    database_ahead_s: float | None = None
    descriptors: int | None = None
    connections: int = 0
    backlog: int | None = None
    peers: tuple[Peer, ...] = ()
    programs: tuple[File, ...] = ()
    brokers: tuple[BrokerSeen, ...] = ()
    listen_backlog: int = 0


def findings_of(facts: Local) -> list[Finding]:
    """Return the findings on the facts, good ones too; on a faulty configuration nothing but its fault."""
    return found(LOCAL[:1] if facts.fault is not None else LOCAL, facts)


def _config(facts: Local) -> Iterator[Found]:
    if facts.fault is not None:
        yield "error", *_with_remedy(facts.fault)
    else:
        yield "ok", f"{facts.config} can be read", ""


def _server(facts: Local) -> Iterator[Found]:
    if facts.server is not None:
        yield "error", *_with_remedy(facts.server)
    elif facts.running:
        yield "ok", "the server runs and answers", ""
    else:
        yield "ok", "no server runs here: its files and this machine were checked", ""


def _data_dir(facts: Local) -> Iterator[Found]:
    if facts.data_dir is not None:
        yield from _files((facts.data_dir,))


def _ports(facts: Local) -> Iterator[Found]:
    yield from _files(facts.sockets)
    for port in facts.ports:
        by = f" by {text_of(port.holder)}" if port.holder else ""
        where = f"{port.key} = {port.address}"
        if port.state == "taken":
            yield "error", f"{where} is held{by or ' by another program'}", f"stop that, or choose another {port.key}"
        elif port.state == "denied":
            yield "error", f"{where} may not be opened by this user", "ports below 1024 are root's; choose a higher one"
        elif port.state == "no-address":
            yield "error", f"{where}: this machine has no such address", f"choose another {port.key}"
        elif port.state == "free" and facts.running:
            yield (
                "error",
                f"{where}: nobody listens there, although the server runs",
                "start `bester bridge`, or start the server again if the address is new in the file",
            )
        else:
            yield "ok", f"{where} is {'held' + by if port.state == 'listening' else 'free'}", ""


def _certificates(facts: Local) -> Iterator[Found]:
    for each in facts.certificates:
        if each.fault is not None:
            yield "error", *_with_remedy(each.fault)
        elif each.end_s:
            yield certificate(each.end_s, facts.now_s, each.key)
        else:
            yield "ok", f"{each.key} can be used", ""


def _keys(facts: Local) -> Iterator[Found]:
    yield from _files(facts.keys)


def _clock(facts: Local) -> Iterator[Found]:
    if facts.ahead_s > FUTURE_S:
        yield (
            "warning",
            f"the clock is behind: a file of the server was written {span(facts.ahead_s)} from now",
            "let NTP (chrony, systemd-timesyncd) set the clock",
        )
    elif facts.data_dir is not None:
        yield "ok", "the clock is not behind the server's files", ""
    off_s = facts.database_ahead_s
    if off_s is not None:
        right: Found = ("ok", "the clock is that of the database", "")
        yield clock_off("the database", off_s) if abs(off_s) > CLOCK_WARNING_S else right


def _store(facts: Local) -> Iterator[Found]:
    yield from _files(facts.stores)


def _brokers(facts: Local) -> Iterator[Found]:
    for each in facts.brokers:
        if each.state == "lives":
            yield "ok", f"broker {text_of(each.name)} lives", ""
    yield from of_brokers(facts.brokers)


def _disk(facts: Local) -> Iterator[Found]:
    for where, room in facts.rooms:
        yield disk(room, f"the disk of {text_of(where)}")
    for where, room in facts.files:
        if room < ROOM_FILES:
            text = f"the disk of {text_of(where)} has room for {several(room, 'more file')} (inodes)"
            yield "error", text, f"remove files there, {ROOM_FILES} or more: without room for files no server starts"


def _descriptors(facts: Local) -> Iterator[Found]:
    if facts.descriptors is None:
        return
    room = max(0, facts.descriptors - ASIDE)
    if room < ENOUGH * facts.connections:
        yield (
            "warning",
            (
                f"{facts.descriptors} descriptors are enough for {several(room, 'connection')}, and "
                f"[native] max_connections is {facts.connections}"
            ),
            "raise the limit (ulimit -Hn, LimitNOFILE= of systemd), or lower max_connections",
        )
    else:
        yield "ok", f"{facts.descriptors} descriptors, for {several(facts.connections, 'connection')}", ""


def _backlog(facts: Local) -> Iterator[Found]:
    if facts.backlog is None:
        return
    if facts.backlog < SOMAXCONN:
        yield (
            "warning",
            f"the kernel lets {facts.backlog} new connections wait, and the listeners ask for {facts.listen_backlog}",
            f"sysctl -w net.core.somaxconn={facts.listen_backlog}, and the same in /etc/sysctl.d; then start again",
        )
    else:
        yield "ok", f"the kernel lets {facts.backlog} new connections wait", ""


def _away(facts: Local) -> Iterator[Found]:
    for each in facts.peers:
        if each.key_wrong:
            continue
        name = text_of(each.name)
        if each.fault is None:
            yield "ok", f"server {name} at {text_of(each.address)} is reached", ""
        else:
            yield (
                "warning",
                f"server {name} is away: {text_of(each.fault)}",
                "see that it runs and is reachable from here, and that the address under [servers] is right",
            )


def _server_key(facts: Local) -> Iterator[Found]:
    for each in facts.peers:
        if each.key_wrong:
            name = text_of(each.name)
            yield (
                "error",
                f"no link to server {name}, for a key is wrong: {text_of(each.fault or '')}",
                f"`bester keys` prints a server's key: {name}'s belongs here into [servers] key, and ours there",
            )


def _programs(facts: Local) -> Iterator[Found]:
    yield from _files(facts.programs)


def _files(files: tuple[File, ...]) -> Iterator[Found]:
    for each in files:
        if each.fault is not None:
            yield "error", *_with_remedy(each.fault)
        else:
            yield "ok", each.about or f"{each.key} {each.path}", ""


def _with_remedy(fault: str) -> tuple[str, str]:
    """Split an error of Bester's, which ends with its remedy after a semicolon or a colon."""
    text, _, remedy = fault.partition("; ")
    return text, remedy or "mend what this line names"


LOCAL: tuple[Check[Local], ...] = (
    Check("config", "the file cannot be read, or a key is wrong", "the line names the key", "", _config),
    Check("server", "a server runs and does not answer", "see its log, or start it again", "BesterAway", _server),
    Check(
        "data",
        "other users may open the data directory, it is not ours, or it cannot be written to",
        "chmod 700, chown, or mount its disk for writing",
        "",
        _data_dir,
    ),
    Check(
        "port",
        "another program holds a port (named where the system shows it) or a socket, it is not ours, or nobody listens",
        "stop that program, or choose another port",
        "",
        _ports,
    ),
    Check("certificate", "", "", "BesterCertificateEnds", _certificates),
    Check(
        "key",
        "a secret key, or the operator's token, is missing, damaged or open to others; FILE.pub is of another key",
        "chmod 600; `bester keys` makes and prints keys",
        "",
        _keys,
    ),
    Check("clock", "", "", "BesterClockOff", _clock),
    Check("store", "", "", "BesterStoreFails", _store),
    Check("broker", "", "", "BesterBrokerDead", _brokers),
    Check("disk", "", "", "BesterDiskNearlyFull", _disk),
    Check(
        "descriptors",
        "the limit of open files is too low for `[native] max_connections`",
        "`ulimit -Hn`, `LimitNOFILE=`",
        "",
        _descriptors,
    ),
    Check("backlog", f"`net.core.somaxconn` is below {SOMAXCONN}", "sysctl", "", _backlog),
    Check("server away", "", "", "BesterServerAway", _away),
    Check("server key", "", "", "BesterServerKey", _server_key),
    Check(
        "handler program",
        "the program or the module of a declared handler is missing",
        "install it, or mend `command` or `app`",
        "",
        _programs,
    ),
)
"""The checks on local facts. Where a check on a status has the same name, the words stand there."""
