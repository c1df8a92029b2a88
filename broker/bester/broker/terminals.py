"""Signals by which a terminal ends or stops its programs; a serving program outlives them."""

from __future__ import annotations

import logging
import signal

from bester.broker.logs import facts

log = logging.getLogger("bester")


def outlive_terminals() -> None:
    """Ignore SIGHUP, sent by a closing terminal, until the loop handles it, and SIGTTOU, which would stop a background
    program that writes its log. A serving program calls this function first and last."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)


def hung_up() -> None:
    """Log that a SIGHUP changed nothing, as its sender expects files to be read again."""
    text = "SIGHUP: no file was reloaded; restart the program to apply changes of its files"
    log.warning(text, extra=facts("not-reloaded", signal="SIGHUP"))
