"""Where the relative paths of a configuration start."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from bester.broker import besterd, config_file
from bester.broker.config import Config
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
