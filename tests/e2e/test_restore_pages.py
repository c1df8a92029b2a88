"""Each command of the pages about upgrade and restore, and of PostgreSQL's backup, run in their order on a server."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.live import BESTER
from tests.postgres_server import Cluster

DOCS = Path(__file__).parents[2] / "docs"
TOML = '[server]\nname = "s1"\n[native]\ntcp4 = "127.0.0.1:0"\n'
PIP = f"""#!/bin/sh
# The version under test is the newest one: nothing is fetched.
test "$1 $3$4" = "install bester" -o "$1 $2" = "install bester==$("{BESTER}" --version | cut -d' ' -f2)"
"""


class Service:
    """The one service of a machine, in a directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.process: subprocess.Popen[str] | None = None

    def systemctl(self, verb: str) -> None:
        """Start, stop or restart it; a started one serves."""
        if verb in ("stop", "restart") and self.process is not None:
            self.process.terminate()
            assert self.process.stderr is not None
            self.process.communicate(timeout=60)
            self.process = None
        if verb in ("start", "restart"):
            assert self.process is None
            self.process = subprocess.Popen([BESTER, "up"], cwd=self.directory, stderr=subprocess.PIPE, text=True)
            assert self.process.stderr is not None
            assert any(" serves " in line for line in self.process.stderr)

    def run(self, script: str) -> str:
        """Run a script in the directory, with this in the place of systemctl; return its output."""
        shown = ""
        for piece in re.split(r"^(systemctl \w+ bester)\n", script, flags=re.MULTILINE):
            if piece.startswith("systemctl "):
                self.systemctl(piece.split()[1])
            elif piece:
                shown += self._run(piece)
        return shown

    def _run(self, script: str) -> str:
        path = f"{self.directory}/bin:{Path(BESTER).parent}:{os.environ['PATH']}"
        done = subprocess.run(
            ["sh", "-euc", script],
            cwd=self.directory, env={**os.environ, "PATH": path}, timeout=120, check=False,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        assert done.returncode == 0, f"{script}\n{done.stdout}"
        return done.stdout


@pytest.fixture
def service() -> Iterator[Service]:
    """A server with the account of alice, and a pip."""
    with TemporaryDirectory(prefix="b-", dir="/tmp") as name:
        service = Service(Path(name))
        (service.directory / "bin").mkdir()
        pip = service.directory / "bin" / "pip"
        pip.write_text(PIP)
        pip.chmod(0o700)
        (service.directory / "bester.toml").write_text(TOML)
        service.run("echo secret | bester user add alice --password-stdin\nsystemctl start bester\n")
        try:
            yield service
        finally:
            service.systemctl("stop")


@pytest.mark.parametrize("page", ["restore.md", "upgrade.md"])
def test_each_command_does_what_the_page_says(service: Service, page: str) -> None:
    first, *blocks = re.findall(
        r"^```sh\n(.*?)^```", (DOCS / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    key = service.directory / "bester-data" / "server.key"
    before = key.read_text()
    service.run(first)
    service.run("echo secret | bester user add bob --password-stdin")
    shown = "".join(map(service.run, blocks))
    assert "s1, up" in shown
    assert key.read_text() == before
    users = service.run("bester user list")
    assert "alice" in users and "bob" not in users, "the accounts are those of the copy"


@pytest.mark.skipif(shutil.which("pg_dump") is None, reason="pg_dump is missing: apt-get install postgresql-client")
def test_commands_of_postgresql_bring_accounts_and_messages_back(
    service: Service, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (DOCS / "postgresql.md").read_text(encoding="utf-8").partition("## Backup and restore")[2]
    copy, back = re.findall(r"^```sh\n(.*?)^```", text.partition("\n## ")[0], re.MULTILINE | re.DOTALL)
    place = cluster.url().partition("host=")[2]
    for name, value in (("PGHOST", place), ("PGUSER", "bester"), ("PGDATABASE", "postgres")):
        monkeypatch.setenv(name, value)
    service.systemctl("stop")
    service.run("psql -qc 'CREATE DATABASE bester'")
    try:
        url = f"postgresql://bester@/bester?host={place}"
        (service.directory / "bester.toml").write_text(TOML + f'[store]\nurl = "{url}"\n')
        service.run("echo secret | bester user add alice --password-stdin\nsystemctl start bester\n")
        epoch = "psql bester -Atc 'SELECT epoch FROM bester.broker'"
        before = service.run(epoch)
        service.run(copy)
        service.run("echo secret | bester user add bob --password-stdin\nsystemctl stop bester\n")
        service.run(back)
        service.run("systemctl start bester\n")
        assert re.match(r"s1, broker \S+, up ", service.run("bester status"))
        users = service.run("bester user list")
        assert "alice" in users and "bob" not in users, "the accounts are those of the copy"
        assert len(before) > 1 and service.run(epoch) != before
        service.systemctl("stop")
    finally:
        service.systemctl("stop")
        service.run("psql -qc 'DROP DATABASE bester'")
