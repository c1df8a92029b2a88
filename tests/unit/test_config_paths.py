"""Where the relative paths of a configuration start."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from bester.broker import besterd, config_file
from bester.broker.config import Config

BESTERD = '{"network": {"types": ["unix"], "unix": {"address": "s"}}, "handlers": {"typeMap": {}}}'


@pytest.mark.parametrize(("read", "text"), [(config_file.load, "[server]\nname = 's1'\n"), (besterd.load, BESTERD)])
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
