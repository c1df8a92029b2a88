"""Ten real faults of a real server: `bester check`, the API, the page and an alert of a real Prometheus name each one
with its cause and its remedy."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.e2e import chromium, faulty
from tests.e2e.chromium import browser
from tests.e2e.faulty import DEADLINE_S, DISK, FAULTS, checked, fires, may_mount, missing, prometheus
from tests.e2e.operator_stand import TOKEN, Operator


async def found(operator: Operator, faults: tuple[faulty.Fault, ...]) -> None:
    """Wait until the server itself finds the faults."""
    left: list[str] = []
    try:
        async with asyncio.timeout(DEADLINE_S):
            while left := missing(faults, await operator.get("/api/findings")):
                await asyncio.sleep(0.2)
    except TimeoutError:
        raise AssertionError(f"not found: {left} among {await operator.get('/api/findings')}") from None


async def shown(operator: Operator, faults: tuple[faulty.Fault, ...], home: Path) -> None:
    """Wait until the page shows the faults."""
    async with browser(home) as page:
        await page.go_to(f"{operator.base}/?token={TOKEN}")
        async with asyncio.timeout(DEADLINE_S):
            while True:
                rows = await page.rows("findings")
                if all(
                    any(row[:2] == [fault.level, fault.check] and fault.cause in row[2] and fault.remedy in row[2]
                        for row in rows)
                    for fault in faults
                ):  # fmt: skip
                    break
                await asyncio.sleep(0.2)
        assert page.console == []


async def test_ten_faults_are_named_by_check_page_and_alerts(tmp_path: Path) -> None:
    small = may_mount(tmp_path)
    faults = (*FAULTS, DISK) if small else FAULTS
    unseen = [] if small else ["the disk is not small: this machine forbids mounts"]
    async with faulty.faulty(tmp_path, small=small) as operator:
        if faulty.PROMETHEUS is None:
            unseen.append("no alerts: apt-get install prometheus")
        else:
            async with prometheus(operator, tmp_path) as api:
                await fires(api, tuple(each for each in faults if each.alert != "BesterDeadLetters"))
                await faulty.send(operator.server, "dies", 1)
                await fires(api, faults)
        await found(operator, faults)
        status, rows = await checked(operator, small=small)
        assert status == 1
        assert missing(faults, rows) == []
        good = {row["check"] for row in rows if row["level"] == "ok"}
        assert {"config", "server", "data", "store"} <= good
        if chromium.PROGRAM is None:
            unseen.append("no page: apt-get install chromium")
        else:
            await shown(operator, faults, tmp_path)
    if unseen:
        pytest.skip("; ".join(unseen))
