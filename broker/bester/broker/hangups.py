"""The signals by which a terminal ends or stops what was started in it. A program that serves outlives them."""

from __future__ import annotations

import logging
import signal

from bester.broker.logs import facts

log = logging.getLogger("bester")


def outlive_terminals() -> None:
    """Ignore the SIGHUP of a terminal that closes, until the loop has its own answer to it, and the SIGTTOU that would
    stop a program in the background for writing its log. A program that serves calls this first, and last."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)


def hung_up() -> None:
    """Say that a SIGHUP changed nothing: whoever sends one expects files to be read again."""
    text = "SIGHUP: nothing was read again; restart the program to have changes of its files take effect"
    log.warning(text, extra=facts("not-reloaded", signal="SIGHUP"))
