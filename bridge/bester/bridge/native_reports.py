"""Reports of other servers in the native protocol, read: frame bodies in, outcomes out. No input from a peer raises."""

from __future__ import annotations

import msgspec
from msgspec import Raw

from bester.bridge.native import BAD_JSON, NULL
from bester.broker.wire.codes import CODES
from bester.broker.wire.json_text import has_more_values
from bester.broker.wire.messages import Meta
from bester.broker.wire.notes import safe_note
from bester.broker.wire.outcomes import DELIVERED, QUEUED, SENT, failed

MAX_RECIPIENTS = 65_536
"""Recipients that are read of one report: six times as many as a reply of this program has, in some tens of
milliseconds. A server chooses their number, up to a million."""
MAX_RECIPIENTS_BYTES = 6 * 1024 * 1024
"""Bytes of JSON of the recipients that are read: a reply of this program has as many with the longest names."""
MAX_TEXT = 65_536
"""Bytes of JSON of a reason, a note or an outcome that are read; the longest of this program has a tenth of them."""
_fields = msgspec.json.Decoder(dict[str, Raw]).decode
_string = msgspec.json.Decoder(str).decode
_skip = msgspec.json.Decoder(Raw).decode


class _ReportHeader(msgspec.Struct, gc=False):
    status: str
    messageType: str  # noqa: N815 (the protocol's spelling)


class _ReportPayload(msgspec.Struct, gc=False):
    reason: Raw = Raw(NULL)
    note: Raw = Raw(NULL)
    recipients: Raw = Raw(NULL)


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
    outcomes = _recipients(payload.recipients)
    meta: Meta = {"reported": True}
    if answer.header.status == "good":
        queued = outcomes.count(QUEUED)
        if queued:
            meta["queued"] = queued
        return SENT if SENT in outcomes else QUEUED if queued else DELIVERED, meta
    if outcomes:
        meta["carried"] = True
    reason, note = _str(payload.reason), _str(payload.note)
    if note is not None:
        meta["note"] = safe_note(note)  # the original may be as long as a frame
    return failed(reason if reason is not None and reason in CODES else "handler-failed"), meta


def _recipients(text: Raw) -> list[str | None]:
    """Return the outcomes that a report names; one that is no text is None. Of more than MAX_RECIPIENTS, or of more
    bytes, none is read, and SENT, which claims least, stands for all."""
    json = bytes(text)
    if json[:1] != b"{":
        return []
    if len(json) > MAX_RECIPIENTS_BYTES:
        return [SENT]
    if has_more_values(json, MAX_RECIPIENTS + 1, 0):
        return [SENT]
    try:
        return [_str(each) for each in _fields(text).values()]
    except BAD_JSON:
        return []


def _str(raw: Raw) -> str | None:
    if memoryview(raw).nbytes > MAX_TEXT:
        return None
    try:
        return _string(raw)
    except BAD_JSON:
        return None


def is_object(body: bytes) -> bool:
    """Return whether a frame holds a JSON object, as every frame of the native protocol does."""
    try:
        _skip(body)
    except BAD_JSON:
        return False
    return body.lstrip()[:1] == b"{"
