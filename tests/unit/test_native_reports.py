"""Reports of other servers: the outcome that each tells."""

from __future__ import annotations

from typing import Any

import pytest

from bester.bridge import native_reports
from bester.broker.wire.messages import MAX_TARGETS

GOOD_REPORT = '{"header":{"messageType":"statusReport","status":"good"},"payload":%s}'
BAD_REPORT = GOOD_REPORT.replace("good", "bad")


class TestOutcome:
    @pytest.mark.parametrize(
        ("body", "became"),
        [
            (GOOD_REPORT % '{"id":"x"}', ("delivered", {})),
            (GOOD_REPORT % '{"recipients":{"bob":"sent"}}', ("sent", {})),
            (GOOD_REPORT % '{"recipients":{"bob":"sent","al":"queued","eve":"delivered"}}', ("sent", {"queued": 1})),
            (GOOD_REPORT % '{"recipients":{"bob":"queued","carol":"delivered"}}', ("queued", {"queued": 1})),
            (GOOD_REPORT % '{"recipients":[]}', ("delivered", {})),
            (GOOD_REPORT % "null", ("delivered", {})),
            (BAD_REPORT % '{"id":"x","reason":"not-allowed"}', ("failed:not-allowed", {})),
            (BAD_REPORT % '{"id":"x"}', ("failed:handler-failed", {})),
            ('{"header":{"messageType":"statusReport","status":"bad"}}', ("failed:handler-failed", {})),
            (BAD_REPORT % '{"reason":"made up","recipients":{}}', ("failed:handler-failed", {})),
            (BAD_REPORT % '{"reason":5}', ("failed:handler-failed", {})),
            (BAD_REPORT % '{"reason":"refused","note":"too\\u0000 many"}', ("failed:refused", {"note": "too many"})),
            (BAD_REPORT % '{"reason":"refused","note":["too many"]}', ("failed:refused", {})),
            (BAD_REPORT % '{"reason":"schema","note":"","recipients":{"t":"failed:schema"}}',
             ("failed:schema", {"carried": True, "note": ""})),
            (GOOD_REPORT % '{"note":"well done"}', ("delivered", {})),
            (BAD_REPORT % '{"reason":"expired","recipients":{"bob":"queued","carol":"failed:expired"}}',
             ("failed:expired", {"carried": True})),
            ('{"header":{"messageType":"receivedMessage","status":"good"}}', None),
            ('{"header":{"status":"0"}}', None),
            ("nonsense", None),
        ],
    )  # fmt: skip
    def test_outcome_is_read_from_a_report(self, body: str, became: tuple[str, dict[str, Any]] | None) -> None:
        if became is not None:
            became = became[0], {"reported": True} | became[1]
        assert native_reports.outcome(body.encode()) == became

    def test_values_of_a_report_that_no_server_means_are_not_made(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A server chooses up to 16 MiB of them, which would take a second."""
        monkeypatch.setattr(native_reports, "_fields", None)
        lists = b"[" + b"[]," * 100_000 + b"[]]"
        report = BAD_REPORT.replace("%s", '{"reason":[%b],"note":%b,"recipients":%b}').encode()
        read = native_reports.outcome(report % (lists, lists, lists))
        assert read == ("failed:handler-failed", {"reported": True})
        many = b"{" + b",".join(b'"%d":"queued"' % number for number in range(MAX_TARGETS + 1)) + b"}"
        read = native_reports.outcome(report % (b"1", b"1", many))
        assert read == ("failed:handler-failed", {"reported": True, "carried": True})
        assert native_reports.is_object(b" {}") and not native_reports.is_object(lists)

    def test_as_many_outcomes_are_read_as_a_reply_has_targets(self) -> None:
        many = ",".join(f'"{number}":"queued"' for number in range(MAX_TARGETS))
        read = native_reports.outcome((GOOD_REPORT % f'{{"recipients":{{{many}}}}}').encode())
        assert read == ("queued", {"reported": True, "queued": MAX_TARGETS})
