"""The stage that a scene is played on: every scene is played on each of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest

from tests.scenes.core_stage import CoreStage
from tests.scenes.live_stage import ApartStage, LiveStage
from tests.scenes.stage import Stage

STAGES: dict[str, Callable[[], Stage]] = {"core": CoreStage, "live": LiveStage, "apart": ApartStage}


@pytest.fixture(params=STAGES)
async def stage(request: pytest.FixtureRequest) -> AsyncIterator[Stage]:
    stage = STAGES[request.param]()
    await stage.begins()
    yield stage
    await stage.ends()
