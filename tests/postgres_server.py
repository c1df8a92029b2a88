"""A PostgreSQL of Debian for tests: a cluster in a temporary folder, on a Unix socket, as a plain user.

`cluster` is one for the whole run of a test process, with `fsync` off; each test has a schema of its own in it.
"""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bester.broker.postgres import Database
from tests.orphans import unmarked

DEADLINE_S = 60
"""Time in seconds for a start or stop of the server on a loaded machine."""
QUICK = ("fsync=off", "synchronous_commit=off", "full_page_writes=off", "shared_buffers=16MB")
_GUARD = """
(trap '' HUP INT TERM; while kill -0 "$1" && [ -d "$2" ]; do sleep 2; done
[ -d "$2" ] && kill -QUIT "$(head -n 1 "$2/data/postmaster.pid")" && sleep 2; rm -rf "$2") >/dev/null 2>&1 </dev/null &
"""
"""Shell script that ends a server, and deletes its data, once the test process has ended in whatever way: also by a
signal to its whole group, as `timeout` sends it."""
_schemas = itertools.count(1)


def _guard(directory: Path) -> None:
    """Start the script that ends the server with its data in this directory."""
    subprocess.run(["sh", "-c", _GUARD, "sh", str(os.getpid()), directory], check=True, cwd="/", env=unmarked())


def binaries() -> Path | None:
    """Return the directory of the newest server's programs, None where there is none."""
    beside = shutil.which("initdb")
    if beside is not None:
        return Path(beside).resolve().parent
    found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    return max(found, key=lambda path: int(path.parent.name.partition(".")[0]), default=None)


class Cluster:
    """A server of PostgreSQL with its data in a temporary folder."""

    def __init__(self, *settings: str) -> None:
        programs = binaries()
        assert programs is not None
        self._programs = programs
        self._directory = Path(tempfile.mkdtemp(prefix="b-pg-", dir="/tmp"))
        self._user = "nobody" if os.geteuid() == 0 else None
        self._settings = ("listen_addresses=''", f"unix_socket_directories='{self._directory}'", *settings)
        if self._user is not None:
            os.chown(self._directory, pwd.getpwnam(self._user).pw_uid, -1)
        try:
            _guard(self._directory)
            self._run("initdb", "--auth=trust", "--username=bester", "--encoding=UTF8", "--locale=C", "--no-sync")
            self.start()
        except BaseException:
            shutil.rmtree(self._directory, ignore_errors=True)
            raise

    @property
    def process(self) -> int:
        """Return the number of the server's process."""
        return int((self._directory / "data" / "postmaster.pid").read_text().split()[0])

    def url(self, user: str = "bester") -> str:
        """Return the address of the database."""
        return f"postgresql://{user}@/postgres?host={self._directory}"

    def database(self) -> Database:
        """Return a database with a schema of its own, which is not there yet."""
        return Database(self.url(), self.schema())

    @staticmethod
    def schema() -> str:
        """Return the name of a schema that is not there yet."""
        return f"test_{os.getpid()}_{next(_schemas)}_{time.monotonic_ns()}"

    @property
    def user(self) -> str | None:
        """The system's user that owns the server, None for the present one."""
        return self._user

    @property
    def folder(self) -> Path:
        """The folder of data and socket."""
        return self._directory

    def follow_synchronously(self) -> None:
        """Have each commit wait for the standbys."""
        self._run("psql", "--command=ALTER SYSTEM SET synchronous_standby_names = '*'", database=True)
        self._run("pg_ctl", "reload")

    def refuse_writes(self) -> None:
        """Take no writes any more, of whoever is connected."""
        self._run("psql", "--command=ALTER SYSTEM SET default_transaction_read_only = on", database=True)
        self._run("pg_ctl", "reload")

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        options = " ".join(f"-c {setting}" for setting in self._settings)
        log = str(self._directory / "log")
        self._run("pg_ctl", "start", "--wait", f"--timeout={DEADLINE_S}", f"--options={options}", f"--log={log}")

    def stop(self, mode: str = "immediate") -> None:
        """Stop the server: `immediate` as by a crash, `fast` as by its administrator."""
        self._run("pg_ctl", "stop", "--wait", f"--timeout={DEADLINE_S}", f"--mode={mode}")

    def close(self) -> None:
        """Stop the server and delete its data."""
        try:
            self.stop()
        except subprocess.CalledProcessError:  # already stopped
            pass
        finally:
            shutil.rmtree(self._directory, ignore_errors=True)

    def _run(self, program: str, *arguments: str, database: bool = False) -> None:
        """Run a program on the server's data, or as a client of its database."""
        own = [f"--pgdata={self._directory / 'data'}"]
        if database:
            own = [f"--host={self._directory}", "--username=bester", "--dbname=postgres"]
        subprocess.run(
            [self._programs / program, *own, *arguments],
            check=True, user=self._user, cwd=self._directory, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, timeout=2 * DEADLINE_S, env={"PATH": os.defpath, "LC_ALL": "C"},
        )  # fmt: skip


class Standby(Cluster):
    """A synchronous standby of a server: a commit there is on the disk here, too, before it is acknowledged."""

    def __init__(self, primary: Cluster) -> None:
        programs = binaries()
        assert programs is not None
        self._programs = programs
        self._directory = Path(tempfile.mkdtemp(prefix="b-pg-", dir="/tmp"))
        self._user = primary.user
        self._settings = ("listen_addresses=''", f"unix_socket_directories='{self._directory}'")
        if self._user is not None:
            os.chown(self._directory, pwd.getpwnam(self._user).pw_uid, -1)
        try:
            _guard(self._directory)
            self._run("pg_basebackup", f"--host={primary.folder}", "--username=bester", "--write-recovery-conf")
            self.start()
            primary.follow_synchronously()
        except BaseException:
            shutil.rmtree(self._directory, ignore_errors=True)
            raise

    def promote(self) -> None:
        """Make the standby the primary, and wait until it is."""
        self._run("pg_ctl", "promote", "--wait", f"--timeout={DEADLINE_S}")


def either(first: Cluster, second: Cluster) -> Database:
    """Return a database that is reached at whichever of two servers takes writes."""
    hosts = f"{first.folder},{second.folder}"
    return Database(f"postgresql://bester@/postgres?host={hosts}&target_session_attrs=read-write", first.schema())


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A server for the whole run; tests that need one are skipped where it is missing."""
    if binaries() is None:
        pytest.skip("PostgreSQL is not installed (apt-get install postgresql)")
    found = Cluster(*QUICK)
    yield found
    found.close()


@pytest.fixture(scope="session")
def postgres(cluster: Cluster) -> Database:
    """A database whose schema all stores of a run share: each has a namespace of its own."""
    return cluster.database()
