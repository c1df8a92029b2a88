"""Parts of a server on a machine of their own: an operator's commands, a bridge, and what `bester check` says there."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest

from bester.broker.config import defaults
from bester.broker.config_file import load
from bester.cli.doctor import examine
from bester.cli.operate import endpoint_of, is_elsewhere
from bester.cli.serve import banner
from tests.e2e.test_curve import curve_server
from tests.keyed import free_port, key_file, new_pair
from tests.live import BESTER, DEADLINE_S, Process, short_directory

PAIRS = {name: new_pair() for name in ("operator", "bridge", "stranger")}
KEY = "YjpTD(4lyd!t2kRe7*Gcm4+{]N/fcATzESZv0Q^H"
"""A key that is the same in each process of a test run."""
PARTIES = "".join(
    f'[fabric.parties.{role}]\nkey = "{PAIRS[role].public}"\nrole = "{role}"\n' for role in ("operator", "bridge")
)


def file_of(directory: Path, name: str, fabric: str, server_key: str, more: str = "") -> Path:
    """Write the file of a party on another machine, and its key."""
    if not (directory / f"{name}.key").exists():
        key_file(directory / f"{name}.key", PAIRS[name])
    path = directory / f"{name}.toml"
    path.write_text(f'[fabric]\nconnect = ["{fabric}"]\nkey = "{name}.key"\nserver_key = "{server_key}"\n{more}')
    return path


async def says(directory: Path, *command: str) -> tuple[int, list[str]]:
    """Run a command to its end; return its exit status and its lines."""
    process = await Process.start(BESTER, *command, cwd=directory)
    await asyncio.wait_for(process.process.wait(), DEADLINE_S)
    return await process.end(), process.lines


async def test_an_operators_key_asks_from_elsewhere_and_no_other_does() -> None:
    async with curve_server(PARTIES) as stand, short_directory() as there:
        op = file_of(there, "operator", stand.fabric, stand.key)
        for command in ("sessions", "types", "peers", "dead list"):
            status, _ = await says(there, *command.split(), "-c", op.name)
            assert status == 0, command
        status, lines = await says(there, "status", "--json", "-c", op.name)
        assert status == 0 and json.loads(lines[0])["peers"]["operator"] == 1
        status, lines = await says(there, "types", "--asyncapi", "-c", op.name)
        assert status == 0 and json.loads("".join(lines))["info"]["title"] == "Bester server s1"
        assert not any("fabric-refused" in line for line in stand.server.processes[0].lines), "a knock is no party"

        for name, server_key, why in (
            ("bridge", stand.key, "refuses an operator: this key is for a bridge, and not for an operator"),
            ("stranger", stand.key, f"does not know our key {PAIRS['stranger'].public}"),
            ("operator", PAIRS["stranger"].public, "that is not the key of the server"),
        ):
            file = file_of(there, name, stand.fabric, server_key)
            status, lines = await says(there, "status", "-c", file.name)
            assert (status, len(lines)) == (1, 1) and why in lines[0], lines
        file = file_of(there, "operator", f"tcp://127.0.0.1:{free_port()}", stand.key)
        status, lines = await says(there, "status", "-c", file.name)
        assert (status, len(lines)) == (1, 1) and "nothing listens at tcp://" in lines[0], lines


async def test_bridge_elsewhere_names_no_account_of_its_own_and_no_fault_of_its_port() -> None:
    async with curve_server(PARTIES) as stand, short_directory() as there:
        native = f'[native]\ntcp4 = "127.0.0.1:{free_port()}"\n'
        file = file_of(there, "bridge", stand.fabric, stand.key, native)
        bridge = await Process.start(BESTER, "bridge", "-c", file.name, cwd=there)
        try:
            assert "on the broker's host" in await bridge.says("to add a user:")
            ports = [each for each in await asyncio.to_thread(examine, file) if each.check == "port"]
            assert [each.level for each in ports] == ["ok"] and "is held" in ports[0].text
        finally:
            await bridge.end()


@pytest.mark.parametrize(
    ("listen", "connect", "more", "elsewhere"),
    [
        ("", '"tcp://192.0.2.1:2225"', "", True),
        ("", '"tcp://127.0.0.1:2225"', f'server_key = "{KEY}"', True),
        ("", '"tcp://127.0.0.1:2225"', "", False),
        ("", '"ipc:///run/b.sock", "tcp://192.0.2.1:2225"', "", False),
        ('"ipc://DATA_DIR/fabric.sock", "tcp://192.0.2.1:2225"', '"tcp://192.0.2.1:2225"', "", False),
        ('"ipc://DATA_DIR/fabric.sock", "tcp://0.0.0.0:2225"', '"tcp://192.0.2.1:2225"', "", False),
    ],
)
def test_a_file_is_about_a_broker_elsewhere_where_nothing_listens_here(
    tmp_path: Path, listen: str, connect: str, more: str, elsewhere: bool
) -> None:
    text = f"[fabric]\n{f'listen = [{listen}]' if listen else ''}\nconnect = [{connect}]\n{more}\n"
    (tmp_path / "bester.toml").write_text(text)
    config = load(tmp_path / "bester.toml")
    assert is_elsewhere(config) == elsewhere
    assert (endpoint_of(config) == config.fabric.connect[0]) == (elsewhere or connect.startswith('"ipc:///run'))
    (tmp_path / "bester-data").mkdir()
    (tmp_path / "bester-data/fabric.sock").touch()
    assert not is_elsewhere(config), "a broker is here"


def test_banner_of_a_bridge_elsewhere_with_accounts_in_a_database_names_the_command(tmp_path: Path) -> None:
    (tmp_path / "bester.toml").write_text(
        '[fabric]\nconnect = ["tcp://192.0.2.1:2225"]\n[store]\nurl = "postgresql://bester@192.0.2.2/bester"\n'
    )
    config = load(tmp_path / "bester.toml")
    assert "host" not in banner(replace(config, path=None), ["127.0.0.1:2223"])[1]
    assert "host" not in banner(defaults(tmp_path), ["127.0.0.1:2223"])[1]
