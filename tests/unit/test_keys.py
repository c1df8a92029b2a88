"""Key files: made whole or not at all, read with care, and never shown."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import zmq

from bester.broker.keys import LinkKeys, link_keys, new_pair, read_pair, server_pair, write_secret
from bester.broker.wire.codes import ConfigError
from bester.broker.wire.keys import key_fault

NAMES = ("KEY", "SERVER-KEY")
DEADLINE_S = 30.0
A_MOMENT_S = 0.1
"""Time in which a thread that does not wait for the lock would have replaced the file."""


def test_a_pair_is_made_once(tmp_path: Path) -> None:
    file = tmp_path / "server.key"
    first = server_pair(file)
    assert server_pair(file) == first == read_pair(file)
    assert file.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["server.key"]
    assert first.secret not in repr(LinkKeys(first, first.public))


def test_a_key_file_is_never_replaced(tmp_path: Path) -> None:
    file = tmp_path / "k"
    write_secret(file, new_pair().secret)
    before = file.read_bytes()
    with pytest.raises(FileExistsError):
        write_secret(file, new_pair().secret)
    assert file.read_bytes() == before and os.listdir(tmp_path) == ["k"]


def test_a_process_that_is_killed_before_its_key_has_a_name_leaves_nothing(tmp_path: Path) -> None:
    """Kill the process where the content waits for the disk."""
    text = """
import os, signal, sys
from pathlib import Path
from bester.broker.keys import new_pair, write_secret
os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
write_secret(Path(sys.argv[1]), new_pair().secret)
"""
    ended = subprocess.run([sys.executable, "-c", text, str(tmp_path / "k")], timeout=DEADLINE_S, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert os.listdir(tmp_path) == []


@pytest.fixture
def link_called(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Make hard links fail as on FAT, and tell that one was tried."""
    tried = threading.Event()

    def fails(source: str, target: str, **_: Any) -> None:
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), source, None, target)
        tried.set()
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), source, None, target)

    monkeypatch.setattr(os, "link", fails)
    return tried


def test_a_pair_is_made_once_where_files_have_no_hard_links(tmp_path: Path, link_called: threading.Event) -> None:
    file = tmp_path / "server.key"
    first = server_pair(file)
    assert link_called.is_set() and server_pair(file) == first
    assert file.stat().st_mode & 0o777 == 0o600
    with pytest.raises(FileExistsError):
        write_secret(file, new_pair().secret)
    assert read_pair(file) == first and os.listdir(tmp_path) == ["server.key"]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_directory_that_cannot_be_waited_for_has_its_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Some network mounts do not know how; the key has its name by then."""
    real = os.fsync

    def fails(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fails)
    assert server_pair(tmp_path / "server.key") == server_pair(tmp_path / "server.key")


def test_a_directory_that_may_be_written_and_not_read_has_its_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def fails(path: Any, flags: int, *mode: int, **more: Any) -> int:
        if flags & os.O_DIRECTORY:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return real(path, flags, *mode, **more)

    monkeypatch.setattr(os, "open", fails)
    assert server_pair(tmp_path / "server.key") == server_pair(tmp_path / "server.key")


def test_of_two_new_files_without_hard_links_the_first_stays(tmp_path: Path, link_called: threading.Event) -> None:
    """Another program makes the file between the look for it and the renaming, with the lock of its directory."""
    file, ended = tmp_path / "k", threading.Event()
    outcomes: list[BaseException | None] = []

    def write() -> None:
        try:
            write_secret(file, new_pair().secret)
            outcomes.append(None)
        except FileExistsError as error:
            outcomes.append(error)
        ended.set()

    directory = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(directory, fcntl.LOCK_EX)
    thread = threading.Thread(target=write)
    try:
        thread.start()
        assert link_called.wait(DEADLINE_S)
        assert not ended.wait(A_MOMENT_S)
        file.write_text("theirs")
    finally:
        os.close(directory)
        thread.join(DEADLINE_S)
    assert [type(each) for each in outcomes] == [FileExistsError]
    assert file.read_text() == "theirs" and os.listdir(tmp_path) == ["k"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "the file is empty"),
        (b"\n", "the file is empty"),
        (b"x" * 39, "40 characters long (Z85), and not 39"),
        (b"~" * 40, "no other characters"),
        (b"#" * 40, "these 40 characters are no key"),
        (b"\xff" * 40, "no other characters"),
        (b"0" * 100_000, "40 characters long"),
    ],
)
def test_a_damaged_file_is_one_line_without_its_content(tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "server.key"
    file.touch(0o600)
    file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        server_pair(file)
    assert said in caught.value.text and "\n" not in caught.value.text
    assert len(content) < 39 or content.decode("latin-1") not in caught.value.text
    assert file.read_bytes() == content


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666, 0o610])
def test_a_file_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    file = tmp_path / "server.key"
    server_pair(file)
    file.chmod(mode)
    with pytest.raises(ConfigError, match="chmod 600"):
        read_pair(file)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo", 0o600)
    (tmp_path / "dir").mkdir(0o700)
    (tmp_path / "dangling").symlink_to("nowhere")
    for name in ("fifo", "dir", "dangling", "gone"):
        with pytest.raises(ConfigError):
            read_pair(tmp_path / name)


def test_keys_of_a_link(tmp_path: Path) -> None:
    file, server = tmp_path / "k", new_pair().public
    pair = server_pair(file)
    far, near = "tcp://10.0.0.1:2225", "tcp://127.0.0.1:2225"
    assert link_keys(far, file, f" {server}\n", NAMES) == LinkKeys(pair, server)
    assert link_keys(near, file, server, NAMES) == LinkKeys(pair, server)
    assert link_keys(near, None, None, NAMES) is None
    assert link_keys("ipc://x", file, server, NAMES) is None
    for endpoint, key, other in ((far, None, None), (far, file, None), (far, None, server), (far, file, "x")):
        with pytest.raises(ConfigError, match="KEY"):
            link_keys(endpoint, key, other, NAMES)


def test_faults_of_keys_are_those_of_zeromq() -> None:
    chance = random.Random(7)
    alphabet = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
    for _ in range(200):
        text = "".join(chance.choice(alphabet) for _ in range(40))
        with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
            try:
                socket.curve_serverkey = text.encode()
                good = True
            except zmq.ZMQError:
                good = False
        assert (key_fault(text) is None) == good, text
