"""Reports of other servers in the native protocol, read: frame bodies in, outcomes out. No input from a peer raises."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Raw

from bester.bridge.native import BAD_JSON, NULL
from bester.broker.wire.codes import CODES
from bester.broker.wire.messages import Meta
from bester.broker.wire.notes import safe_note
from bester.broker.wire.outcomes import DELIVERED, QUEUED, SENT, failed

_fields = msgspec.json.Decoder(dict[str, Raw]).decode


class _ReportHeader(msgspec.Struct, gc=False):
    status: str
    messageType: str  # noqa: N815 (the protocol's spelling)


class _ReportPayload(msgspec.Struct, gc=False):
    reason: Any = None
    note: Any = None
    recipients: Any = None


class _Report(msgspec.Struct, gc=False):
    header: _ReportHeader
    payload: Raw = Raw(NULL)


_report = msgspec.json.Decoder(_Report).decode
_report_payload = msgspec.json.Decoder(_ReportPayload).decode


def outcome(body: bytes) -> tuple[str, Meta] | None:
    """Return the outcome of a forwarded message by another server's report, and the meta of a Forwarded; None where the
    frame is no status report. Named recipients show that the handler's commands were carried out there. The worst of
    their outcomes counts: `sent` at a server behind that one is `sent` here as well."""
    try:
        answer = _report(body)
    except BAD_JSON:
        return None
    if answer.header.messageType != "statusReport":
        return None
    try:
        payload = _report_payload(answer.payload)
    except BAD_JSON:
        payload = _ReportPayload()
    recipients = payload.recipients if type(payload.recipients) is dict else {}
    meta: Meta = {"reported": True}
    if answer.header.status == "good":
        queued = sum(1 for each in recipients.values() if each == QUEUED)
        if queued:
            meta["queued"] = queued
        return SENT if SENT in recipients.values() else QUEUED if queued else DELIVERED, meta
    if recipients:
        meta["carried"] = True
    reason = payload.reason if type(payload.reason) is str and payload.reason in CODES else "handler-failed"
    if type(payload.note) is str:
        meta["note"] = safe_note(payload.note)  # the original may be as long as a frame
    return failed(reason), meta


def is_object(body: bytes) -> bool:
    """Return whether a frame holds a JSON object, as every frame of the native protocol does."""
    try:
        _fields(body)
    except BAD_JSON:
        return False
    return True
