"""Environment of declared handlers: the server's own, without the password of its store."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path

import pytest

from bester.bridge.children.plan import Child, plan
from bester.bridge.children.supervisor import Children
from bester.broker import config_file
from tests.live import DEADLINE_S

SECRET = "not-for-handlers"
PROGRAM = (
    '#!/bin/sh\necho "password: ${PGPASSWORD:-none}, other: $OTHER_OF_TEST, types: $BESTER_TYPES"\nexec sleep 600\n'
)
POSTGRES = '[store]\nurl = "postgresql://bester@db.example/bester"\n'


def planned(directory: Path, store: str) -> list[Child]:
    """Return the children of a configuration with a handler of each kind."""
    (directory / "show.sh").write_text(PROGRAM)
    (directory / "show.sh").chmod(0o755)
    (directory / "chat.py").touch()
    handlers = '[handlers.a]\ncommand = ["./show.sh"]\n[handlers.b]\napp = "chat:app"\nworkers = 2\n'
    handlers += '[handlers.c]\nsocket = "c.sock"\n[handlers.d]\nauth = true\ncommand = ["./show.sh"]\n'
    handlers += '[handlers.e]\nshadow = true\ncommand = ["./show.sh"]\n'
    (directory / "bester.toml").write_text(store + handlers)
    return plan(config_file.load(directory / "bester.toml"), "ipc:///x")


def test_no_child_gets_the_password_of_the_store(tmp_path: Path) -> None:
    assert [set(child.withheld) for child in planned(tmp_path, POSTGRES)] == [{"PGPASSWORD"}] * 6
    for store in ("", '[store]\nurl = "memory:"\n', '[store]\nurl = "sqlite:own.db"\n'):
        assert [set(child.withheld) for child in planned(tmp_path, store)] == [set()] * 6  # the handlers' own variable


@pytest.mark.parametrize(("store", "password"), [(POSTGRES, "none"), ("", SECRET)])
async def test_started_child_sees_the_other_variables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, store: str, password: str
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("PGPASSWORD", SECRET)
    monkeypatch.setenv("OTHER_OF_TEST", "here")
    children = Children(planned(tmp_path, store)[:1], tmp_path)
    await children.start()
    try:
        async with asyncio.timeout(DEADLINE_S):
            while f"password: {password}, other: here, types: a" not in caplog.text:
                await asyncio.sleep(0.01)  # a record of the log gives no event
    finally:
        await children.stop()
    assert os.environ["PGPASSWORD"] == SECRET  # the server's own connections still find the password
