"""Spans for OpenTelemetry: of each message with a sampled `traceparent`, where the shell exports spans. Pure.

The spans are those of the waterfall, read from the ring of the trace when the message's report is due; messages without
a traceparent cost nothing.
"""

from __future__ import annotations

from bester.broker.core.cases import Case
from bester.broker.core.effects import Effects, Spans
from bester.broker.core.trace import Trace
from bester.broker.core.waterfall import spans_of
from bester.broker.wire.messages import Message
from bester.broker.wire.traceparent import child, is_sampled, span_id

MAX_SPANS = 200
"""Spans of one message that are exported: a message to thousands of users has one for each."""


class Tracing:
    """Exports the spans of traced messages, where `exports`."""

    def __init__(self, trace: Trace, out: Effects, *, exports: bool) -> None:
        self._trace = trace
        self._out = out
        self._exports = exports

    def enter(self, case: Case, type_: str, parent: str, now: float) -> str:
        """Take in a message that enters with a sound traceparent. Returns the one for its handlers and for other
        servers: a child's, where this server has a span of its own."""
        if not self._exports or not is_sampled(parent):
            return parent
        case.watchers = (*case.watchers, _Watch(self._trace, self._out, type_, parent, now))
        return child(parent, span_id(case.id))


class _Watch:
    """Waits for the end of one case."""

    def __init__(self, trace: Trace, out: Effects, type_: str, parent: str, entered: float) -> None:
        self._trace = trace
        self._out = out
        self._type = type_
        self._parent = parent
        self._entered = entered

    def on_case_ended(self, case: Case, answer: Message | None) -> None:
        """Export the spans of the message."""
        steps = self._trace.of(case.root, {case.id}, after=self._entered)
        begin_ms = self._trace.wall_ms(self._entered)
        end_ms = max((step["at_ms"] for step in steps), default=begin_ms)
        spans = spans_of(steps)[:MAX_SPANS]
        self._out.calls.append(
            Spans(self._parent, case.id, self._type, begin_ms, max(begin_ms, end_ms), case.reason, spans)
        )
