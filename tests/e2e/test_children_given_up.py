"""Children that do not come up are given up, and tried again when something has changed."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest

from bester.bridge.children import backoff, supervisor
from bester.bridge.children.lives import HOPELESS_LIVES, State
from bester.bridge.children.plan import Child, plan
from bester.bridge.children.supervisor import Children
from bester.broker import config_file
from tests.e2e.children_stand import STEADY, directory, log_everything, running, until

__all__ = ["directory", "log_everything"]  # fixtures


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the lives follow each other without long waits, and look for changes often."""
    monkeypatch.setattr(backoff, "FIRST_S", 0.01)
    monkeypatch.setattr(supervisor, "CHANGE_LOOK_S", 0.05)


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("def (:", "chat.py, line 1: invalid syntax"),
        (
            "import nowhere_at_all",
            "needs the module 'nowhere_at_all', which is not installed: pip install nowhere_at_all",
        ),
        ("app = 3", "chat:app is a int, not an App of bester.handlers"),
        (
            "from bester.handlers import App\napp = App()",
            'the app has no handlers: put @app.handler("TYPE") above a function',
        ),
        (
            "from bester.handlers import App as A\napp = A()\nfor name in 'ab':\n    app.handler(name)(lambda m: None)",
            "the app has no handler of 'chat', only of a, b",
        ),
    ],
)
async def test_broken_app_is_given_up_and_comes_back_when_its_file_changes(
    source: str, why: str, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (directory / "chat.py").write_text(source)
    (directory / "bester.toml").write_text('[handlers.chat]\napp = "chat:app"\n')
    config = config_file.load(directory / "bester.toml")
    children = Children(plan(config, f"ipc://{directory}/f.sock"), directory)
    gone: list[frozenset[str]] = []
    children.on_given_up = gone.append
    await children.start()
    try:
        await until(lambda: gone)
        (given_up,) = [
            record for record in caplog.records if record.levelno == logging.ERROR and "given up" in record.message
        ]
        assert why in given_up.message
        assert gone == [{"chat"}]
        assert (children.lives["chat"].state, children.lives["chat"].count) == (State.GIVEN_UP, HOPELESS_LIVES)
        assert why in children.lives["chat"].why
        assert caplog.text.count("starting it again") == HOPELESS_LIVES - 1
        (directory / "chat.py").write_text(
            "from bester.handlers import App\napp = App()\n@app.handler('chat')\ndef chat(m): ...\nprint('mended')\n"
        )
        await until(lambda: "chat | mended" in caplog.text)
        assert gone == [{"chat"}, set()]
        children.served("chat", ["chat"])
    finally:
        await children.stop()


async def test_missing_program_is_given_up_and_comes_back(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    program = directory / "run.sh"
    async with running(directory, Child("a", (str(program),), {"BESTER_TYPES": "a"})) as children:
        await until(lambda: children.lives["a"].state is State.GIVEN_UP)
        assert "it cannot be started: No such file or directory; it is tried again as soon as" in caplog.text
        program.write_text("#!/bin/sh\necho back\nexec sleep 600\n")
        program.chmod(0o755)
        await until(lambda: "a | back" in caplog.text)


async def test_type_is_given_up_with_its_last_worker(directory: Path) -> None:
    types = {"BESTER_TYPES": "a,b"}
    gone: list[frozenset[str]] = []
    children = Children([Child("x", ("/none",), types), Child("y", (sys.executable, "-c", STEADY), types),
                         Child("z", ("/none",), {"BESTER_TYPES": "b,c"})], directory)  # fmt: skip
    children.on_given_up = gone.append
    await children.start()
    try:
        await until(lambda: all(children.lives[name].state is State.GIVEN_UP for name in "xz"))
        assert gone[-1] == {"c"}, "a and b have a worker left"
    finally:
        await children.stop()


async def test_child_that_has_served_is_not_given_up(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    child = Child("a", (sys.executable, "-c", "exit(2)"), {"BESTER_TYPES": "a"}, lifeline=True)
    async with running(directory, child) as children:
        for lives in range(1, HOPELESS_LIVES + 2):
            await until(lambda: children.lives["a"].count >= lives)  # noqa: B023 (called before the loop goes on)
            children.served("other name", ["a"])
        assert children.lives["a"].state is not State.GIVEN_UP


async def test_named_handler_vouches_for_its_own_child_alone(directory: Path) -> None:
    types = {"BESTER_TYPES": "a"}
    broken = Child("broken", (sys.executable, "-c", "exit(2)"), types, lifeline=True)
    async with running(directory, broken, Child("good", (sys.executable, "-c", STEADY), types)) as children:
        for life in range(1, HOPELESS_LIVES + 1):
            await until(lambda: children.lives["broken"].count >= life)  # noqa: B023 (called before the loop goes on)
            children.served("good", ["a"])
        await until(lambda: children.lives["broken"].state is State.GIVEN_UP)
        children.served("good", ["a"])
        assert children.lives["broken"].state is State.GIVEN_UP
        assert children.lives["good"].state is State.RUNNING
