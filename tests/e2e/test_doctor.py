"""`bester check`, the API and the metrics of a running server name real faults, each with its remedy."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from bester.cli.doctor import examine
from tests.authorities import DAY, Authority
from tests.e2e.operator_stand import Operator, operated
from tests.e2e.test_curve_troubles import OWN, SERVER, WRONG, fabric
from tests.e2e.test_operator import DIES, messages, samples
from tests.keyed import key_file
from tests.live import BESTER, Process, short_directory

DEADLINE_S = 60.0


EXPECTED = {
    "handler dead": ("error", "no handler serves unfit", "given up"),
    "server key": ("error", f"has another one than {WRONG.public}", "bester keys"),
    "certificate": ("warning", "expires in", "renew it"),
    "dead letters": ("warning", "1 dead letter of type dies in 10.0 min: handler-lost", "bester dead replay"),
}
"""Level, and words of cause and remedy, by check."""


def missing(rows: list[dict[str, str]]) -> list[str]:
    """Return the checks of EXPECTED whose finding is not among the rows."""
    return [
        check
        for check, (level, cause, remedy) in EXPECTED.items()
        if not any(
            (row["check"], row["level"]) == (check, level) and cause in row["text"] and remedy in row["remedy"]
            for row in rows
        )
    ]


async def until_found(operator: Operator) -> None:
    """Wait until the server itself finds all of EXPECTED."""
    async with asyncio.timeout(DEADLINE_S):
        while missing(await operator.get("/api/findings")):
            await asyncio.sleep(0.2)


async def check(operator: Operator) -> tuple[int, list[dict[str, str]]]:
    """Return the status of `bester check`, and what the command prints."""
    process = await Process.start(BESTER, "check", "--json", cwd=operator.server.directory)
    status = await asyncio.wait_for(process.process.wait(), DEADLINE_S)
    await process.end()
    return status, [json.loads(line) for line in process.lines]


async def test_real_faults_are_named_by_all_displays(tmp_path: Path) -> None:
    cert, key = Authority(tmp_path).issue("s1", end=3 * DAY)
    async with fabric(curve=True) as endpoint:
        toml = (
            DIES
            + f'[native.tls]\nlisten = "127.0.0.1:0"\ncert = "{cert}"\nkey = "{key}"\n'
            + f'[servers.s2]\nfabric = "{endpoint}"\nkey = "{WRONG.public}"\n'
            + '[handlers.unfit]\napp = "mixed:missing"\ntypes = ["unfit"]\n'
        )
        async with operated(toml) as operator:
            await operator.server.has_type("dies")
            await messages(operator, dies=1)
            await until_found(operator)
            status, rows = await check(operator)
            metrics = samples((await operator.request("/metrics"))[1])
    assert status == 1
    assert missing(rows) == [], (rows, operator.server.processes[0].lines)
    good = {row["check"] for row in rows if row["level"] == "ok"}
    assert {"config", "server", "data", "store"} <= good
    moved: dict[str, tuple[tuple[str, Any], ...]] = {
        "bester_type_declared": (("type", "unfit"),),
        "bester_server_key_wrong": (("server", "s2"),),
        "bester_messages_dead_total": (("type", "dies"),),
    }
    assert {name: metrics[name, labels] for name, labels in moved.items()} == dict.fromkeys(moved, 1)
    assert metrics["bester_handlers", (("type", "unfit"),)] == 0
    assert [value for (name, _), value in metrics.items() if name == "bester_bridge_certificate_end_seconds"]


async def test_keys_of_other_servers_are_tried_without_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bester.cli.doctor.peers.PATIENCE_S", DEADLINE_S)
    async with short_directory() as directory, fabric(curve=True) as s2, fabric(curve=True, known=False) as s3:
        key_file(directory / "own.key", OWN)
        (directory / "bester.toml").write_text(
            f'[server]\nname = "s1"\ndata_dir = "data"\n[native]\ntcp4 = "127.0.0.1:0"\n[fabric]\nkey = "own.key"\n'
            f'[servers.s2]\nfabric = "{s2}"\nkey = "{WRONG.public}"\n'
            f'[servers.s3]\nfabric = "{s3}"\nkey = "{SERVER.public}"\n'
        )
        found = await asyncio.to_thread(examine, directory / "bester.toml")
    wrong, unknown = [each for each in found if each.check == "server key"]
    assert "that is not the key of s2" in wrong.text
    assert f"does not know our key {OWN.public}" in unknown.text
    assert {wrong.level, unknown.level} == {"error"}
