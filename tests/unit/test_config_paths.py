"""Where the relative paths of a configuration start."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from bester.broker import besterd, config_file
from bester.broker.config import Config, defaults
from bester.broker.wire.codes import ConfigError

BESTERD = '{"network": {"types": ["unix"], "unix": {"address": "s"}}, "handlers": {"typeMap": {}}}'


READERS = pytest.mark.parametrize(
    ("read", "text"), [(config_file.load, "[server]\nname = 's1'\n"), (besterd.load, BESTERD)]
)


@READERS
def test_relative_paths_from_a_pipe_start_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Callable[[Path], Config], text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    reader, writer = os.pipe()
    with open(writer, "w") as pipe:
        pipe.write(text)
    with open(reader):
        config = read(Path(f"/dev/fd/{reader}"))
    assert config.directory == Path.cwd()
    assert config.server.data_dir.parent == Path.cwd()


@READERS
def test_so_do_those_from_a_file_behind_a_descriptor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Callable[[Path], Config], text: str
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").write_text(text)
    monkeypatch.chdir(tmp_path)
    with open("elsewhere/file") as file:  # as `-c /dev/stdin < FILE`
        config = read(Path(f"/dev/fd/{file.fileno()}"))
    assert config.directory == Path.cwd()
    assert read(Path("elsewhere/file")).directory == tmp_path / "elsewhere"


@READERS
def test_a_file_that_cannot_be_looked_at_is_a_fault_of_the_configuration(
    tmp_path: Path, read: Callable[[Path], Config], text: str
) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for path in (tmp_path / "loop", tmp_path / ("x" * 300)):
        with pytest.raises(ConfigError, match="cannot read it"):
            read(path)


def test_path_of_a_socket_is_utf_8(tmp_path: Path) -> None:
    """ZeroMQ takes no other, and no answer to `bester status` may name another: `bester check` found nothing wrong."""
    odd = tmp_path / os.fsdecode(b"\xff")
    odd.mkdir()
    (odd / "bester.toml").touch()
    with pytest.raises(ConfigError, match=r"fabric\.sock: not UTF-8, .*; name one that is"):
        config_file.load(odd / "bester.toml")
    with pytest.raises(ConfigError, match=r"fabric\.sock: not UTF-8"):
        defaults(odd)
    (odd / "bester.toml").write_text(f"[server]\ndata_dir = '{tmp_path}/data'\n[native]\nunix = 'n.sock'")
    with pytest.raises(ConfigError, match=r"\[native\] unix: .*n\.sock: not UTF-8"):
        config_file.load(odd / "bester.toml")
    (odd / "bester.toml").write_text(f"[server]\ndata_dir = '{tmp_path}/data'\n")
    assert config_file.load(odd / "bester.toml").fabric.listen == (f"ipc://{tmp_path}/data/fabric.sock",)
