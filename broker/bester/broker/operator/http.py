"""The operator's HTTP side: `/health`, `/ready`, `/metrics`, `/api/…` and the page. A shell around the broker's status.

Whoever may connect may look: on loopback everybody on this machine, with a token or authorities those who have it, or a
certificate of theirs. Acts (retry, hold, release, drop, replay) need the token in the `Authorization` header, which no
other site's page can send, or a certificate, which a browser shows for every page: a request with it has to have a type
of body that no other site's page may send, and no foreign `Origin`. A request with a foreign `Host` does nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hmac
import json
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from importlib.resources import files
from typing import Any

from aiohttp import web

from bester.broker.config import OperatorConfig
from bester.broker.doctor.live import findings_of
from bester.broker.layer_turns import LayerTurns
from bester.broker.logs import facts
from bester.broker.operator import metrics
from bester.broker.operator.access import Access, name_in_certificate
from bester.broker.operator.connections import Connections
from bester.broker.operator.desk import Desk
from bester.broker.operator.openapi import document
from bester.broker.renewal import LOOK_S
from bester.broker.server import Broker
from bester.broker.tls_faults import TlsError
from bester.broker.tls_stream import TlsStream
from bester.broker.wire.address import is_loopback
from bester.broker.wire.codes import BesterError, ConfigError
from bester.broker.wire.notes import describe

MAX_REQUESTS = 64
"""Requests at once; above it a request is answered 503. An operator has a few pages and a scraper."""
MAX_LIVE = 16
"""Pages that are kept up to date at once; each costs a status a second."""
MAX_BODY = 64 * 1024
BODY_S = 10.0
"""Time for a body, from the end of its head, and for a page to take a status: a request in hand holds a place."""
LIVE_S = 1.0
"""Time between two statuses of a page: a handler that stops shows within it, and its heartbeats' time."""
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
OPEN = ("/health", "/ready", "/", "/page.js", "/page.css")
"""Paths that need no token: they tell nothing but whether the server works, and the page itself is no secret."""
PLAIN_ANSWER = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 23\r\n\r\nuse https:// (TLS) here"
"""Answer to plain text at a listener of TLS."""
PEER_ACTS = {"retry": "peerRetry", "hold": "peerHold", "release": "peerRelease", "drop": "peerDrop"}
DEAD_ACTS = {"replay": "deadReplay", "drop": "deadDrop"}

log = logging.getLogger("bester.operator")
library_log = logging.getLogger("bester.operator.library")
"""Log of the HTTP library, switched off: a stranger's request that is no HTTP would write a traceback."""
library_log.disabled = True
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class OperatorHttp:
    """The routes. `access` knows who is let in; `host` is where the side listens."""

    def __init__(self, broker: Broker, access: Access, host: str) -> None:
        self._broker = broker
        self._desk = Desk(broker)
        self._access = access
        self._host = host
        self._requests = 0
        self._live = 0
        self._live_at = -math.inf
        self._live_event = b""
        self.connections: Connections | None = None
        """The connections that requests come from, once there is a listener."""
        self.app = web.Application(middlewares=[self._admit], client_max_size=MAX_BODY)
        self.app.router.add_get("/health", self._health)
        self.app.router.add_get("/ready", self._ready)
        self.app.router.add_get("/metrics", self._metrics)
        self.app.router.add_get("/api/openapi.json", self._openapi)
        self.app.router.add_get("/api/live", self._live_status)
        self.app.router.add_get("/api/types", self._types)
        for path, question in (("status", "status"), ("sessions", "sessions"), ("peers", "peers")):
            self.app.router.add_get(f"/api/{path}", self._answer(question))
        self.app.router.add_get("/api/findings", self._findings)
        self.app.router.add_get("/api/dead", self._dead)
        self.app.router.add_get("/api/dead/letter", self._letter)
        self.app.router.add_get("/api/trace", self._trace)
        self.app.router.add_post("/api/dead/{act}", self._act_on_dead)
        self.app.router.add_post("/api/peers/{act}", self._act_on_peer)
        for path, name, kind in (
            ("/", "index.html", "text/html"),
            ("/page.js", "page.js", "text/javascript"),
            ("/page.css", "page.css", "text/css"),
        ):
            self.app.router.add_get(path, self._file(name, kind))

    # --- who may ---

    @web.middleware
    async def _admit(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if self.connections is None:
            return await self._answered(request, handler)
        with self.connections.in_hand(request.protocol):
            await self.connections.requests.wait()
            return await self._answered(request, handler)

    async def _answered(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if self._requests >= MAX_REQUESTS:
            return _refuse(503, "too many requests at once; try again")
        if not self._is_our_name(host_of(request)):
            return _refuse(421, "this is not the name of this server; open the page by the address it listens on")
        if request.method not in ("GET", "HEAD") and not self._has_token(request):
            if _certified(request) is None:
                why = "set [operator] token, and " if self._access.is_open else ""
                return _refuse(401, f"an act needs the token: {why}send Authorization: Bearer TOKEN")
            if not _is_own_page(request):
                return _refuse(403, "with a certificate an act needs Content-Type: application/json, and our Origin")
        if request.path not in OPEN and not self._may_look(request):
            return _refuse(401, self._needed())
        self._requests += 1
        try:
            response = await handler(request)
        except web.HTTPException as error:
            response = _refuse(error.status, error.reason.lower())
        except BesterError as error:
            response = _refuse(504 if error.code == "timeout" else 404, error.text)
        except Exception as error:  # noqa: BLE001 (the fault of one request must not be the library's to log)
            fields = facts("operator-failed", path=request.path, why=describe(error))
            log.error("%s %r cannot be answered: %s", request.method, request.path, describe(error), extra=fields)
            response = _refuse(500, "this request cannot be answered; the log says why")
        finally:
            self._requests -= 1
        if not response.prepared:
            response.headers.update(HEADERS)
        return response

    def _is_our_name(self, host: str) -> bool:
        """Return whether a request came under an address of this server: a page elsewhere may look up to loopback. A
        program that names no host has no page."""
        if not host:
            return True
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
        name = name.strip("[]")
        return is_loopback(name) or name == self._host if is_loopback(self._host) else True

    def _has_token(self, request: web.Request) -> bool:
        given = request.headers.get("Authorization", "")
        return self._access.token is not None and _same(given, f"Bearer {self._access.token}")

    def _knows(self, request: web.Request) -> bool:
        """Return whether a request comes from somebody who may act too, by the token or by a certificate."""
        token = self._access.token
        in_address = token is not None and _same(request.query.get("token", ""), token)
        return in_address or self._has_token(request) or _certified(request) is not None

    def _may_look(self, request: web.Request) -> bool:
        return self._access.is_open or self._knows(request)

    def _needed(self) -> str:
        if self._access.token is None:
            return "a certificate of [operator] client_ca is needed"
        return "the token is needed: send Authorization: Bearer TOKEN, or open the page with ?token="

    # --- what there is ---

    async def _health(self, request: web.Request) -> web.Response:
        return web.json_response({"status": "ok", "server": self._broker.settings.name})

    async def _ready(self, request: web.Request) -> web.Response:
        status = await self._desk.ask("status")
        bridges = status["peers"].get("bridge", 0)
        why = (
            "the server ends"
            if status["draining"]
            else ""
            if bridges
            else "no bridge is linked: clients have no way in"
        )
        return web.json_response({"ready": not why, "why": why or None}, status=503 if why else 200)

    async def _metrics(self, request: web.Request) -> web.Response:
        pieces: list[bytes] = []
        for piece in metrics.pieces_of(await self._desk.ask("status")):
            pieces.append(piece)
            await asyncio.sleep(0)  # a turn of the loop for each
        return web.Response(body=b"".join(pieces), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    async def _openapi(self, request: web.Request) -> web.Response:
        return web.json_response(document())

    def _answer(self, question: str) -> Handler:
        async def handler(request: web.Request) -> web.Response:
            """Answer with the value of a question to the broker."""
            return _json(await self._desk.ask(question))

        return handler

    async def _types(self, request: web.Request) -> web.Response:
        return _json(await self._desk.ask("types", {"from": request.query.get("from", "")}))

    async def _findings(self, request: web.Request) -> web.Response:
        return _json(_found(await self._desk.ask("status")))

    async def _dead(self, request: web.Request) -> web.Response:
        limit = request.query.get("limit", "100")
        if not limit.isdecimal() or len(limit) > 4 or not 0 < int(limit) <= 1000:
            return _refuse(400, "limit is a number from 1 to 1000")
        wanted = {"type": request.query["type"]} if "type" in request.query else {}
        return _json(await self._desk.ask("deadList", {**wanted, "limit": int(limit)}))

    async def _letter(self, request: web.Request) -> web.Response:
        return _json(await self._desk.ask("deadShow", request.query.get("id", "")))

    async def _trace(self, request: web.Request) -> web.Response:
        return _json(await self._desk.ask("follow", request.query.get("id")))

    async def _act_on_dead(self, request: web.Request) -> web.Response:
        question, id_ = DEAD_ACTS.get(request.match_info["act"]), await _named(request, "id")
        if question is None or id_ is None:
            return _refuse(400, 'replay or drop one dead letter: {"id": "…"}')
        return self._done(request, question, id_, await self._desk.ask(question, {"id": id_}))

    async def _act_on_peer(self, request: web.Request) -> web.Response:
        question, name = PEER_ACTS.get(request.match_info["act"]), await _named(request, "name")
        if question is None or name is None:
            return _refuse(400, 'retry, hold, release or drop what waits for one server: {"name": "…"}')
        return self._done(request, question, name, await self._desk.ask(question, name))

    def _done(self, request: web.Request, question: str, what: str, value: Any) -> web.Response:
        who = "the token" if self._has_token(request) else _certified(request)
        log.info(
            "%s %s, by HTTP of %s", question, what, who, extra=facts("operator-act", act=question, what=what, by=who)
        )
        return _json(value)

    def _file(self, name: str, kind: str) -> Handler:
        content = files("bester.broker.operator").joinpath("page", name).read_bytes()

        async def handler(request: web.Request) -> web.Response:
            """Answer with a file of the page."""
            return web.Response(body=content, content_type=kind, charset="utf-8")

        return handler

    async def _live_text(self) -> bytes:
        """Return the event of the status with its findings; the open pages share it for half a second."""
        now = asyncio.get_running_loop().time()
        if now - self._live_at > LIVE_S / 2:
            status = await self._desk.ask("status")
            self._live_event = b"data: " + json.dumps(status | {"findings": _found(status)}).encode() + b"\n\n"
            self._live_at = now
        return self._live_event

    async def _live_status(self, request: web.Request) -> web.StreamResponse:
        """Send the status with its findings once a second, as server-sent events."""
        if self._live >= MAX_LIVE:
            return _refuse(503, "too many pages are open; close some")
        response = web.StreamResponse(headers={**HEADERS, "Content-Type": "text/event-stream"})
        await response.prepare(request)
        self._live += 1
        may_act = json.dumps({"act": self._knows(request)}).encode()
        try:
            await response.write(b"event: rights\ndata: " + may_act + b"\n\n")
            while True:
                text = await self._live_text()
                async with asyncio.timeout(BODY_S):
                    await response.write(text)
                await asyncio.sleep(LIVE_S)
        except (ConnectionError, TimeoutError, BesterError):
            return response
        finally:
            self._live -= 1


async def _named(request: web.Request, key: str) -> str | None:
    """Return one text of the request's JSON body, None where there is none. Raises HTTPRequestTimeout."""
    try:
        async with asyncio.timeout(BODY_S):
            text = await request.read()
        body = json.loads(text)  # whatever charset the request names: JSON is UTF-8
    except TimeoutError:
        raise web.HTTPRequestTimeout from None
    except (ValueError, RecursionError):
        return None
    value = body.get(key) if isinstance(body, dict) else None
    return value if type(value) is str and value else None


def _found(status: dict[str, Any]) -> list[dict[str, str]]:
    return [finding.as_map() for finding in findings_of(status)]


def _json(value: Any) -> web.Response:
    return web.Response(body=json.dumps(value, default=_shown).encode(), content_type="application/json")


def _shown(value: object) -> str:
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value)


def _refuse(status: int, why: str) -> web.Response:
    return web.json_response({"error": why}, status=status, headers=HEADERS)


def host_of(request: web.Request) -> str:
    """Return the host that a request names, with the port; empty where it names none. (`request.host` looks up this
    machine's name then, on the loop, in versions of the library before 3.14.)"""
    return request.headers.get("Host", "")


def _same(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode(errors="replace"), wanted.encode())


def _certified(request: web.Request) -> str | None:
    """Return the name in the verified certificate of who sends a request; None where there is none."""
    transport = request.transport
    return None if transport is None else name_in_certificate(transport.get_extra_info("ssl_object"))


def _is_own_page(request: web.Request) -> bool:
    """Return whether a request comes from no other site's page: such a page may send no JSON without asking first."""
    origin = request.headers.get("Origin")
    own = origin is None or origin == f"https://{host_of(request)}"
    return own and request.content_type == "application/json"


@contextlib.asynccontextmanager
async def serving(broker: Broker, config: OperatorConfig) -> AsyncIterator[str]:
    """Serve the operator's side; yield its address as `host:port`. Raises ConfigError where it cannot be opened."""
    assert config.http is not None
    host, port = config.http
    access = Access(config)
    side = OperatorHttp(broker, access, host)
    runner = web.AppRunner(
        side.app, access_log=None, logger=library_log, shutdown_timeout=1.0, handler_cancellation=True
    )
    await runner.setup()
    assert runner.server is not None
    connections = side.connections = Connections(runner.server)
    access.changed = connections.end_all
    broker.hooks.reread_operator = access.reload
    watch = asyncio.get_running_loop().create_task(_watch(access))
    try:
        turns = LayerTurns(time.monotonic, asyncio.get_running_loop().call_soon)
        make = connections if access.context is None else partial(_secure, access, connections, turns)
        with contextlib.closing(await _listening(make, host, port)) as listener:
            name = listener.sockets[0].getsockname()
            address = f"[{name[0]}]:{name[1]}" if ":" in name[0] else f"{name[0]}:{name[1]}"
            log.info(
                "operator's page on %s://%s/", config.scheme, address, extra=facts("operator-http", address=address)
            )
            yield address
    finally:
        watch.cancel()
        await runner.cleanup()


async def _watch(access: Access) -> None:
    """Look at the files of the access once a minute."""
    while True:
        access.look()
        await asyncio.sleep(LOOK_S)


def _secure(access: Access, connections: Connections, turns: LayerTurns) -> TlsStream:
    """Return the protocol of a connection with TLS. Its bounds of number and time hold for the handshake too."""
    assert access.context is not None
    connection = connections()

    def failed(fault: TlsError) -> None:
        address = connection.address
        extra = facts("tls-failed", address=address, why=str(fault))
        log.warning("TLS with %s failed: %s", address, fault, extra=extra)

    return TlsStream(connection, access.context, plain_answer=PLAIN_ANSWER, turns=turns, failed=failed)


async def _listening(make: Callable[[], asyncio.Protocol], host: str, port: int) -> asyncio.Server:
    try:
        return await asyncio.get_running_loop().create_server(make, host, port)
    except OSError as error:
        in_use = f"port {port} is in use; stop its owner or choose another port"
        why = in_use if error.errno == errno.EADDRINUSE else error.strerror or error
        raise ConfigError(f"[operator] http: {host}:{port}: {why}") from None
