"""Export of spans by OpenTelemetry's SDK, where the SDK is installed and its environment names an exporter.

The variables are OpenTelemetry's own: `OTEL_TRACES_EXPORTER` names the exporter (`console`, or `otlp` with its
package), which reads its own ones; `OTEL_SDK_DISABLED` switches all off. No SDK is loaded where they name none.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from bester.broker.core.effects import Spans
from bester.broker.logs import facts
from bester.broker.wire.notes import describe
from bester.broker.wire.traceparent import span_id

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor

GROUP = "opentelemetry_traces_exporter"
DEFAULT_PROTOCOL = "http/protobuf"
OTLP = {"http/protobuf": "otlp_proto_http", "grpc": "otlp_proto_grpc"}
"""Exporters of OTLP by `OTEL_EXPORTER_OTLP_PROTOCOL`."""
CLOSE_S = 3.0
"""Time for the last spans at the end of the process; the SDK itself waits for 30 s."""
INSTALL = "pip install 'bester[otel]'"

log = logging.getLogger("bester.broker.otel")


def exporter_name(environment: Mapping[str, str] = os.environ) -> str | None:
    """Return the name of the exporter that the environment asks for, None where it asks for none."""
    name = environment.get("OTEL_TRACES_EXPORTER", "").strip()
    if name in ("", "none") or environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    if name == "otlp":
        protocol = environment.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or environment.get(
            "OTEL_EXPORTER_OTLP_PROTOCOL"
        )
        return OTLP.get(protocol or DEFAULT_PROTOCOL, name)
    return name


def configured(server: str) -> Exporter | None:
    """Return the exporter that the environment asks for. Log why, and return None, where there cannot be one: messages
    go on all the same."""
    name = exporter_name()
    if name is None:
        return None
    try:
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        found = next(iter(entry_points(group=GROUP, name=name)), None)
        if found is None:
            raise ImportError(f"no package brings an exporter of this name; for otlp: {INSTALL}")
        return Exporter(BatchSpanProcessor(found.load()()), server)
    except Exception as error:  # noqa: BLE001 (an exporter of strangers must not keep a server from its start)
        why = f"{describe(error)}; {INSTALL}" if isinstance(error, ModuleNotFoundError) else describe(error)
        log.warning(
            "no spans are exported: OTEL_TRACES_EXPORTER is %r: %s", name, why, extra=facts("no-spans", why=why)
        )
        return None


class Exporter:
    """Turns the spans of messages into those of the SDK, and hands them to its processor, which sends them aside."""

    def __init__(self, processor: SpanProcessor, server: str) -> None:
        from opentelemetry.sdk.resources import Resource

        self._processor = processor
        self._resource = Resource.create({"service.name": "bester", "service.instance.id": server})

    def close(self) -> None:
        """Send what is left, for CLOSE_S at most: a collector that is away must not hold up the end of a server."""
        closing = threading.Thread(target=self._processor.shutdown, name="spans", daemon=True)
        closing.start()
        closing.join(CLOSE_S)

    def export(self, message: Spans) -> None:
        """Export the spans of one message: one of the whole, with one for each part below it."""
        from opentelemetry.trace import SpanKind

        own = span_id(message.id)
        parts = [
            self._span(
                message.parent, span_id(f"{part['kind']} {part['id']} {part['where']} {part['from_ms']}"), own,
                f"{part['kind']} {part['where']}", part["from_ms"],
                message.to_ms if part["to_ms"] is None else part["to_ms"], SpanKind.INTERNAL,
                {"bester.id": part["id"], "bester.server": part["server"]}, part["outcome"],
            )
            for part in message.spans
        ]  # fmt: skip
        whole = self._span(
            message.parent, own, message.parent[36:52], f"{message.type} process", message.from_ms, message.to_ms,
            SpanKind.SERVER, {"messaging.system": "bester", "messaging.message.id": message.id}, message.reason,
        )  # fmt: skip
        for each in (*parts, whole):
            self._processor.on_end(each)

    def _span(
        self, parent: str, id_: str, above: str, name: str, from_ms: float, to_ms: float, kind: Any,
        attributes: dict[str, str], outcome: str | None,
    ) -> ReadableSpan:  # fmt: skip
        from opentelemetry.sdk.trace import ReadableSpan
        from opentelemetry.trace import SpanContext, Status, StatusCode, TraceFlags

        trace_id, flags = int(parent[3:35], 16), TraceFlags(int(parent[-2:], 16))
        failed = outcome is not None and outcome not in ("delivered", "sent", "queued")
        more = {} if outcome is None else {"bester.outcome": outcome}
        return ReadableSpan(
            name,
            context=SpanContext(trace_id, int(id_, 16), is_remote=False, trace_flags=flags),
            parent=SpanContext(trace_id, int(above, 16), is_remote=above == parent[36:52], trace_flags=flags),
            resource=self._resource,
            attributes=attributes | more,
            kind=kind,
            status=Status(StatusCode.ERROR, outcome) if failed else Status(),
            start_time=round(from_ms * 1e6),
            end_time=round(to_ms * 1e6),
        )
