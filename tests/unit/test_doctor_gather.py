"""`bester check` without a server: real files, ports and keys with a fault each, and nothing is changed by looking."""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from bester.broker.doctor.findings import Finding
from bester.broker.store import open_store
from bester.broker.store_requests import Bounds
from bester.cli.commands import run
from bester.cli.doctor import examine
from tests.authorities import DAY, Authority
from tests.chaos.machine import may_mount
from tests.keyed import key_file, new_pair
from tests.live import BESTER
from tests.unit.store_sqlite_stand import keep

HEAD = '[server]\nname = "s1"\ndata_dir = "data"\n'


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory of a server that does not run; its path is short enough for Unix sockets."""
    with TemporaryDirectory(prefix="b-", dir="/tmp") as name:
        (Path(name) / "data").mkdir(mode=0o700)
        yield Path(name)


def found(directory: Path, more: str = "") -> dict[str, list[Finding]]:
    """Return the findings that are not ok, by check."""
    file = directory / "bester.toml"
    file.write_text(HEAD + ("" if "[native]" in more else '[native]\ntcp4 = "127.0.0.1:0"\n') + more)
    by: dict[str, list[Finding]] = {}
    for each in examine(file):
        if each.level != "ok" and each.check not in ("descriptors", "backlog"):  # faults of the machine of the test
            by.setdefault(each.check, []).append(each)
    return by


def store_at(path: Path) -> None:
    """Make a store with messages."""
    store = open_store(path, "full", Bounds())
    store.open()
    assert store.commit([keep(number, b'"' + b"x" * 4000 + b'"') for number in range(1, 40)]).ok
    store.close()


def tree(directory: Path) -> dict[str, tuple[int, int]]:
    """Return mode and modification time of all files."""
    return {str(each): (each.stat().st_mode, each.stat().st_mtime_ns) for each in directory.rglob("*")}


def test_server_without_faults_is_found_good_and_nothing_is_changed(directory: Path) -> None:
    store_at(directory / "data/store.db")
    key_file(directory / "data/server.key", new_pair())
    assert found(directory) == {}
    before = tree(directory)
    assert found(directory) == {}
    (directory / "bester.toml").unlink()
    after = tree(directory)
    assert {name: after[name] for name in after} == {name: before[name] for name in after}
    assert len(after) == len(before) - 1


def wrong_mode(directory: Path) -> str:
    (directory / "data").chmod(0o755)
    return ""


def dangling_data_dir(directory: Path) -> str:
    (directory / "data").rmdir()
    (directory / "data").symlink_to("nowhere")
    return ""


def open_key(directory: Path) -> str:
    key_file(directory / "data/server.key", new_pair()).chmod(0o644)
    return ""


def public_of_another_key(directory: Path) -> str:
    key_file(directory / "data/server.key", new_pair())
    (directory / "data/server.key.pub").write_text(new_pair().public + "\n")
    return ""


def own_key_listed(directory: Path) -> str:
    pair = new_pair()
    key_file(directory / "data/server.key", pair)
    return f'[servers.s2]\nfabric = "tcp://127.0.0.1:1"\nkey = "{pair.public}"\n'


def open_token(directory: Path) -> str:
    (directory / "token").write_text("0123456789abcdef0123")
    (directory / "token").chmod(0o644)
    return '[operator]\nhttp = "127.0.0.1:0"\ntoken = "token"\n'


def certificate_ends(directory: Path) -> str:
    Authority(directory).issue("s1", end=3 * DAY + timedelta(minutes=5))
    return '[native.tls]\nlisten = "127.0.0.1:0"\ncert = "server.pem"\nkey = "server.key"\n'


def certificate_of_another_key(directory: Path) -> str:
    authority = Authority(directory)
    authority.issue("s1")
    authority.issue("s1", file="other")
    return '[native.tls]\nlisten = "127.0.0.1:0"\ncert = "server.pem"\nkey = "other.key"\n'


def torn_store(directory: Path) -> str:
    path = directory / "data/store.db"
    store_at(path)
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(8192))
    return ""


def foreign_store(directory: Path) -> str:
    db = sqlite3.connect(directory / "data/store.db")
    db.execute("CREATE TABLE theirs (x)")
    db.close()
    return ""


def cut_accounts(directory: Path) -> str:
    (directory / "data/accounts.db").write_bytes(b"")
    return ""


def clock_behind(directory: Path) -> str:
    (directory / "data/server.lock").touch()
    later = (directory / "data").stat().st_mtime + 3600
    os.utime(directory / "data/server.lock", (later, later))
    return ""


def program_missing(directory: Path) -> str:
    return '[handlers.x]\ncommand = ["./no-such-program"]\ntypes = ["x"]\n'


def socket_in_the_way(directory: Path) -> str:
    (directory / "here").write_text("mine")
    return '[native]\nunix = "here"\n'


def socket_nowhere(directory: Path) -> str:
    return '[informer]\nunix = "no/where"\n'


def fabric_nowhere(directory: Path) -> str:
    return '[fabric]\nlisten = ["ipc://no/where"]\n'


def peer_away(directory: Path) -> str:
    return '[servers.s2]\nnative = "127.0.0.1:1"\n'


@pytest.mark.parametrize(
    ("fault", "check", "cause", "remedy"),
    [
        (wrong_mode, "data", "mode 0755", "chmod 700"),
        (dangling_data_dir, "data", "data: leads to no directory", "name another one"),
        (open_key, "key", "mode 0644", "chmod 600"),
        (public_of_another_key, "key", "server.key.pub: is not the public key of", "write that key there"),
        (own_key_listed, "key", "[servers.s2] key: is this server's own key", "list that of s2"),
        (open_token, "key", "can be read by others", "chmod 600"),
        (certificate_ends, "certificate", "expires in 3.0 days", "renew it"),
        (certificate_of_another_key, "certificate", "is not the certificate of that key", "name a pair"),
        (torn_store, "store", "store.db", "put a backup in its place"),
        (foreign_store, "store", "not a store of Bester's", "name another file"),
        (cut_accounts, "store", "accounts.db: is empty", "put a backup in its place"),
        (clock_behind, "clock", "the clock is behind", "NTP"),
        (program_missing, "handler program", "no program ./no-such-program", "install it"),
        (socket_in_the_way, "port", "here: is a file, not a socket", "remove it or name another path"),
        (socket_nowhere, "port", "where: there is no directory", "make it, or name another path"),
        (fabric_nowhere, "port", "where: there is no directory", "make it, or name another path"),
        (peer_away, "server away", "server s2 is away: Connection refused", "see that it runs"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_fault_of_a_file_is_named_with_its_remedy(
    directory: Path, fault: Callable[[Path], str], check: str, cause: str, remedy: str
) -> None:
    by = found(directory, fault(directory))
    (finding,) = by.pop(check)
    assert cause in finding.text
    assert remedy in finding.remedy
    assert set(by) <= {"server away"}


def test_a_directory_of_all_users_is_not_to_be_closed_to_them(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory.chmod(0o755)
    monkeypatch.setenv("HOME", str(directory))
    file = directory / "bester.toml"
    for place in ("/tmp", str(directory)):
        file.write_text(f'[server]\ndata_dir = "{place}"\n[native]\ntcp4 = "127.0.0.1:0"\n')
        (finding,) = (each for each in examine(file) if each.check == "data")
        assert (finding.level, finding.remedy) == ("error", "name a directory of Bester's own as [server] data_dir")


@pytest.mark.parametrize(("place", "check"), [("data", "data"), ("other", "store")])
def test_directory_that_cannot_be_written_to_is_named_with_its_remedy(directory: Path, place: str, check: str) -> None:
    (directory / "other").mkdir(mode=0o700)
    store_at(directory / place / "store.db")
    more = f'[store]\nurl = "sqlite:{place}/store.db"\n'
    assert found(directory, more) == {}
    command = [str(BESTER), "check", "-c", str(directory / "bester.toml"), "--json"]
    if os.geteuid() == 0:  # who is not kept off by a mode
        if not may_mount():
            pytest.skip("root that may not mount can write everywhere")
        mount = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'
        command = ["unshare", "-m", "sh", "-c", mount, str(directory / place), *command]
    else:
        (directory / place).chmod(0o500)
    lines = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
    (directory / place).chmod(0o700)
    errors = [row for row in map(json.loads, lines) if row["level"] == "error"]
    assert [row["check"] for row in errors] == [check]
    cause, remedy = ("read-only", "mount it") if os.geteuid() == 0 else ("cannot be written to", "chmod 700")
    assert cause in errors[0]["text"]
    assert remedy in errors[0]["remedy"]


@pytest.mark.skipif(not may_mount(), reason="takes a disk of its own, which root mounts")
def test_disk_with_room_for_no_more_files_is_named(directory: Path) -> None:
    """A start on it failed with `unable to open database file`, and nothing was found wrong."""
    found(directory)
    command = [str(BESTER), "check", "-c", str(directory / "bester.toml"), "--json"]
    mount = 'mount -t tmpfs -o mode=700,size=300m,nr_inodes=5 tmpfs "$0" && exec "$@"'
    command = ["unshare", "-m", "sh", "-c", mount, str(directory / "data"), *command]
    rows = map(json.loads, subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines())
    (error,) = (row for row in rows if row["level"] == "error")
    assert error["check"] == "disk"
    assert "room for 4 more files (inodes)" in error["text"]


def test_port_that_another_program_holds_is_named_with_its_process(directory: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        (finding,) = found(directory, f'[native]\ntcp4 = "127.0.0.1:{port}"\n')["port"]
    assert f"127.0.0.1:{port} is held by" in finding.text
    if Path("/proc/net/tcp").exists():
        assert f"process {os.getpid()}" in finding.text


def test_command_prints_lines_and_objects_and_fails_for_errors_alone(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = directory / "bester.toml"
    found(directory, peer_away(directory))
    assert run(["check", "-c", str(file)]) == 0, "a warning is no error"
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("warning  server away") for line in lines)
    (directory / "data").chmod(0o755)
    assert run(["check", "-c", str(file), "--json"]) == 1
    rows: list[dict[str, Any]] = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {"check", "level", "text", "remedy"} == set(rows[0])
    assert [row["check"] for row in rows if row["level"] == "error"] == ["data"]
    file.write_text("[natve]\n")
    assert run(["check", "-c", str(file)]) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("error    config")
    assert "natve" in line
    assert run(["check", "-c", str(directory / "none.toml")]) == 1


def test_module_that_a_start_would_miss_is_found(directory: Path) -> None:
    (finding,) = found(directory, '[handlers.chat]\napp = "shop.chat:app"\n')["handler program"]
    assert finding.level == "error"
    assert finding.text.startswith("[handlers.chat] app: there is no module 'shop.chat' in ")
    assert finding.remedy == "correct its name, or install it"
    (directory / "shop").mkdir()
    (directory / "shop/chat.py").touch()
    assert found(directory, '[handlers.chat]\napp = "shop.chat:app"\n') == {}


def test_nothing_is_said_to_be_made_in_a_data_directory_that_cannot_be_used(directory: Path) -> None:
    found(directory)
    (directory / "data").chmod(0o755)
    rows = examine(directory / "bester.toml")
    assert [each.check for each in rows if each.level == "error"] == ["data"]
    assert [each.text for each in rows if "is made at the first start" in each.text] == []
