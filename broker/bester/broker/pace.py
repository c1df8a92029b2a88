"""A log that no client, handler or network can fill: each line of code that writes into it has a pace of its own."""

from __future__ import annotations

import logging
import time

from bester.broker.log_limits import LogLimits

PACED = {"paced": True}
"""The `extra` of a record that is let through: whoever writes it has bounded it already, or has no right to."""


class LogPace(logging.Filter):
    """Lets `notices.PER_SECOND` records a second of one line of our code through; the next one says how many were
    passed over. Records of other loggers than ours are not its business."""

    def __init__(self) -> None:
        super().__init__("bester")
        self._notices = LogLimits()

    def filter(self, record: logging.LogRecord) -> bool:
        """Say whether the record is written."""
        if not super().filter(record) or getattr(record, "paced", False):
            return True
        passed_over = self._notices.admit(f"{record.pathname}:{record.lineno}", time.monotonic())
        if passed_over:
            record.passed_over = passed_over
        return passed_over is not None
