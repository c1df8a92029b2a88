"""API, metrics and `bester status --json` agree with the ledger of the users who sent mixed messages.

`BESTER_LEDGER=10000` plays so many messages, in place of 2,000.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter
from itertools import accumulate
from random import Random
from typing import Any

import pytest

from tests.e2e.operator_stand import Operator, operated
from tests.e2e.test_operator import command, samples
from tests.live import DEADLINE_S, RawClient

MESSAGES = int(os.environ.get("BESTER_LEDGER", "2000"))
USERS = ("alice", "bob", "carol")
AT_ONCE = 50
"""Messages of a user without a report: fewer than a bridge takes before it stops reading."""
ENDS = {
    "ok": ("good", None),
    "absent": ("bad", "not-connected"),
    "refuses": ("bad", "refused"),
    "breaks": ("bad", "handler-failed"),
    "nobody": ("bad", "unknown-type"),
}
"""Types that are sent, and the report on each."""
ABSENT = '[handlers.absent]\napp = "mixed:app"\ntypes = ["absent"]\n'
COMMANDS = {"ok": 1, "absent": 2}
"""Commands in the replies to a message of a type."""
FAILS = {"refuses": "refused", "breaks": "handler-failed", "nobody": "unknown-type"}
"""Types whose messages fail, and the codes. A message whose recipients are absent has not failed itself."""
OTHERS = "(others)"


class Ledger:
    """Counts of what users sent and what reports they had."""

    def __init__(self) -> None:
        self.sent: Counter[str] = Counter()
        self.reports: Counter[tuple[str, str, str | None]] = Counter()
        self.delivered: Counter[str] = Counter()

    async def play(self, operator: Operator, user: str, count: int, chance: Random) -> None:
        """Send so many messages as one user, and wait for all reports."""
        client = await RawClient.login(operator.server, user)
        for begin in range(0, count, AT_ONCE):
            waiting: dict[str, str] = {}
            for number in range(begin, min(count, begin + AT_ONCE)):
                type_ = chance.choice(list(ENDS))
                waiting[str(number)] = type_
                client.submit(type_, {"number": number}, str(number))
                self.sent[type_] += 1
            while waiting:
                frame = await client.receive()
                if frame["header"].get("messageType") != "statusReport":
                    self.delivered[frame["payload"]["type"]] += 1
                    continue
                type_ = waiting.pop(frame["payload"]["id"])
                self.reports[type_, frame["header"]["status"], frame["payload"].get("reason")] += 1
        await client.close()


async def settled(operator: Operator) -> dict[str, Any]:
    """Return the status once the broker has heard of every delivery."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            status: dict[str, Any] = await operator.get("/api/status")
            if not status["cases"] and not status["deliveries"]:
                return status
            await asyncio.sleep(0.05)


def check_ledger(ledger: Ledger, types: dict[str, dict[str, Any]]) -> None:
    """Compare the figures of types with what the users have sent and were told."""
    for type_, sent in ledger.sent.items():
        row = types[OTHERS if type_ == "nobody" else type_]
        assert ledger.reports[type_, *ENDS[type_]] == sent
        assert row["received"] == row["reported"] == sum(row["whole"]) == sent
        assert row["answered"] == sum(row["took"]) == (0 if type_ == "nobody" else sent)
        assert row["results"] == COMMANDS.get(type_, 0) * sent
        assert row["failed"] == ({FAILS[type_]: sent} if type_ in FAILS else {})
        assert ledger.delivered[type_] == (sent if type_ in COMMANDS else 0)
        assert (row["again"], row["dead"], row["waiting"], row["inflight"]) == (0, 0, 0, 0)
    assert sum(row["received"] for row in types.values()) == ledger.sent.total()


def check_metrics(status: dict[str, Any], metrics: dict[tuple[str, tuple[tuple[str, str], ...]], float]) -> None:
    """Compare the metrics with the status."""
    for type_, row in status["types"].items():
        label = (("type", type_),)
        for key in ("received", "answered", "reported", "results", "again", "dead"):
            assert metrics[f"bester_messages_{key}_total", label] == row[key]
        for key in ("waiting", "inflight"):
            assert metrics[f"bester_messages_{key}", label] == row[key]
        assert metrics["bester_handlers", label] == row["workers"]
        for name, key in (("handler", "took"), ("message", "whole")):
            ends = [*map(str, status["buckets_s"]), "+Inf"]
            buckets = [metrics[f"bester_{name}_seconds_bucket", (("le", end), *label)] for end in ends]
            assert buckets == list(accumulate(row[key]))
            assert metrics[f"bester_{name}_seconds_count", label] == sum(row[key])
            assert metrics[f"bester_{name}_seconds_sum", label] == pytest.approx(row[f"{key}_s"])
        for code, count in row["failed"].items():
            assert metrics["bester_messages_failed_total", (("code", code), *label)] == count
    for result, count in status["logins"].items():
        assert metrics["bester_logins_total", (("result", result),)] == count
    assert metrics["bester_store_commits_total", ()] >= status["store"]["commits"]


@pytest.mark.parametrize(("layout", "count"), [("up", MESSAGES), ("apart", MESSAGES // 10)])
async def test_all_displays_agree_with_the_ledger(layout: str, count: int) -> None:
    ledger = Ledger()
    async with operated(ABSENT if layout == "up" else "", layout=layout) as operator:
        await operator.server.has_type("absent")
        await asyncio.gather(*(ledger.play(operator, user, count // len(USERS), Random(user)) for user in USERS))
        status = await settled(operator)
        metrics = samples((await operator.request("/metrics"))[1])
        shown = json.loads((await command(operator, "status", "--json"))[0])
    assert ledger.sent.total() == count // len(USERS) * len(USERS)
    check_ledger(ledger, status["types"])
    check_metrics(status, metrics)
    assert (shown["types"], shown["logins"]) == (status["types"], status["logins"]) == (shown["types"], {"good": 3})
