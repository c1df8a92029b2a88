"""The operator's page in a real browser: what is live is drawn, a handler that stops shows, and nothing is markup."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
from contextlib import closing
from pathlib import Path

from bester.broker.postgres import connect
from bester.broker.store.postgres import PostgresStore
from tests.e2e.chromium import browser, needs_chromium
from tests.e2e.operator_stand import HEAD, TOKEN, operated, secret_in
from tests.e2e.test_operator import DIES, messages
from tests.live import LiveServer, RawClient, short_directory
from tests.postgres_server import Cluster
from tests.unit.store_stand import keep

ODD = """
[servers.s2]
native = "127.0.0.1:9"
[handlers.odd]
app = "mixed:app"
types = ["<img src=x onerror=boom()>"]
"""
LONG = "a-server-with-a-rather-long-name.example"
WIDTHS = """
(() => {
  const width = document.body.clientWidth, right = (each) => each.getBoundingClientRect().right;
  const boxes = [...document.querySelectorAll(".wide")], all = [...document.querySelectorAll("body *")];
  const names = (some) => some.map((each) => each.firstElementChild.id);
  for (const each of boxes) each.scrollLeft = each.scrollWidth;
  const outside = all.filter((each) => !each.closest(".wide table, .wide svg") && right(each) > width + 0.5);
  return JSON.stringify({
    body: [document.body.scrollWidth, document.documentElement.scrollWidth, width],
    cut: outside.map((each) => each.outerHTML.slice(0, 80)),
    scrolled: names(boxes.filter((each) => each.scrollWidth > each.clientWidth)),
    hidden: names(boxes.filter((each) => right(each.firstElementChild) > right(each) + 0.5)),
  });
})()
"""
"""Widths of the body and of the window; elements that stand out beyond the window; tables that scroll within their box,
and those whose end is not shown at the end of that."""


@needs_chromium
async def test_phone_shows_wide_tables_within_boxes_that_scroll(tmp_path: Path) -> None:
    async with operated(DIES + f'[servers."{LONG}"]\nnative = "127.0.0.1:9"\n') as operator, browser(tmp_path) as page:
        await operator.server.has_type("dies")
        await messages(operator, ok=1, dies=1)
        await page.go_to(f"{operator.base}/?token={TOKEN}")
        await page.says("#dead", "handler-lost")
        await page.says("#servers", LONG)
        await page.says("#findings", "bester dead replay")
        await page.click("#ask", "Show")
        await page.says("#trace", "handler")
        await page.click("#dead", "show")
        await page.says("#letter", "dies")
        for width in (360, 320):
            screen = {"width": width, "height": 740, "deviceScaleFactor": 1, "mobile": True}
            await page.call("Emulation.setDeviceMetricsOverride", **screen)
            found = json.loads(await page.evaluate(WIDTHS))
            assert found["body"] == [width, width, width]
            assert found["cut"] == found["hidden"] == []
            assert {"way", "types", "servers", "dead"} <= set(found["scrolled"])
        assert page.console == []


@needs_chromium
async def test_page_shows_the_brokers_of_a_server_and_who_adopted(cluster: Cluster, tmp_path: Path) -> None:
    database = cluster.database()
    store = f'[store]\nurl = "{database.url}"\nschema = "{database.schema}"\n'
    with closing(PostgresStore(database, "<b1>")) as dead:
        dead.open()
        assert dead.commit([keep(1)]).ok
    with connect(database, "a test") as other:  # as if it had been killed
        other.execute("UPDATE broker SET until = clock_timestamp() - INTERVAL '1 hour'")
    async with operated(store) as operator, browser(tmp_path) as page:
        await page.go_to(f"{operator.base}/?token={TOKEN}")
        await page.says("#findings", "broker <b1> has been dead for 60")
        await page.says("#brokers", "<b1>")
        await page.says("#adoptions", "<b1>")
        (row,) = await page.rows("adoptions")
        assert (row[0], row[3:]) == ("<b1>", ["1", "0", "0"])
        assert page.console == []


@needs_chromium
async def test_page_shows_what_goes_on_and_text_is_never_markup(tmp_path: Path) -> None:
    async with operated(ODD) as operator, browser(tmp_path) as page:
        await operator.server.has_type("<img src=x onerror=boom()>")
        await page.go_to(f"{operator.base}/?token={TOKEN}")
        await page.says("#state", "all is well")
        await messages(operator, ok=5, refuses=2)
        await page.says("#types", "refused 2")
        rows = {row[0]: row for row in await page.rows("types")}
        assert rows["ok"][4:6] == ["5", "5"]
        assert "<img src=x onerror=boom()>" in rows
        assert await page.evaluate("document.querySelectorAll('img').length") == 0, "a type's name is text"
        assert await page.evaluate("document.querySelectorAll('#way rect').length") >= 9
        assert [row[:2] for row in await page.rows("servers")] == [["s2", "unknown"]]
        await page.click("#servers", "hold")
        await page.says("#servers", "held")
        await page.click("#ask", "Show")
        await page.says("#trace", "refused")
        assert await page.evaluate("document.querySelectorAll('#trace svg.bar rect.handler').length") == 1
        assert TOKEN not in await page.evaluate("document.documentElement.outerHTML + location.href")
        await page.call("Emulation.setDeviceMetricsOverride", width=390, height=800, deviceScaleFactor=1, mobile=True)
        assert await page.evaluate("document.documentElement.scrollWidth") <= 390, "a phone shows all of its width"
        assert page.console == []


@needs_chromium
async def test_stopped_handler_turns_red_and_a_dead_letter_is_replayed(tmp_path: Path) -> None:
    async with operated(DIES) as operator, browser(tmp_path) as page:
        await operator.server.has_type("dies")
        await messages(operator, ok=1, dies=1)
        await page.go_to(f"{operator.base}/?token={TOKEN}")
        await page.says("#dead", "handler-lost")
        await page.says("#findings", "1 dead letter of type dies in 10.0 min: handler-lost")
        assert ["warning", "dead letters"] in [row[:2] for row in await page.rows("findings")]
        await page.says("#findings", "bester dead replay")
        await page.click("#dead", "replay")
        async with asyncio.timeout(60.0):
            while {row[0]: row[7] for row in await page.rows("types")}["dies"] != "2":
                await asyncio.sleep(0.05)
        assert page.console == []
    async with operated(layout="apart") as operator, browser(tmp_path) as page:
        await messages(operator, ok=1)
        await page.go_to(f"{operator.base}/?token={TOKEN}")
        await page.says("#state", "all is well")
        for process in operator.server.processes[2:]:
            await process.end()
        await page.says("#state", "no handler serves ok")
        await page.says("#findings", "start it; its own lines in the log say why it ended")
        assert await page.evaluate("document.querySelectorAll('#way rect.bad').length") >= 1


@needs_chromium
async def test_page_without_the_token_says_what_it_needs(tmp_path: Path) -> None:
    async with operated() as operator, browser(tmp_path) as page:
        await page.go_to(f"{operator.base}/")
        await page.says("#state", "the secret in [operator] token")
        assert await page.rows("types") == []


@needs_chromium
async def test_pages_come_back_after_a_restart_and_after_a_refusal(tmp_path: Path) -> None:
    async with short_directory() as directory, browser(tmp_path) as page:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        secret = secret_in(directory)
        toml = HEAD.replace('http = "127.0.0.1:0"', f'http = "127.0.0.1:{port}"\ntoken = "operator.token"')
        server = await LiveServer.start(directory, toml)
        await page.go_to(f"http://127.0.0.1:{port}/?token={TOKEN}")
        await page.says("#state", "all is well")
        await server.processes[0].end(signal.SIGKILL)
        await page.says("#state", "the server does not answer")
        secret.write_text("another-secret-than-before")  # the page is refused
        server = await LiveServer.start(directory, toml)
        try:
            await page.says("#state", "the secret in [operator] token")
            secret.write_text(TOKEN)
            server.processes[0].send_signal(signal.SIGHUP)
            await page.says("#state", "all is well")
        finally:
            assert await server.stop() == [0]
        server = await LiveServer.start(directory, toml)
        try:
            joined = await server.processes[0].says("joined role='bridge'")
            bridge = joined.partition("name=")[2].strip("'")  # another one at each start
            is_new = f"before.bridges.some((each) => each.name === '{bridge}')"
            await page.until(f"{is_new} && document.querySelector('#state').textContent === 'all is well'")
        finally:
            assert await server.stop() == [0]


@needs_chromium
async def test_text_of_strangers_is_text(tmp_path: Path) -> None:
    odd = '"><img src=x onerror=boom()>%2f</script>'
    async with operated(DIES) as operator, browser(tmp_path) as page:
        await operator.server.has_type("dies")
        client = await RawClient.login(operator.server, odd)
        client.submit("dies", {"body": odd + "\u202e", "long": "z" * 300_000}, "i")
        await client.until_report("i")
        await page.go_to(f"{operator.base}/?token={TOKEN}")
        await page.says("#dead", "handler-lost")
        await page.click("#dead", "show")
        await page.says("#letter", "onerror=boom()>")
        await page.evaluate(f"document.querySelector('#message').value = {json.dumps(odd)}")
        await page.click("#ask", "Show")
        await page.says("#trace", "no step of it is remembered here")
        assert await page.evaluate("document.querySelectorAll('img, script:not([src])').length") == 0
        assert page.console == []
        await client.close()
