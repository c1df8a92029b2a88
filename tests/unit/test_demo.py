"""The demo's routes, configurations and faults."""

from __future__ import annotations

import socket
import tempfile
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from bester.cli.demo import LINKS, STORIES
from bester.cli.demo import story as stories
from bester.cli.demo.drawing import path_lines, table
from bester.cli.demo.people import Sent, root_of
from bester.cli.demo.play import LINKED, Performance
from bester.cli.demo.routes import Step, Stop, Way, route_of, ways_of
from bester.client import Report

EXAMPLES = Path(__file__).parents[2] / "examples"
ROOT = "S1/bridge-1.1/7"
STEPS = [
    Step(1004.0, f"{ROOT}.0.0.0.0.0.0", "handler", "S3/M1"),
    Step(1005.0, f"{ROOT}.0.0.0.0.0.0.0", "delivered", "S3/U2"),
    Step(1001.0, ROOT, "handler", "S1/M1"),
    Step(1003.0, f"{ROOT}.0.0", "server", "S1/S2"),
    Step(1002.0, f"{ROOT}.0.0", "handler", "S1/M2"),
    Step(1001.5, f"{ROOT}.0.0.0.0", "handler", "S2/M1"),  # a slow clock
]
ROUTE = (
    Stop("U1", "", 0.0),
    Stop("S1/M1", "sends", 1.0),
    Stop("S1/M2", "sendHandler", 2.0),
    Stop("S2/M1", "sendServers", 2.0),
    Stop("S3/M1", "sendServers", 4.0),
    Stop("U2", "sendClients", 6.0),
)


def test_route_follows_ids_not_clocks_and_times_never_decrease() -> None:
    assert route_of(STEPS, "U1", "U2", 1000.0, 1006.0) == ROUTE


def test_messages_are_grouped_by_route_with_medians() -> None:
    other = (*ROUTE[:2], Stop("U2", "sendClients", 3.0))
    later = tuple(stop._replace(at_ms=stop.at_ms * 3) for stop in ROUTE)
    ways = ways_of([other, ROUTE, later], [1.0, 2.0, 4.0])
    assert [(way.messages, way.report_ms) for way in ways] == [(2, 3.0), (1, 1.0)]
    assert [stop.at_ms for stop in ways[0].route] == [0.0, 2.0, 4.0, 4.0, 8.0, 12.0]


def test_root_of_a_result() -> None:
    assert root_of(f"{ROOT}.0.0.0.0.0.0.0") == ROOT
    assert root_of(ROOT) == ROOT
    assert root_of(None) == ""


def test_path_is_one_line_or_broken_before_arrows() -> None:
    whole = "U1 → S1/M1 → S1/M2 → S2/M1 → S3/M1 → U2"
    assert path_lines(ROUTE, None) == [whole]
    assert path_lines(ROUTE, len(whole)) == [whole]
    assert path_lines(ROUTE, 20) == ["U1 → S1/M1 → S1/M2", "  → S2/M1 → S3/M1", "  → U2"]


@pytest.mark.parametrize("width", [36, 45, 60, 80, 200])
def test_table_fits_the_width_and_shows_each_time(width: int) -> None:
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(table(Way(1, ROUTE, 6.5), width))
    lines = [line.rstrip() for line in capture.get().splitlines()]
    assert max(map(cell_len, lines)) <= width
    assert lines[2].split()[0] == "S1/M1"
    assert "1.00 ms" in lines[2]
    assert lines[-1].split()[0] == "U2"
    assert "6.00 ms" in lines[-1]
    assert "2.00 ms" in lines[-1]
    assert ("█" in lines[-1]) == (width >= 60)


@pytest.mark.parametrize("links", LINKS)
@pytest.mark.parametrize("name", STORIES)
def test_written_files_link_the_servers(name: str, links: str) -> None:
    story = stories.STORIES[name]
    with tempfile.TemporaryDirectory(prefix="b-", dir="/tmp") as directory:  # a short path, for sockets
        configs, called = stories.write_files(story, links, Path(directory))
    assert tuple(config.server.name for config in configs) == story.servers
    ports = {config.server.name: str(config.native.tcp4) for config in configs}
    assert len(set(ports.values())) == len(configs)
    assert called == (ports if links == "native-address" else {server: server for server in story.servers})
    for config in configs:
        for peer in config.servers.values():
            assert (peer.fabric is None) == (links != "fabric")
            assert peer.native is None or str(peer.native) == ports[peer.name]


@pytest.mark.parametrize("name", STORIES)
def test_examples_are_the_demos_files(name: str) -> None:
    story = stories.STORIES[name]
    for server in story.servers:
        file = f"{server.lower()}.toml"
        assert (EXAMPLES / name / file).read_text() == (resources.files(story.package) / file).read_text()


def test_toml_round_trip() -> None:
    tables: dict[str, dict[str, Any]] = {
        "server": {"name": 'a"b\\ñ'},
        "handlers": {"m-1": {"types": ["a", "b"], "workers": 2}},
        "native": {"insecure": True},
    }
    assert tomllib.loads(stories.as_toml(tables)) == tables


def test_free_ports_are_free() -> None:
    ports = stories.free_ports(3)
    assert len(set(ports)) == 3
    for port in ports:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", port))


def test_command_lists_the_stories_and_the_links() -> None:
    assert set(STORIES) == set(stories.STORIES)
    assert LINKS == stories.LINKS == tuple(LINKED)


def test_faults_of_a_performance() -> None:
    good, bad = Report(True, "1", message=ROOT), Report(False, "2", reason="unreachable", message=ROOT)
    arrived = (3.0, b"{}")
    assert Performance([Sent(1, 2, good)], [[arrived]]).faults == []
    assert Performance([Sent(1, 2, bad)], [[]]).faults == [
        "1 of 1 reports are bad: unreachable",
        "1 of 1 messages did not arrive",
    ]
    assert Performance([Sent(1, 2, good)], [[arrived, arrived]]).faults == ["1 of 1 messages arrived more than once"]
