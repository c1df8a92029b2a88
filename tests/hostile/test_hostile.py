"""A short form of the hostile runs, for every run of the tests; `make hostile SECONDS=60` is the long one.

No time is judged here, nor any refusal that a pause of the machine may cause: nothing is lost, misdelivered or doubled,
each letter has its report, and the server's memory stays below its bound.
"""

from __future__ import annotations

import sys

from tests.hostile.play import ALL, play


async def test_honest_lose_nothing_beside_hostile_parties() -> None:
    alone, beside = await play([ALL], 0.8, seed=1, alone_s=0.3, brief=True)
    assert alone.wrongs() + beside.wrongs() == []
    assert beside.burned > 0 or sys.platform != "linux"
    assert alone.outcomes.keys() & {"delivered", "queued"}, alone.outcomes
    assert beside.outcomes.keys() & {"delivered", "queued"}, beside.outcomes
    assert beside.did["waves"] and beside.did["batches"], beside.did
