"""Fixtures of the interop tests: a server with no handlers of its own, in both layouts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.live import LAYOUTS, LiveServer, shared_server


@pytest.fixture(scope="module", params=LAYOUTS)
def server(request: pytest.FixtureRequest) -> Iterator[LiveServer]:
    with shared_server(layout=request.param) as server:
        yield server
