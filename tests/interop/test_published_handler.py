"""The handler printed in the fabric protocol's page works as printed."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from tests.live import Process, RawClient, live_server

PAGE = Path(__file__).parents[2] / "docs" / "fabric-protocol.md"


async def test_the_handler_of_the_page_works() -> None:
    printed = re.search(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert printed is not None
    async with live_server() as server:
        (server.directory / "shout.py").write_text(printed[1])
        environment = {"BESTER_FABRIC": server.fabric}
        handler = await Process.start(sys.executable, "shout.py", cwd=server.directory, env=environment)
        try:
            await server.has_type("shout")
            bob = await RawClient.login(server, "bob")
            for data, shouted in (("héllo", "HÉLLO"), ("x" * 100_000, "X" * 100_000)):
                bob.submit("shout", data, "m")
                report, before = await bob.until_report("m")
                assert report["header"]["status"] == "good" and before[0]["payload"]["data"] == shouted
            bob.submit("shout", 5, "m")
            report, _ = await bob.until_report("m")
            assert report["payload"]["reason"] == "handler-failed"
            await bob.close()
        finally:
            handler.process.terminate()
            await handler.process.wait()
            await handler.end()
