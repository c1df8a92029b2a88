"""Lives of a child: when the child is started again, when given up, and what brings a given-up child back."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import pytest

from bester.bridge.children.backoff import LONGEST_S, STEADY_S
from bester.bridge.children.changes import MAX_FILES, seen
from bester.bridge.children.lives import HOPELESS_LIVES, MAX_LIVES, RETRY_S, Lives, State
from bester.broker.core.settings import Limits
from bester.handlers.supervising import LAST_RESTART_S

START_S = 5.0
"""From the start of a handler until it serves; mostly less than one second."""


class Life:
    """Child on a clock of its own."""

    def __init__(self) -> None:
        self.lives = Lives()
        self.now = 0.0

    def lives_for(self, seconds: float, *, serves: bool = False, hopeless: bool = False) -> float | None:
        """Run a life of `seconds`; return the wait after the life."""
        self.lives.started(self.now)
        if serves:
            self.lives.served()
        self.now += seconds
        wait_s = self.lives.on_exit(self.now, "ended", hopeless=hopeless)
        self.now += wait_s or 0.0
        return wait_s


@pytest.mark.parametrize(("hopeless", "lives", "then"), [(True, HOPELESS_LIVES, None), (False, MAX_LIVES, RETRY_S)])
def test_child_that_never_serves_is_given_up(hopeless: bool, lives: int, then: float | None) -> None:
    life = Life()
    waits = [life.lives_for(0.1, hopeless=hopeless) for _ in range(lives - 1)]
    assert all(after >= before for before, after in pairwise(wait for wait in waits if wait is not None))
    assert (life.lives.state, None in waits) == (State.WAITING, False)
    assert life.lives_for(0.1, hopeless=hopeless) == then
    assert (life.lives.state, life.lives.count) == (State.GIVEN_UP, lives)


def test_child_that_serves_is_never_given_up() -> None:
    """A message may have ended the child: its sender must not take a whole type away."""
    life = Life()
    waits = [life.lives_for(0.01, serves=True) for _ in range(3 * MAX_LIVES)]
    assert (waits[-1], life.lives.state) == (LONGEST_S, State.WAITING)


def test_long_life_without_serving_starts_the_count_again() -> None:
    life = Life()
    for _ in range(3):
        for _ in range(MAX_LIVES - 1):
            life.lives_for(0.1)
        life.lives_for(STEADY_S)
    assert life.lives.state is State.WAITING


def test_given_up_child_stays_so_until_it_serves() -> None:
    life = Life()
    for _ in range(MAX_LIVES):
        life.lives_for(0.1)
    assert life.lives_for(0.1) == RETRY_S, "one try, no more"
    life.lives.started(life.now)
    states = [(life.lives.state, life.lives.served()) for _ in range(2)]
    assert states == [(State.GIVEN_UP, True), (State.RUNNING, False)]


def test_change_gives_all_lives_again() -> None:
    life = Life()
    for _ in range(HOPELESS_LIVES):
        life.lives_for(0.1, hopeless=True)
    life.lives.changed()
    waits = [life.lives_for(0.1, hopeless=True) for _ in range(HOPELESS_LIVES)]
    assert waits[0] == pytest.approx(0.1)
    assert waits[-1] is None


# --- changes of files ---

APP = ("python", "-m", "bester.handlers", "shop.chat:app", "--child", "0")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "chat.py").write_text("x")
    (tmp_path / "other.py").write_text("y")
    (tmp_path / "run.sh").write_text("z")
    return tmp_path


@pytest.mark.parametrize("name", ["shop/chat.py", "shop/new.py", "shop/__init__.py", "other.py", "more.py"])
def test_module_beside_an_app_is_a_change(name: str, directory: Path) -> None:
    before = seen(APP, directory)
    assert seen(APP, directory) == before
    (directory / name).write_text("mended")
    assert seen(APP, directory) != before


def test_package_and_program_are_changes_and_data_is_not(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = directory / "site-packages"
    installed.mkdir()
    monkeypatch.syspath_prepend(installed)
    command = (str(directory / "run.sh"), "late.js", "\0", "x" * 5000)
    for name in ("late.js", "run.sh", "site-packages/nowhere"):
        before = seen(command, directory)
        (directory / "data.json").write_text(name)
        assert seen(command, directory) == before
        (directory / name).write_text("mended")
        os.utime(directory / name, (1, 1))
        assert seen(command, directory) != before


def test_large_folder_is_not_read_whole(directory: Path) -> None:
    for number in range(MAX_FILES + 50):
        (directory / f"m{number}.py").touch()
    assert len(seen(("run.sh",), directory)) <= MAX_FILES + 50
    assert seen(("run.sh",), directory / "gone") == seen((), directory / "gone")


def test_every_wait_is_shorter_than_that_of_a_dead_handlers_messages() -> None:
    """Longer waits would cost, after a few deaths over one message, all the other messages that were held."""
    lives, now, longest_s = Lives(), 0.0, LAST_RESTART_S  # the waits of `bester up`, and of several workers
    for _ in range(20):
        lives.started(now)
        lives.served()
        wait_s = lives.on_exit(now, "killed", hopeless=False)
        assert wait_s is not None
        longest_s = max(longest_s, wait_s)
        now += wait_s
    assert longest_s + START_S <= Limits().handler_again_s
