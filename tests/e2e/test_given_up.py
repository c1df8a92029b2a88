"""`bester up` with handlers that fail to start: the log, the reports to senders, and recovery."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

from tests.live import BESTER, Process, RawClient, live_server, short_directory

GOOD = "from bester.handlers import App\napp = App()\n@app.handler('shop')\ndef shop(m): return m.reply(1)\n"
AT_ONCE = "import os\n" + GOOD + "@app.task\nasync def once(): os._exit(2)\n"


async def test_sender_has_the_reason_and_the_repaired_handler_serves() -> None:
    async with live_server() as server:
        toml = (server.directory / "bester.toml").read_text()
        other = server.directory / "other"
        other.mkdir()
        (other / "shop.py").write_text("import no_such_thing\n")
        (other / "bester.toml").write_text(toml + '[handlers.shop]\napp = "shop:app"\n')
        up = await Process.start(BESTER, "up", "--log", "json", cwd=other)
        try:
            row = json.loads(await up.says("handler-given-up"))
            assert (row["level"], row["handler"]) == ("error", "shop")
            assert "needs the module 'no_such_thing', which is not installed: pip install no_such_thing" in row["why"]
            warned = json.loads(await up.says("handler-ended"))
            assert (warned["level"], warned["again_in_s"]) == ("warning", 0.1)
            serves = json.loads(await up.says('"serves"'))
            server.host, _, port = serves["addresses"][0].rpartition(":")
            server.port = int(port)
            assert json.loads(await up.says("stock-handlers-off"))["level"] == "warning"
            client = await RawClient.login(server, "a")
            client.submit("shop", 1, "1")
            report, _ = await client.until_report("1")
            assert report["payload"]["reason"] == "no-handler"
            (other / "shop.py").write_text(GOOD)
            await up.says("handler-serves")
            client.submit("shop", 1, "2")
            report, _ = await client.until_report("2")
            assert report["header"]["status"] == "good"
            await client.close()
        finally:
            assert await up.end() == 0
        assert all(line.startswith("{") for line in up.lines), "nothing but records is in it"


async def test_handler_that_has_served_is_restarted_after_each_death() -> None:
    async with short_directory() as directory:
        (directory / "shop.py").write_text(AT_ONCE)
        (directory / "bester.toml").write_text('[native]\ntcp4 = "127.0.0.1:0"\n[handlers.shop]\napp = "shop:app"\n')
        up = await Process.start(BESTER, "up", cwd=directory)
        try:
            await up.says("handler shop ended with exit status 2; starting it again in 3.2 s")
        finally:
            assert await up.end() == 0
        assert not [line for line in up.lines if "given up" in line]


async def test_two_bridges_of_one_server_differ_in_the_log_and_in_ids() -> None:
    async with live_server(layout="apart", handlers=("bester.handlers.stock.echo:app",)) as server:
        text = (server.directory / "bester.toml").read_text()
        (server.directory / "second.toml").write_text(text)
        second = await Process.start(BESTER, "bridge", "-c", "second.toml", cwd=server.directory)
        try:
            await second.says(" serves ")
            client = await RawClient.login(server, "a")
            client.submit("echo", 1, "1")
            report, _ = await client.until_report("1")
            await client.close()
            joined = [line for line in server.processes[1].lines if "joined role='bridge'" in line]
            names = [line.partition("name='")[2].rstrip("'") for line in joined]
            assert len(set(names)) == 2
            assert report["payload"]["message"].split("/")[1] in names
        finally:
            assert await second.end() == 0


async def test_a_handler_of_its_own_process_logs_json_too() -> None:
    async with live_server(layout="apart") as server:
        (server.directory / "shop.py").write_text(
            GOOD.replace(
                "return m.reply(1)",
                "import logging; logging.getLogger('till').warning('low', extra={'left': 3}); 1 / m.data",
            )
        )
        command = (BESTER, "handler", "shop:app", "--fabric", server.fabric, "--log", "json", "--log-level", "warning")
        shop = await Process.start(*command, cwd=server.directory)
        try:
            await server.has_type("shop")
            client = await RawClient.login(server, "a")
            client.submit("shop", 0, "1")
            await client.until_report("1")
            await client.close()
            low, failed = json.loads(await shop.says("low")), json.loads(await shop.says("handler-failed"))
        finally:
            assert await shop.end() == 0
        assert (low["level"], low["from"], low["event"], low["left"]) == ("warning", "till", "low", 3)
        assert (failed["level"], failed["type"]) == ("error", "shop")
        assert failed["error"].endswith("ZeroDivisionError: division by zero")
        assert len(shop.lines) == 2, "what is less urgent is left out, and a traceback is one record"


async def test_login_without_a_broker_is_refused_with_the_reason() -> None:
    async with live_server(layout="apart") as server:
        await server.processes[1].end()
        await server.processes[0].says("link to the broker lost")
        environment = {**os.environ, "BESTER_PASSWORD": "x"}
        sending = await asyncio.create_subprocess_exec(
            BESTER, "send", "--to", server.address, "--user", "a", "echo", "1",
            env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        _, stderr = await sending.communicate()
        assert sending.returncode == 1
        assert stderr.decode() == (
            f"bester: {server.address} cannot log anybody in now: what checks passwords there is out of reach, "
            "perhaps during a restart; try again in a moment\n"
        )
        server.processes[1] = await Process.start(BESTER, "broker", cwd=Path(server.directory))
        await server.processes[0].says("the broker is back")
