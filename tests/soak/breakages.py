"""A leak of a server, to see that a soak run finds it: `--break`."""

from __future__ import annotations

import os
from typing import Any

from tests.wall_clock import path

KEPT_BYTES = 2_000
"""Bytes kept of each connection."""


def set_leak() -> None:
    """Let the servers that are started from now on leak."""
    os.environ["PYTHONPATH"] = path(os.getcwd())
    os.environ["BESTER_TEST_IMPORTS"] = f"{__name__}:leak"


def leak() -> None:
    from bester.bridge import bridge

    kept: list[bytes] = []
    admit = bridge.Bridge.admit

    def keeping(self: Any, *given: Any) -> bool:
        kept.append(os.urandom(KEPT_BYTES))
        return admit(self, *given)

    broken: Any = bridge.Bridge
    broken.admit = keeping
