"""The operator's page over TLS: certificates of operators let in as the token does, and nobody else."""

from __future__ import annotations

import asyncio
import json
import signal
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID

from tests.authorities import Authority
from tests.e2e.operator_stand import HANDLERS, HEAD, TOKEN, secret_in
from tests.live import LiveServer, short_directory

DROP = {"data": json.dumps({"id": "x"}), "headers": {"Content-Type": "application/json"}}
REFUSED = (aiohttp.ClientError, ConnectionError, ssl.SSLError)


@dataclass
class Secure:
    """A server whose page speaks TLS, and the authority of its operators."""

    server: LiveServer
    base: str
    ours: Authority

    def context(self, pair: tuple[Path, Path] | None) -> ssl.SSLContext:
        """Return the context of a client that shows this certificate."""
        made = ssl.create_default_context(cafile=str(self.ours.ca))
        if pair is not None:
            made.load_cert_chain(*pair)
        return made

    @asynccontextmanager
    async def client(self, pair: tuple[Path, Path] | None) -> AsyncIterator[aiohttp.ClientSession]:
        """Run a client that shows this certificate."""
        async with aiohttp.ClientSession(self.base, connector=aiohttp.TCPConnector(ssl=self.context(pair))) as session:
            yield session


@asynccontextmanager
async def secured(*, token: bool = False) -> AsyncIterator[Secure]:
    async with short_directory() as directory:
        (directory / "mixed.py").write_text(HANDLERS)
        secret_in(directory)
        ours = Authority(directory)
        ours.issue("127.0.0.1", file="page")
        toml = HEAD + 'cert = "page.pem"\nkey = "page.key"\nclient_ca = "authority.pem"\n'
        toml += 'token = "operator.token"\n' if token else ""
        server = await LiveServer.start(directory, toml + '[handlers.mixed]\napp = "mixed:app"\ntypes = ["ok"]\n', "up")
        try:
            await server.has_type("ok")
            line = await server.processes[0].says("page on https://")
            yield Secure(server, "https://" + line.partition("https://")[2].rstrip("/"), ours)
        finally:
            statuses = await server.stop()
        assert statuses == [0], server.processes[0].lines


async def status_of(session: aiohttp.ClientSession, path: str, method: str = "GET", **more: Any) -> int:
    async with session.request(method, path, **more) as answer:
        await answer.read()
        return answer.status


async def test_certificate_lets_look_and_act_and_no_certificate_neither() -> None:
    async with secured() as secure:
        ann = secure.ours.issue("ann.example", file="ann")
        async with secure.client(None) as nobody:
            assert await status_of(nobody, "/health") == 200
            assert await status_of(nobody, "/") == 200
            async with nobody.get("/api/status") as answer:
                assert (answer.status, "client_ca" in await answer.text()) == (401, True)
            assert await status_of(nobody, "/api/live", headers={"Authorization": "Bearer "}) == 401
            assert await status_of(nobody, "/api/status?token=") == 401
            assert await status_of(nobody, "/api/dead/drop", "POST", **DROP) == 401
        async with secure.client(ann) as operator:
            assert await status_of(operator, "/api/status") == 200
            assert await status_of(operator, "/api/dead/drop", "POST", **DROP) == 200
            await secure.server.processes[0].says("by HTTP of ann.example")
            async with operator.get("/api/live") as live:
                assert [await live.content.readline() for _ in range(2)] == [
                    b"event: rights\n", b'data: {"act": true}\n'
                ]  # fmt: skip


async def test_page_of_another_site_cannot_act_with_a_certificate() -> None:
    async with secured() as secure, secure.client(secure.ours.issue("ann.example", file="ann")) as browser:
        foreign = {"Content-Type": "application/json", "Origin": "https://evil.example"}
        for headers, status in (
            ({"Content-Type": "text/plain"}, 403),
            ({"Content-Type": "application/x-www-form-urlencoded"}, 403),
            (foreign, 403),
            ({**foreign, "Origin": "null"}, 403),
            ({**foreign, "Origin": secure.base}, 200),
        ):
            assert await status_of(browser, "/api/dead/drop", "POST", data=DROP["data"], headers=headers) == status
        async with browser.options("/api/dead/drop", headers=foreign) as asked:
            assert not [name for name in asked.headers if name.lower().startswith("access-control")]


async def test_other_certificates_end_the_handshake(tmp_path: Path) -> None:
    async with secured() as secure:
        theirs = Authority(tmp_path, "theirs").issue("ann.example", file="ann")
        late = secure.ours.issue("ann.example", file="late", end=-timedelta(hours=1))
        of_a_server = secure.ours.issue("s2.example", file="s2", uses=(ExtendedKeyUsageOID.SERVER_AUTH,))
        no_text = secure.ours.issue(file="no-text", encoded=b"0\x05\x82\x03an\xff")
        faults = ((theirs, "authority"), (late, "expired"), (of_a_server, "extendedKeyUsage"), (no_text, "is no text"))
        for pair, words in faults:
            async with secure.client(pair) as session:
                with pytest.raises(REFUSED):
                    await status_of(session, "/health")
            await secure.server.processes[0].says(words)
        plain = secure.base.replace("https", "http")
        async with aiohttp.ClientSession() as session, session.get(plain + "/health") as answer:
            assert (answer.status, await answer.text()) == (400, "use https:// (TLS) here")


async def test_token_and_certificate_each_let_in_and_changed_files_are_taken_in() -> None:
    async with secured(token=True) as secure:
        process, directory = secure.server.processes[0], secure.server.directory
        header = {"Authorization": f"Bearer {TOKEN}"}
        ann = secure.ours.issue("ann.example", file="ann")
        async with secure.client(None) as by_token, secure.client(ann) as by_certificate:
            assert await status_of(by_token, "/api/status") == 401
            assert await status_of(by_token, "/api/status", headers=header) == 200
            assert await status_of(by_token, "/api/dead/drop", "POST", data=DROP["data"], headers=header) == 200
            assert await status_of(by_certificate, "/api/status") == 200
            async with by_certificate.get("/api/live") as live:
                (directory / "operator.token").write_text("another-secret-of-it")
                theirs = Authority(directory, "later")
                (directory / "authority.pem").write_bytes(theirs.ca.read_bytes())
                process.process.send_signal(signal.SIGHUP)
                await process.says("page were read again")
                with pytest.raises(REFUSED):  # who was let in before is let in anew, or not
                    await asyncio.wait_for(live.content.read(), 60.0)
            assert await status_of(by_token, "/api/status", headers=header) == 401
            with pytest.raises(REFUSED):
                await status_of(by_certificate, "/api/status")
            (directory / "operator.token").write_text("short")
            process.process.send_signal(signal.SIGHUP)
            await process.says("holds no secret of 16 characters")
            header = {"Authorization": "Bearer another-secret-of-it"}
            assert await status_of(by_token, "/api/status", headers=header) == 200
