"""Reloading a configuration: all parts or none, and a line that names what a restart applies."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from bester.broker.config import Config, defaults
from bester.broker.config_file import load
from bester.broker.reload import Prepare, Reloader, changes
from bester.broker.tls_files import NotYetValidError
from bester.broker.wire.codes import ConfigError
from tests.pipes import fed


def config(tmp_path: Path) -> Config:
    return defaults(tmp_path)


def test_changed_keys_are_named(tmp_path: Path) -> None:
    old = config(tmp_path)
    new = replace(
        old,
        auth="open",
        native=replace(old.native, max_frame=2048),
        fabric=replace(old.fabric, curve=True),
        notices=("x",),
    )
    assert changes(old, new) == ["native.max_frame", "fabric.curve", "auth"]
    assert changes(old, old) == []


@pytest.mark.parametrize("mistaken", ["first", "second", "reader"])
def test_a_mistake_in_one_part_applies_none(tmp_path: Path, mistaken: str, caplog: pytest.LogCaptureFixture) -> None:
    applied: list[str] = []
    released: list[str] = []

    def read() -> Config:
        if mistaken == "reader":
            raise ConfigError("bester.toml:3: a mistake")
        return replace(config(tmp_path), auth="open")

    def part(name: str) -> Prepare:
        def prepare(new: Config, opened: ExitStack) -> Callable[[], None]:
            if name == mistaken:
                raise OSError(2, "No such file", "cert.pem")
            opened.callback(released.append, name)
            return lambda: applied.append(name)

        return prepare

    reloader = Reloader(config(tmp_path), read)
    reloader.add(["auth"], part("first"))
    reloader.add(["servers"], part("second"))
    with caplog.at_level(logging.INFO, "bester"):
        assert not reloader.reload()
    assert released == (["first"] if mistaken == "second" else [])
    said = {"first": "cert.pem: No such file", "second": "cert.pem: No such file", "reader": "bester.toml:3: a mistake"}
    assert applied == [] and f"stays as it was: {said[mistaken]}" in caplog.text and reloader.config.auth == "accounts"


def test_what_no_part_applies_is_named_each_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    new = replace(config(tmp_path), auth="open", accept="none")
    released: list[str] = []

    def prepare(new: Config, opened: ExitStack) -> Callable[[], None]:
        opened.callback(released.append, "auth")
        return lambda: None

    reloader = Reloader(config(tmp_path), lambda: new)
    reloader.add(["auth"], prepare)
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.INFO, "bester"):
            assert reloader.reload()
        assert "a restart applies accept" in caplog.text and "auth" not in caplog.text
        assert released == []  # what was opened is in use


@pytest.mark.parametrize(
    ("number", "kind", "tries"),
    [(errno.EMFILE, ConfigError, 2), (errno.ENOENT, NotYetValidError, 2), (errno.ENOENT, ConfigError, 1)],
)
async def test_what_passes_by_itself_is_tried_again_at_the_next_look_and_a_mistake_is_not(
    tmp_path: Path, number: int, kind: type[ConfigError], tries: int
) -> None:
    file = tmp_path / "bester.toml"
    file.touch()
    tried: list[Config] = []

    def prepare(new: Config, opened: ExitStack) -> Callable[[], None]:
        tried.append(new)
        if len(tried) == 1:
            try:
                raise OSError(number, os.strerror(number))
            except OSError as error:
                raise kind(f"cannot read it: {error.strerror}") from None
        return lambda: None

    base = replace(config(tmp_path), path=file)
    reloader = Reloader(base, lambda: base)
    reloader.add(["auth"], prepare)
    reloader.start()
    try:
        file.write_text("# changed")
        for _ in range(3):
            reloader.look()
    finally:
        reloader.close()
    assert len(tried) == tries


async def test_file_that_is_being_written_is_not_reloaded_before_it_stays_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "bester.toml"
    file.write_text("# all\n")
    base = replace(config(tmp_path), path=file)
    read: list[str] = []

    def prepare(new: Config, opened: ExitStack) -> Callable[[], None]:
        read.append(file.read_text())
        return lambda: None

    reloader = Reloader(base, lambda: base)
    reloader.add(["auth"], prepare)
    reloader.start()
    try:
        for text in ("# the first half\n", "# the first half\n# the second half\n"):
            file.write_text(text)
            reloader.look()
        assert read == []
        for _ in range(2):
            reloader.look()
    finally:
        reloader.close()
    assert read == ["# the first half\n# the second half\n"]


def test_file_that_is_gone_empty_or_a_pipe_leaves_everything_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The file of the working directory, which nobody named: without it the defaults would be read."""
    monkeypatch.chdir(tmp_path)
    file = Path("bester.toml")
    lines = '[server]\nname = "s1"\n[servers.s2]\nnative = "127.0.0.1:9"\n'
    file.write_text(lines)
    reloader = Reloader(load(), load)
    applied: list[Config] = []

    def prepare(new: Config, opened: ExitStack) -> Callable[[], None]:
        return lambda: applied.append(new)

    reloader.add(["servers"], prepare)

    def why() -> str:
        caplog.clear()
        assert not reloader.reload()
        return caplog.text

    file.unlink()
    assert "stays as it was: bester.toml: is not there any more; put it back" in why()
    file.touch()
    assert "stays as it was: bester.toml: is empty; put its lines back" in why()
    file.unlink()
    os.mkfifo(file)
    with fed(file):
        assert "stays as it was: bester.toml: is a pipe or a device, which is read at the start alone" in why()
    file.unlink()
    file.mkdir()
    assert "stays as it was: bester.toml: cannot read it: Is a directory" in why()
    file.rmdir()
    assert applied == []
    file.write_text(lines.replace("s2", "s3"))
    assert reloader.reload() and list(applied[0].servers) == ["s3"]
