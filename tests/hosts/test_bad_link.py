"""A short form of `make lossy`: nothing is lost or doubled over a bad link between two hosts."""

from __future__ import annotations

import pytest

from tests.hosts.bad_link_run import Plan, run
from tests.hosts.link import no_cable
from tests.hosts.stand import missing

WHY_NOT = missing() or no_cable()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=WHY_NOT or "")


@pytest.mark.parametrize("deaf", [0, 1])
async def test_nothing_is_lost_or_doubled_over_a_bad_link(deaf: int) -> None:
    result = await run(Plan(messages=300, alone_s=1.0, one_way_s=2.5, cut_s=0.5, deaf=deaf))
    assert result.is_good, result
    assert result.noted.total() == 300
    assert result.frames_lost > 10  # the faults were there
