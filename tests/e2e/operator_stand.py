"""A real server with the operator's side, and requests to it by a plain HTTP client."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from tests.live import LiveServer, head, short_directory

TOKEN = "0123456789abcdef0123"
HANDLERS = """
import os
from bester.handlers import App, HandlerError
app = App("mixed")

@app.handler("ok", inline=True)
def ok(message):
    return message.reply(message.data)

@app.handler("refuses", inline=True)
def refuses(message):
    raise HandlerError("not today")

@app.handler("<img src=x onerror=boom()>", inline=True)
def odd(message):
    return None

@app.handler("dies", inline=True)
def dies(message):
    os._exit(1)

@app.handler("absent", inline=True)
def absent(message):
    return [message.send_clients(["nobody", "nowhere"], message.data), message.reply(message.data)]

@app.handler("breaks", inline=True)
def breaks(message):
    raise RuntimeError("a bug")
"""


HEAD = head(auth="open") + '[operator]\nhttp = "127.0.0.1:0"\n'


class Operator:
    """An operator at the HTTP side of a server."""

    def __init__(self, server: LiveServer, base: str, session: aiohttp.ClientSession) -> None:
        self.server = server
        self.base = base
        self._session = session

    async def request(
        self, path: str, method: str = "GET", *, token: str | None = TOKEN, headers: dict[str, str] | None = None,
        body: Any = None,
    ) -> tuple[int, str]:  # fmt: skip
        """Return the status and the text of an answer."""
        sent = dict(headers or {}) | ({"Authorization": f"Bearer {token}"} if token else {})
        async with self._session.request(method, self.base + path, headers=sent, json=body) as answer:
            return answer.status, await answer.text()

    async def get(self, path: str) -> Any:
        """Return the value of a good answer."""
        status, text = await self.request(path)
        assert status == 200, text
        return json.loads(text)


def secret_in(directory: Path) -> Path:
    """Write the file of the token; return its path."""
    secret = directory / "operator.token"
    secret.write_text(TOKEN + "\n")
    secret.chmod(0o600)
    return secret


def page_of(lines: list[str]) -> str:
    """Return the address of the page that a log names, without its last slash."""
    (line,) = [line for line in lines if "page on http://" in line]
    return "http://" + line.partition("http://")[2].split("/")[0]


@asynccontextmanager
async def operated(more: str = "", *, token: bool = True, layout: str = "up") -> AsyncIterator[Operator]:
    """Run a server with an operator's side, and the handlers ok, refuses and breaks."""
    async with short_directory() as directory, aiohttp.ClientSession() as session:
        (directory / "mixed.py").write_text(HANDLERS)
        secret_in(directory)
        toml = HEAD + ('token = "operator.token"\n' if token else "") + more
        if layout == "up":
            toml += '[handlers.mixed]\napp = "mixed:app"\ntypes = ["ok", "refuses", "breaks"]\n'
        server = await LiveServer.start(directory, toml, layout, () if layout == "up" else ("mixed:app",))
        try:
            broker = server.processes[0 if layout == "up" else 1]
            await server.has_type("ok")
            await broker.says("page on http://")
            yield Operator(server, page_of(broker.lines), session)
        finally:
            statuses = await server.stop()
        assert statuses == [0] * len(statuses), [process.lines for process in server.processes]
