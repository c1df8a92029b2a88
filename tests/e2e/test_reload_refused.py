"""A configuration that is read again and cannot be applied whole: nothing of it is applied."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from bester.broker.config import Config, PeerConfig, defaults
from bester.broker.reload import Reloader
from bester.broker.server import Broker
from bester.broker.service import live_part, settings_of
from bester.broker.store.memory import MemoryStore
from bester.broker.users import OpenAccounts
from bester.broker.wire.codes import ConfigError
from tests.descriptors import free_descriptors, open_descriptors, settled_descriptors

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
        before = await settled_descriptors()
        with free_descriptors(free), caplog.at_level(logging.INFO, "bester"):
            assert not reloader.reload()
        assert "stays as it was: Too many open files" in caplog.text
        assert open_descriptors() == before
        assert set(broker.router.settings.routes) == {"stays", "goes"} and reloader.config is old
        assert reloader.reload()
        assert set(broker.router.settings.routes) == set(new.servers)
        assert reloader.config is new


async def test_address_that_zeromq_does_not_take_leaves_everything_as_it_was(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The parser of endpoints takes the address; another server would have lost its link by then."""
    old = listing(defaults(tmp_path), tmp_path, "moves", "goes")
    moved = listing(old, tmp_path / "elsewhere", "moves").servers
    new = replace(old, servers={**moved, "odd": PeerConfig("odd", fabric="ipc://@")})
    async with Broker(settings_of(old), (), OpenAccounts(), MemoryStore()) as broker:
        reloader = Reloader(old, lambda: new)
        reloader.add(*live_part(broker))
        before = await settled_descriptors()
        with caplog.at_level(logging.INFO, "bester"):
            assert not reloader.reload()
        assert "stays as it was: [servers.odd] fabric: ipc://@: Invalid argument; check the address" in caplog.text
        assert open_descriptors() == before
        assert broker.router.settings.routes == settings_of(old).routes and reloader.config is old


async def test_broker_with_an_address_that_zeromq_does_not_take_names_the_key(tmp_path: Path) -> None:
    config = listing(defaults(tmp_path), tmp_path, "before")
    config = replace(config, servers={**config.servers, "odd": PeerConfig("odd", fabric="ipc://@")})
    before = open_descriptors()
    with pytest.raises(ConfigError, match=r"\[servers.odd\] fabric: ipc://@"):
        async with Broker(settings_of(config), (f"ipc://{tmp_path}/fabric.sock",), OpenAccounts(), MemoryStore()):
            pytest.fail("the broker has started")
    assert open_descriptors() == before and list(tmp_path.iterdir()) == []
