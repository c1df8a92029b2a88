"""The whole terminal as a screen that is drawn again and again, and keys that end the drawing.

The terminal is left as it was: at `q`, Ctrl-C, SIGTERM and SIGHUP alike.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

LOOK_S = 0.1
"""Time between two looks at the keys' end and the terminal's size."""
QUITS = b"qQ"
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Screen:
    """The terminal. `draw` returns the lines of a screen of so many rows, with a style for each."""

    def __init__(
        self, live: Live, keyboard: int | None, signals: list[int], draw: Callable[[int], Sequence[tuple[str, str]]]
    ) -> None:
        self._live = live
        self._signals = signals
        self._keyboard = keyboard
        self._draw = draw
        self._size: Any = None

    def show(self) -> None:
        """Draw anew."""
        self._size = self._live.console.size
        lines = [Text(text, style, no_wrap=True, overflow="crop") for text, style in self._draw(self._size.height)]
        self._live.update(Group(*lines), refresh=True)

    def quits(self, seconds: float, done: Callable[[], bool] = lambda: False) -> bool:
        """Wait so long, or until `done`, and follow the terminal's size; return at once whether a key was to quit.
        Raises KeyboardInterrupt and SystemExit for the signals."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and not done():
            if self._signals:
                raise KeyboardInterrupt if self._signals[0] == signal.SIGINT else SystemExit(128 + self._signals[0])
            if self._live.console.size != self._size:
                self.show()
            if self._keyboard is None:
                time.sleep(min(left, LOOK_S))
            elif select.select([self._keyboard], [], [], min(left, LOOK_S))[0]:
                keys = os.read(self._keyboard, 64)
                if not keys:
                    self._keyboard = None
                if any(key in QUITS for key in keys):
                    return True
        return False


def is_possible() -> bool:
    """Return whether standard output is a terminal that can be drawn on."""
    return sys.stdout.isatty() and not Console().is_dumb_terminal


@contextlib.contextmanager
def drawn(draw: Callable[[int], Sequence[tuple[str, str]]]) -> Iterator[Screen]:
    """Take the terminal, and give it back as it was."""
    with (
        _signals() as signals,
        _keys() as keyboard,
        Live(console=Console(), screen=True, auto_refresh=False) as live,
    ):
        screen = Screen(live, keyboard, signals, draw)
        screen.show()
        yield screen


@contextlib.contextmanager
def _keys() -> Iterator[int | None]:
    """Yield the descriptor of the keyboard, whose keys come at once and are not shown; None where there is none."""
    try:
        keyboard = sys.stdin.fileno()
        before = termios.tcgetattr(keyboard)
    except (AttributeError, OSError, ValueError, termios.error):  # no standard input, or no terminal
        yield None
        return
    tty.setcbreak(keyboard)
    now = termios.tcgetattr(keyboard)
    now[6][termios.VSUSP] = b"\0"  # Ctrl-Z would leave the shell on this screen
    termios.tcsetattr(keyboard, termios.TCSANOW, now)
    try:
        yield keyboard
    finally:
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Note signals that end the program, for a look between two drawings: an exception amid one could leave half of it.
    A second signal is not noted, but ends the program at once."""
    noted: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        if noted:
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)
        noted.append(number)

    heeded = [number for number in ENDING if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, note) for number in heeded}
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
