"""`bester check` without a running server: the keys of listed servers are tried."""

from __future__ import annotations

import asyncio

import pytest

from bester.cli.doctor import examine
from tests.e2e.test_curve_troubles import OWN, SERVER, WRONG, fabric
from tests.keyed import key_file
from tests.live import head, short_directory

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
