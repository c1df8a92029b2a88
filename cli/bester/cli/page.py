"""Addresses of operators' pages: printed, and opened where this session has a screen."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import webbrowser
from collections.abc import Mapping


def has_screen(environment: Mapping[str, str]) -> bool:
    """Return whether a browser would have a window: one in the terminal would take the place of the program there."""
    return sys.platform == "darwin" or any(environment.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))


def open_in_browser(url: str) -> None:
    """Open an address in the user's browser, if there is a screen; a browser that fails is no error of this program."""
    if has_screen(os.environ):  # on a thread: some browsers end before they return, and a server must not wait
        threading.Thread(target=_open, args=(url,), name="browser", daemon=True).start()


def _open(url: str) -> None:
    try:
        webbrowser.open(url)
    except (OSError, webbrowser.Error, subprocess.SubprocessError):
        pass  # the address is printed as well
