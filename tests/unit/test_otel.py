"""OpenTelemetry: a client's traceparent on its way, and the spans that an exporter gets."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from bester.bridge import native, native_writing
from bester.broker import otel
from bester.broker.core.effects import Link
from bester.broker.core.settings import Route, Settings
from bester.broker.wire.messages import Forward, Relay, Reply, Request
from bester.broker.wire.traceparent import child, is_sampled, sound, span_id
from tests.unit.core_stand import Stand, clients, handler, servers

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
ABOVE = "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{ABOVE}-01"
UNSAMPLED = f"00-{TRACE}-{ABOVE}-00"
S2 = Link("server", b"s2")


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        (PARENT, PARENT),
        (UNSAMPLED, UNSAMPLED),
        (f"cc-{TRACE}-{ABOVE}-01", PARENT),
        (f"cc-{TRACE}-{ABOVE}-01-what-comes-later", PARENT),
        (f"cc-{TRACE}-{ABOVE}-01x", None),
        (f"00-{TRACE}-{ABOVE}-01-more", None),
        (f"ff-{TRACE}-{ABOVE}-01", None),
        (f"00-{'0' * 32}-{ABOVE}-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (PARENT.upper(), None),
        (PARENT[:-1], None),
        (PARENT + "\n", None),
        (f" {PARENT}", None),
        (f"cc-{TRACE}-{ABOVE}-01-" + "x" * 10_000, None),
        ("", None), (None, None), (5, None), ([PARENT], None), (PARENT.encode(), None),
    ],
)  # fmt: skip
def test_form_of_a_traceparent(given: object, taken: str | None) -> None:
    assert sound(given) == taken


def test_child_belongs_to_the_same_trace() -> None:
    id_ = span_id("s1/b/1")
    assert (len(id_), int(id_, 16) != 0, span_id("s1/b/1") == id_, span_id("s1/b/2") == id_) == (16, True, True, False)
    assert sound(child(PARENT, id_)) == f"00-{TRACE}-{id_}-01"
    assert (is_sampled(PARENT), is_sampled(UNSAMPLED)) == (True, False)


def later(header: Any, **payload: Any) -> Any:
    body = json.dumps({"header": header, "payload": {"type": "chat", "data": {"traceparent": "x"}, **payload}}).encode()
    return native.later(body)


@pytest.mark.parametrize(
    "header", [None, {}, 5, [PARENT], {"traceparent": None}, {"traceparent": "x"}, {"traceparent": 5}, "traceparent"]
)
def test_header_without_a_sound_traceparent_says_nothing(header: Any) -> None:
    assert later(header).meta == {}


def test_traceparent_of_a_header_goes_with_the_message_and_its_options() -> None:
    assert later({"traceparent": PARENT}).meta == {"traceparent": PARENT}
    assert later({"other": 1, "traceparent": PARENT}, ttl_s=5, dedup="k").meta == {
        "traceparent": PARENT, "ttl_s": 5.0, "dedup": "k"
    }  # fmt: skip
    assert native.NULL and later({"traceparent": PARENT}).data == b'{"traceparent": "x"}'


def federated(*, spans: bool = False) -> Stand:
    routes = {"s2": Route("s2", fabric="ipc:///s2"), "n3": Route("n3", native="10.0.0.3:2223")}
    stand = Stand(Settings("s1", open_accounts=True, routes=routes, spans=spans))
    stand.take(stand.router.on_server_ready("s2", stand.now))
    return stand


def test_handlers_and_servers_get_the_traceparent() -> None:
    stand = federated()
    bridge, one, two = stand.bridge("ann"), stand.handler("one"), stand.handler("two")
    stand.submit(bridge, "one", traceparent=PARENT)
    assert stand.answer(one, handler("two"), servers("s2", "n3")).meta["traceparent"] == PARENT
    assert stand.request(two).meta["traceparent"] == PARENT
    assert stand.one(S2, Relay).meta["traceparent"] == PARENT
    forward = stand.one(bridge, Forward)
    assert forward.meta["traceparent"] == PARENT
    frame = native_writing.to_server(1, forward.type, forward.body, forward.meta)
    assert json.loads(frame[4:])["header"]["traceparent"] == PARENT
    stand.submit(bridge, "one", traceparent="00-no-traceparent-01")
    assert "traceparent" not in stand.request(one).meta
    assert stand.spans == []


def test_traceparent_of_a_listed_server_is_passed_on_and_of_no_other() -> None:
    stand = Stand(Settings("s1", open_accounts=True, accept="open", routes={"s2": Route("s2", fabric="ipc:///s2")}))
    chat = stand.handler("chat")
    for door, passed in (("ipc", PARENT), ("tcp", None)):
        stand.relay(stand.server("s2" if door == "ipc" else "s9", door), "chat", id="s2/x/1", traceparent=PARENT)
        assert stand.request(chat).meta.get("traceparent") == passed


class Collector:
    """An exporter as an operator would configure one, in memory."""

    def __init__(self) -> None:
        self.memory = InMemorySpanExporter()
        self.exporter = otel.Exporter(SimpleSpanProcessor(self.memory), "s1")

    def take(self, stand: Stand) -> dict[str, ReadableSpan]:
        for each in stand.spans:
            self.exporter.export(each)
        found = {span.name: span for span in self.memory.get_finished_spans()}
        self.exporter.close()
        return found


def test_spans_of_a_message_reach_the_exporter() -> None:
    stand = federated(spans=True)
    bridge, chat = stand.bridge("ann"), stand.handler("chat")
    stand.submit(bridge, "chat", traceparent=PARENT)
    request = stand.request(chat)
    passed = request.meta["traceparent"]
    stand.now += 0.25
    stand.reply(chat, request.token, clients("ann", "nobody"))
    stand.now += 0.5
    stand.deliver(bridge)
    spans = Collector().take(stand)
    whole = spans["chat process"]
    assert whole.context is not None and whole.parent is not None
    assert (f"{whole.context.trace_id:032x}", f"{whole.parent.span_id:016x}") == (TRACE, ABOVE)
    assert (whole.kind, whole.parent.is_remote) == (SpanKind.SERVER, True)
    assert passed == f"00-{TRACE}-{whole.context.span_id:016x}-01", "spans of the handler are below that of the server"
    assert whole.end_time is not None and whole.start_time is not None
    assert whole.end_time - whole.start_time == pytest.approx(750e6, abs=1e4)
    assert set(spans) == {"chat process", "handler chat", "delivery ann", "delivery nobody"}
    for name, span in spans.items():
        assert span.context is not None and span.parent is not None
        assert f"{span.context.trace_id:032x}" == TRACE
        assert name == "chat process" or span.parent.span_id == whole.context.span_id
    assert spans["delivery nobody"].status.status_code is StatusCode.ERROR
    assert (spans["delivery ann"].attributes or {})["bester.outcome"] == "delivered"
    assert whole.resource.attributes["service.instance.id"] == "s1"
    assert whole.status.description == "not-connected"


def test_only_sampled_messages_and_those_with_a_traceparent_are_exported() -> None:
    stand = federated(spans=True)
    bridge, chat = stand.bridge("ann"), stand.handler("chat")
    for parent in (None, UNSAMPLED, "?"):
        stand.submit(bridge, "chat", traceparent=parent)
        stand.say(chat, Reply(stand.one(chat, Request).token, 2, [], "no"))
    assert stand.spans == []
    stand.submit(bridge, "nobody", traceparent=PARENT)
    assert [each.reason for each in stand.spans] == ["unknown-type"]
    assert Collector().take(stand)["nobody process"].status.status_code is StatusCode.ERROR


@pytest.mark.parametrize(
    ("environment", "name"),
    [
        ({}, None),
        ({"OTEL_TRACES_EXPORTER": "none"}, None),
        ({"OTEL_TRACES_EXPORTER": "console"}, "console"),
        ({"OTEL_TRACES_EXPORTER": "console", "OTEL_SDK_DISABLED": "true"}, None),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, "otlp_proto_http"),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "otlp_proto_grpc"),
    ],
)
def test_environment_names_the_exporter(environment: dict[str, str], name: str | None) -> None:
    assert otel.exporter_name(environment) == name


def test_exporter_that_is_missing_is_named_once_and_the_server_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "carrier-pigeon")
    assert otel.configured("s1") is None
    (record,) = caplog.records
    assert "carrier-pigeon" in record.message and "pip install" in record.message
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
    exporter = otel.configured("s1")
    assert exporter is not None
    exporter.close()


def test_collector_that_hangs_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(otel, "CLOSE_S", 0.05)
    hangs, asked = threading.Event(), threading.Event()

    class Hanging(InMemorySpanExporter):
        def shutdown(self) -> None:
            asked.set()
            hangs.wait(60.0)

    otel.Exporter(SimpleSpanProcessor(Hanging()), "s1").close()
    assert asked.wait(30.0)
    hangs.set()
