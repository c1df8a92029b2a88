"""`bester check` without a running server: the keys of listed servers are tried, and its clock is the database's."""

from __future__ import annotations

import asyncio
import json

import pytest

from bester.cli.doctor import examine
from tests.e2e.test_curve_troubles import OWN, SERVER, WRONG, fabric
from tests.keyed import key_file
from tests.live import BESTER, Process, head, short_directory
from tests.postgres_server import Cluster
from tests.wall_clock import WallClock

DEADLINE_S = 60.0


async def test_keys_of_other_servers_are_tried_without_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bester.cli.doctor.peers.PATIENCE_S", DEADLINE_S)
    async with short_directory() as directory, fabric(curve=True) as s2, fabric(curve=True, known=False) as s3:
        key_file(directory / "own.key", OWN)
        (directory / "bester.toml").write_text(
            head() + '[fabric]\nkey = "own.key"\n'
            f'[servers.s2]\nfabric = "{s2}"\nkey = "{WRONG.public}"\n'
            f'[servers.s3]\nfabric = "{s3}"\nkey = "{SERVER.public}"\n'
        )
        found = await asyncio.to_thread(examine, directory / "bester.toml")
    wrong, unknown = [each for each in found if each.check == "server key"]
    assert "that is not the key of s2" in wrong.text
    assert f"does not know our key {OWN.public}" in unknown.text
    assert {wrong.level, unknown.level} == {"error"}


@pytest.mark.parametrize(
    ("ahead_s", "level", "text"),
    [
        (0.0, "ok", "the clock is that of the database"),
        (198.0, "warning", "the clock of the database is 3.3 min behind this one's"),
        (-7200.0, "error", "the clock of the database is 2.0 h ahead of this one's"),
    ],
)
async def test_clock_is_compared_with_the_databases(cluster: Cluster, ahead_s: float, level: str, text: str) -> None:
    database = cluster.database()
    async with short_directory() as directory:
        (directory / "bester.toml").write_text(f'{head()}[store]\nurl = "{database.url}"\nschema = "never_served"\n')
        clock = WallClock(directory / "clock", ahead_s)
        checked = await Process.start(BESTER, "check", "--json", cwd=directory, env=clock.env)
        await asyncio.wait_for(checked.process.wait(), DEADLINE_S)
        await checked.end()
    found = [(each["level"], each["text"]) for each in map(json.loads, checked.lines)]
    assert [each for each in found if "the database" in each[1]] == [(level, text)]
