"""A headless Chromium, spoken to by its DevTools protocol: pages are opened, asked and clicked."""

from __future__ import annotations

import asyncio
import base64
import itertools
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

PROGRAM = shutil.which("chromium")
DEADLINE_S = 60.0
needs_chromium = pytest.mark.skipif(PROGRAM is None, reason="chromium is missing: apt-get install chromium")


class Page:
    """Page of a browser. `console` are the texts of errors and warnings."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.console: list[str] = []
        self._socket = socket
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._reader = asyncio.create_task(self._read())

    async def call(self, method: str, **parameters: Any) -> Any:
        """Call a method of the protocol; return its result."""
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        return await asyncio.wait_for(answer, DEADLINE_S)

    async def evaluate(self, script: str) -> Any:
        """Return the value of a script in the page."""
        found = await self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    async def until(self, script: str) -> Any:
        """Wait until a script's value is true; return the value."""
        async with asyncio.timeout(DEADLINE_S):
            while not (value := await self.evaluate(script)):
                await asyncio.sleep(0.05)
            return value

    async def go_to(self, url: str) -> None:
        """Open an address, and wait until its document is there."""
        await self.call("Page.navigate", url=url)
        await self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    async def says(self, selector: str, words: str) -> None:
        """Wait until the text of an element holds these words."""
        await self.until(f"document.querySelector({selector!r}).textContent.includes({words!r})")

    async def click(self, selector: str, words: str) -> None:
        """Click the first button within an element that has this text."""
        buttons = f"[...document.querySelectorAll({selector + ' button'!r})]"
        await self.evaluate(f"{buttons}.find(each => each.textContent === {words!r}).click()")

    async def rows(self, table: str) -> list[list[str]]:
        """Return the texts of a table's cells, row by row."""
        rows = f"[...document.querySelectorAll('#{table} tr')]"
        found: list[list[str]] = await self.evaluate(f"{rows}.map(row => [...row.cells].map(each => each.textContent))")
        return found[1:]

    async def picture(self) -> bytes:
        """Return a picture of the whole page, as PNG."""
        found = await self.call("Page.captureScreenshot", captureBeyondViewport=True)
        return base64.b64decode(found["data"])

    async def close(self) -> None:
        """Read no more."""
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)

    async def _read(self) -> None:
        async for message in self._socket:
            told = message.json()
            if "id" in told:
                answer = self._answers.pop(told["id"], None)
                if answer is not None and not answer.done():
                    answer.set_result(told.get("result", told))
            elif told["method"] == "Log.entryAdded" and told["params"]["entry"]["level"] in ("error", "warning"):
                self.console.append(told["params"]["entry"]["text"])
            elif told["method"] == "Runtime.exceptionThrown":
                self.console.append(str(told["params"]))


@asynccontextmanager
async def browser(home: Path, width: int = 1100, height: int = 1500) -> AsyncIterator[Page]:
    """Run a Chromium with one empty page; end it at the exit."""
    assert PROGRAM is not None
    process = await asyncio.create_subprocess_exec(
        PROGRAM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-port=0",
        f"--user-data-dir={home}/chromium", f"--window-size={width},{height}", "about:blank",
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
        env={"HOME": str(home), "PATH": "/usr/local/bin:/usr/bin:/bin"},
    )  # fmt: skip
    assert process.stderr is not None
    try:
        async with asyncio.timeout(DEADLINE_S):
            while b"DevTools listening on" not in (line := await process.stderr.readline()):
                assert line, "chromium has ended"
        port = line.decode().partition("ws://")[2].partition("/")[0]
        drain = asyncio.create_task(process.stderr.read())
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://{port}/json/list") as answer:
                (target,) = [each for each in await answer.json() if each["type"] == "page"]
            async with session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                page = Page(socket)
                for domain in ("Page", "Runtime", "Log"):
                    await page.call(f"{domain}.enable")
                yield page
                await page.close()
        drain.cancel()
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), 10.0)
            except TimeoutError:
                process.kill()
                await process.wait()
