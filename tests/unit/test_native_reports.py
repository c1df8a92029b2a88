"""Reports of other servers: the outcome that each tells."""

from __future__ import annotations

from typing import Any

import pytest

from bester.bridge import native_reports

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
        assert native_reports.is_object(b" {}") and not native_reports.is_object(lists)

    @pytest.mark.parametrize(("more", "queued"), [(0, True), (1, False)])
    def test_of_more_recipients_than_are_read_no_more_is_claimed_than_that_the_message_was_sent(
        self, more: int, queued: bool
    ) -> None:
        """`delivered`, or nothing about the recipients, would claim more than the other server did."""
        count = native_reports.MAX_RECIPIENTS + more
        recipients = "{" + ",".join(f'"{number}":"queued"' for number in range(count)) + "}"
        good = native_reports.outcome((GOOD_REPORT % f'{{"recipients":{recipients}}}').encode())
        assert good == (("queued", {"reported": True, "queued": count}) if queued else ("sent", {"reported": True}))
        bad = native_reports.outcome((BAD_REPORT % f'{{"reason":"expired","recipients":{recipients}}}').encode())
        assert bad == ("failed:expired", {"reported": True, "carried": True})

    def test_long_texts_and_very_long_recipients_are_not_read(self) -> None:
        """A server chooses their length, up to 16 MiB, each of which is looked at several times."""
        text = "x" * native_reports.MAX_TEXT
        assert native_reports.outcome((BAD_REPORT % f'{{"reason":"expired","note":"{text}"}}').encode()) == (
            "failed:expired", {"reported": True},
        )  # fmt: skip
        assert native_reports.outcome((GOOD_REPORT % f'{{"recipients":{{"bob":"{text}"}}}}').encode()) == (
            "delivered", {"reported": True},
        )  # fmt: skip
        recipients = '{"%s":"queued"}' % ("x" * native_reports.MAX_RECIPIENTS_BYTES)
        assert native_reports.outcome((GOOD_REPORT % f'{{"recipients":{recipients}}}').encode()) == (
            "sent", {"reported": True},
        )  # fmt: skip
