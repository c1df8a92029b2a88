"""A configuration that is read again while no descriptor is free: all of it is applied later, or none of it now."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from bester.broker.accounts import OpenAccounts
from bester.broker.config import Config, PeerConfig, defaults
from bester.broker.reload import Reloader
from bester.broker.server import Broker
from bester.broker.service import live_part, settings_of
from bester.broker.store.memory import MemoryStore
from tests.descriptors import free_descriptors, open_descriptors

FOR_ONE_LINK = 20
"""Descriptors that are enough for the context of one new link, and not for those of several."""


def listing(base: Config, directory: Path, *names: str) -> Config:
    """Return a configuration with servers of the fabric that nobody serves."""
    peers = {name: PeerConfig(name, fabric=f"ipc://{directory}/{name}.sock") for name in names}
    return replace(base, servers=peers)


@pytest.mark.parametrize("free", [0, FOR_ONE_LINK])
async def test_servers_whose_links_find_no_descriptor_leave_everything_as_it_was(
    tmp_path: Path, free: int, caplog: pytest.LogCaptureFixture
) -> None:
    old = listing(defaults(tmp_path), tmp_path, "stays", "goes")
    new = listing(old, tmp_path, "stays", *(f"new{number}" for number in range(5)))
    async with Broker(settings_of(old), (), OpenAccounts(), MemoryStore()) as broker:
        reloader = Reloader(old, lambda: new)
        reloader.add(*live_part(broker))
        before = open_descriptors()
        with free_descriptors(free), caplog.at_level(logging.INFO, "bester"):
            assert not reloader.reload()
        assert "stays as it was: Too many open files" in caplog.text
        assert open_descriptors() == before
        assert set(broker.router.settings.routes) == {"stays", "goes"} and reloader.config is old
        assert reloader.reload()
        assert set(broker.router.settings.routes) == set(new.servers)
        assert reloader.config is new
