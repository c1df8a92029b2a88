"""Findings on files, ports and machine: facts go in, each fault is named with its remedy."""

from __future__ import annotations

from typing import Any

import pytest

from bester.broker.doctor.findings import Finding, certificate, merged
from bester.broker.doctor.local import Certificate, File, Local, Peer, Port, findings_of
from bester.broker.doctor.table import markdown
from bester.broker.store_brokers import GONE_S, BrokerSeen
from tests.checks_page import PAGE, written

DAY = 86400.0
NOW = 1_790_000_000.0
GOOD = Local(
    "bester.toml",
    now_s=NOW,
    data_dir=File("[server] data_dir", "/data"),
    ports=(Port("[native] tcp4", "127.0.0.1:2223", "free"),),
    certificates=(Certificate("[native.tls] cert", None, NOW + 90 * DAY), Certificate("[servers.s2] ca", None)),
    keys=(File("[fabric] key", "/data/server.key"),),
    stores=(File("[store] url", "/data/store.db"),),
    rooms=(("/data", 1e12),),
    descriptors=100_000,
    connections=20_000,
    backlog=4096,
    peers=(Peer("s2", "tcp://s2:2225", None),),
    brokers=(BrokerSeen("b1", "lives"), BrokerSeen("b2", "lives")),
    programs=(File("[handlers.x]", "node"),),
    listen_backlog=8192,
)


def worse(**facts: Any) -> list[Finding]:
    """Return the findings that are not ok, where these facts are others than the good ones."""
    return [each for each in findings_of(GOOD._replace(**facts)) if each.level != "ok"]


def dead(name: str, gone_s: float, waiting: int = 0) -> BrokerSeen:
    return BrokerSeen(name, "dead", gone_s, "process 8 on h2", waiting)


def test_broker_that_was_given_up_long_ago_is_not_named() -> None:
    gone = findings_of(
        GOOD._replace(brokers=(BrokerSeen("b1", "lives"), dead("b2", GONE_S), BrokerSeen("b3", "ended")))
    )
    assert [each.text for each in gone if each.check == "broker"] == ["broker b1 lives"]


def test_good_facts_give_one_ok_or_more_of_each_check() -> None:
    findings = findings_of(GOOD)
    assert {each.level for each in findings} == {"ok"}
    assert {each.remedy for each in findings} == {""}
    assert len({each.check for each in findings}) >= 12


@pytest.mark.parametrize(
    ("facts", "check", "level", "cause", "remedy"),
    [
        ({"server": "s1 does not greet within 10 s; see its log"}, "server", "error", "does not greet", "see its log"),
        (
            {"data_dir": File("d", "/d", "/d: other users may open it (mode 0755); chmod 700 /d")},
            "data", "error", "mode 0755", "chmod 700",
        ),
        (
            {"ports": (Port("[native] tcp4", "127.0.0.1:80", "taken", "nginx (process 8)"),)},
            "port", "error", "tcp4 = 127.0.0.1:80 is held by nginx (process 8)", "choose another [native] tcp4",
        ),
        ({"ports": (Port("k", "h:80", "taken"),)}, "port", "error", "held by another program", "stop that"),
        (
            {"brokers": (BrokerSeen("b1", "lives"), dead("b2", 120.0))},
            "broker", "warning", "b2 has been dead for 2.0 min (process 8 on h2): others have", "start it again",
        ),
        (
            {"brokers": (BrokerSeen("b1", "lives"), dead("b2", GONE_S, 7))},
            "broker", "warning", "7 messages of it wait", "adopts what it kept",
        ),
        ({"brokers": (BrokerSeen("b2", "ended", waiting=1),)}, "broker", "warning", "has ended", "adopts what it kept"),
        ({"ports": (Port("k", "h:80", "denied"),)}, "port", "error", "may not be opened", "a higher one"),
        ({"ports": (Port("k", "h:80", "no-address"),)}, "port", "error", "no such address", "choose another k"),
        ({"running": True}, "port", "error", "nobody listens there", "bester bridge"),
        (
            {"certificates": (Certificate("c", "c: is a private key; name the certificate"),)},
            "certificate", "error", "is a private key", "name the certificate",
        ),
        (
            {"certificates": (Certificate("cert", None, NOW + 3.5 * DAY),)},
            "certificate", "warning", "cert expires in 3.5 days, on 2026-09-25 02:13 UTC", "renew it",
        ),
        ({"certificates": (Certificate("c", None, NOW - 1),)}, "certificate", "error", "has expired", "renew it"),
        ({"keys": (File("k", "/k", "/k: open to others; chmod 600 it"),)}, "key", "error", "open", "chmod 600"),
        ({"ahead_s": 7200.0}, "clock", "warning", "written 2.0 h from now", "NTP"),
        ({"stores": (File("s", "/s", "/s: malformed: page 3; restore it"),)}, "store", "error", "page 3", "restore"),
        ({"rooms": (("/d", 1024.0),)}, "disk", "error", "the disk of /d has 1.0 KiB left", "make room"),
        ({"files": (("/d", 1),)}, "disk", "error", "the disk of /d has room for 1 more file (inodes)", "remove files"),
        (
            {"descriptors": 1024}, "descriptors", "warning",
            "1024 descriptors are enough for 896 connections, and [native] max_connections is 20000", "ulimit -Hn",
        ),
        ({"backlog": 128}, "backlog", "warning", "lets 128 new", "net.core.somaxconn=8192"),
        (
            {"peers": (Peer("s2", "tcp://s2:1", "nothing listens at tcp://s2:1"),)},
            "server away", "warning", "server s2 is away: nothing listens", "[servers]",
        ),
        (
            {"peers": (Peer("s2", "tcp://s2:1", "that is not the key of s2: …", True),)},
            "server key", "error", "that is not the key of s2", "bester keys",
        ),
        (
            {"programs": (File("[handlers.x]", "x", "[handlers.x]: no program x; install it"),)},
            "handler program", "error", "no program x", "install it",
        ),
    ],
)  # fmt: skip
def test_fault_is_named_with_its_remedy(facts: dict[str, Any], check: str, level: str, cause: str, remedy: str) -> None:
    (finding,) = worse(**facts)
    assert (finding.check, finding.level) == (check, level)
    assert cause in finding.text
    assert remedy in finding.remedy


def test_faulty_configuration_is_the_only_finding() -> None:
    found = findings_of(Local("bester.toml", fault="bester.toml: [natve] is not known; did you mean [native]?"))
    assert [(each.check, each.level) for each in found] == [("config", "error")]
    assert found[0].remedy


def test_facts_that_the_system_does_not_show_are_no_faults() -> None:
    assert worse(descriptors=None, backlog=None, ports=(), data_dir=None) == []


@pytest.mark.parametrize(
    ("left_s", "level"), [(-1.0, "error"), (0.0, "error"), (14 * DAY - 1, "warning"), (14 * DAY, "ok")]
)
def test_days_of_a_certificate(left_s: float, level: str) -> None:
    assert certificate(NOW + left_s, NOW, "c")[0] == level


def test_of_two_sources_the_worse_is_shown_and_the_first_of_equals() -> None:
    good, bad, other = Finding("a", "ok", "1"), Finding("a", "error", "2", "r"), Finding("b", "ok", "3")
    assert merged([good, other], [bad]) == [other, bad]
    assert merged([bad], [good, other]) == [bad, other]
    assert merged([good], [Finding("a", "ok", "4")]) == [good]
    assert merged([], [bad, bad]) == [bad, bad]


def test_page_has_the_table_of_the_code() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert markdown() in text
    assert text == written(text), "python -m tests.checks_page writes it anew"
