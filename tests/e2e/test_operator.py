"""The operator's side of real servers: health, metrics, the API, who may look and who may act."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import jsonschema_rs
import pytest
from aiohttp.test_utils import make_mocked_request
from aiohttp.web import BaseRequest
from prometheus_client.parser import text_string_to_metric_families

from bester.broker.operator.http import host_of
from tests.e2e.operator_stand import HEAD, TOKEN, Operator, operated, page_of, secret_in
from tests.live import (
    BESTER,
    DEADLINE_S,
    LiveServer,
    Process,
    RawClient,
    head,
    raw_handler,
    shared_server,
    short_directory,
)

DIES = '[handlers.dies]\napp = "mixed:app"\ntypes = ["dies"]\nattempts = 1\n'
ROOT = Path(__file__).parents[2]


async def messages(operator: Operator, **counts: int) -> None:
    """Let a user send so many messages of each type, and wait for the reports."""
    client = await RawClient.login(operator.server, "alice")
    for type_, count in counts.items():
        for number in range(count):
            client.submit(type_, number, f"{type_}{number}")
            await client.until_report(f"{type_}{number}")
    client.writer.close()


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Return the samples of metrics by name and labels."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server for the tests that leave nothing behind in it."""
    secret = secret_in(tmp_path_factory.mktemp("operator"))
    with shared_server(f'[operator]\nhttp = "127.0.0.1:0"\ntoken = "{secret}"\n') as server:
        yield server


@pytest.fixture
async def shared(server: LiveServer) -> AsyncIterator[Operator]:
    """Its operator."""
    async with aiohttp.ClientSession() as session:
        yield Operator(server, page_of(server.processes[0].lines), session)


async def test_up_shows_its_page_in_the_browser() -> None:
    async with short_directory() as directory:
        (directory / "bester.toml").write_text(HEAD)
        browser = directory / "browser"
        browser.write_text('#!/bin/sh\necho "$1 is opened" >&2\n')
        browser.chmod(0o700)
        server = await Process.start(
            BESTER, "up", "--page", cwd=directory, env={"DISPLAY": ":9", "BROWSER": f"{browser} %s"}
        )
        try:
            url = (await server.says("the page:")).split()[-1]
            assert url == page_of(server.lines) + "/" and not url.endswith(":0/")
            await server.says(f"{url} is opened")
        finally:
            assert await server.end() == 0


async def test_bridge_tells_its_counts() -> None:
    async with operated(layout="apart") as operator:
        client = await RawClient.login(operator.server, "alice")
        async with asyncio.timeout(30.0):
            while True:
                (bridge,) = (await operator.get("/api/status"))["bridges"]
                if bridge["figures"].get("sessions") == 1:
                    break
                await asyncio.sleep(0.05)
        name = (("bridge", bridge["name"]),)
        found = samples((await operator.request("/metrics"))[1])
        assert found["bester_bridge_sessions", name] == found["bester_bridge_connections", name] == 1
        client.writer.close()


@pytest.mark.parametrize("path", ["/metrics", "/api/status", "/api/dead", "/api/live", "/api/openapi.json", "/nothing"])
async def test_nothing_is_shown_without_the_token(shared: Operator, path: str) -> None:
    for token in (None, "wrong", TOKEN[:-1], TOKEN + "x"):
        status, text = await shared.request(path, token=token)
        assert (status, "token" in text) == (401, True)
    assert TOKEN not in "\n".join(line for process in shared.server.processes for line in process.lines)


async def test_request_without_a_host_is_answered_and_the_name_of_this_machine_not_looked_up(
    shared: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name server that hangs would hold the server, for anybody who connects."""
    reader, writer = await asyncio.open_connection(*shared.base.removeprefix("http://").split(":"))
    writer.write(b"GET /health HTTP/1.0\r\n\r\n")
    assert b" 200 OK" in await reader.readline()
    writer.close()
    monkeypatch.setattr(BaseRequest, "host", property(pytest.fail))
    assert host_of(make_mocked_request("GET", "/health")) == ""


async def test_server_that_ends_is_not_ready_while_it_finishes_what_clients_have_sent() -> None:
    async with operated(token=False) as operator, raw_handler(operator.server.fabric, "held") as handler:
        client = await RawClient.login(operator.server, "alice")
        client.submit("held", {}, "m1")
        request = await handler.hear(10)
        process = operator.server.processes[0]
        process.send_signal(signal.SIGTERM)
        await process.says("finishing the messages under way")
        status, text = await operator.request("/ready")
        assert (status, json.loads(text)) == (503, {"ready": False, "why": "the server ends"})
        assert (await operator.get("/api/status"))["draining"] is True
        await handler.say([11, request[1], 0, [], None])
        report, _ = await client.until_report("m1")
        assert report["header"]["status"] == "good"
        await client.close()
        handler.welcome = False  # the server leaves first
        await asyncio.wait_for(process.process.wait(), DEADLINE_S)  # another signal would hurry it


async def test_who_may_look_and_who_may_act() -> None:
    async with operated(token=False) as operator:
        assert (await operator.get("/health"))["server"] == "s1"
        assert await operator.get("/ready") == {"ready": True, "why": None}
        assert (await operator.request("/api/status", token=None))[0] == 200
        assert (await operator.request("/", token=None))[1].startswith("<!doctype html>")
        act: dict[str, Any] = {"method": "POST", "body": {"id": "x"}}
        assert (await operator.request("/api/dead/drop", token=TOKEN, **act))[0] == 401
        rebound = {"Host": "evil.example"}
        assert (await operator.request("/api/status", headers=rebound, token=None))[0] == 421
    async with operated() as operator:
        status, _ = await operator.request(f"/api/dead/drop?token={TOKEN}", token=None, **act)
        assert status == 401, "an act needs the header, which no other site's page can send"
        assert (await operator.request("/api/dead/drop", **act))[0] == 200
        assert (await operator.request("/api/dead/explode", **act))[0] == 400
        assert (await operator.request("/api/dead/drop", method="POST", body=[1]))[0] == 400
        assert (await operator.request("/api/peers/hold", method="POST", body={"name": "s9"}))[0] == 404
        assert (await operator.request("/api/dead?limit=x"))[0] == 400
        assert (await operator.request("/nothing"))[0] == 404


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("application/json", b"[" * 60_000),
        ("application/json", b'{"id":' * 9_000),
        ("application/json; charset=nope", b"[]"),
        ("application/json; charset=utf-16", b'{"id": 1}'),
        ("application/json", b"\xff\xfe\x00"),
        ("text/plain", b""),
    ],
)
async def test_odd_bodies_are_refused_in_one_line_and_log_no_traceback(
    shared: Operator, kind: str, body: bytes
) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": kind}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{shared.base}/api/dead/drop", data=body, headers=headers) as answer,
    ):
        assert (answer.status, list(await answer.json())) == (400, ["error"])
    for limit in ("9" * 5000, "00000001", "-1", "\u00b2"):
        assert (await shared.request(f"/api/dead?limit={limit}"))[0] == 400
    lines = [line for process in shared.server.processes for line in process.lines]
    assert not [line for line in lines if "Traceback" in line]


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /api/dead/drop HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -5\r\n\r\n",
    ],
    ids=["long", "tls", "version", "length"],
)
async def test_stranger_who_sends_no_http_gets_nothing_into_the_log(shared: Operator, sent: bytes) -> None:
    port = int(shared.base.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(sent)
    answer = await asyncio.wait_for(reader.readline(), 30.0)
    assert answer.startswith(b"HTTP/1."), answer
    assert b" 200 " not in answer
    writer.close()
    assert (await shared.get("/health"))["status"] == "ok"
    lines = [line for process in shared.server.processes for line in process.lines]
    assert not [line for line in lines if "Traceback" in line or "error" in line]


async def test_dead_letter_is_shown_and_dropped() -> None:
    async with operated(DIES) as operator:
        await operator.server.has_type("dies")
        await messages(operator, dies=1)
        (row,) = await operator.get("/api/dead")
        assert (row["type"], row["reason"]) == ("dies", "handler-lost")
        letter = await operator.get(f"/api/dead/letter?id={row['id']}")
        assert letter["id"] == row["id"]
        status, text = await operator.request("/api/dead/replay", method="POST", body={"id": row["id"]})
        assert (status, json.loads(text)["replayed"]) == (200, 1)
        async with asyncio.timeout(30.0):
            while (await operator.get("/api/status"))["types"]["dies"]["dead"] < 2:
                await asyncio.sleep(0.05)
        status, text = await operator.request("/api/dead/drop", method="POST", body={"id": row["id"]})
        assert (status, json.loads(text)["dropped"]) == (200, 1)
        assert await operator.get("/api/dead") == []


async def test_answers_are_those_of_the_document() -> None:
    async with operated(DIES + '[servers.s2]\nnative = "127.0.0.1:9"\n') as operator:
        await operator.server.has_type("dies")
        client = await RawClient.login(operator.server, "bob")
        await messages(operator, ok=1, refuses=1, dies=1)
        document = await operator.get("/api/openapi.json")
        (letter,) = await operator.get("/api/dead")
        wanted = {"/api/dead/letter": {"id": letter["id"]}, "/api/peers": {"name": "s2"}, "/api/dead": letter}
        seen = set()
        for path, methods in document["paths"].items():
            ((method, facts),) = methods.items()
            ((kind, content),) = facts["responses"]["200"]["content"].items()
            if kind != "application/json":
                continue
            body = wanted[path.rpartition("/")[0]] if method == "post" else None
            body = body and {name: body[name] for name in facts["requestBody"]["content"][kind]["schema"]["required"]}
            query = "".join(f"?{name}={value}" for name, value in wanted.get(path, {}).items() if name == "id")
            asked = path + query if path == "/api/dead/letter" else path
            status, text = await operator.request(asked, method.upper(), body=body)
            assert status == 200, (path, text)
            checked_by(document, content["schema"]).validate(json.loads(text))
            seen.add(path)
            status, text = await operator.request(asked, "POST", body={"id": 7, "name": 7})
            if status != 405 and method == "post":
                checked_by(document, {"$ref": "#/components/schemas/Error"}).validate(json.loads(text))
        assert len(seen) == len(document["paths"]) - 2, "all but metrics and live events"
        with pytest.raises(jsonschema_rs.ValidationError):
            checked_by(document, {"$ref": "#/components/schemas/Status"}).validate({"server": "s1"})
        client.writer.close()


def checked_by(document: Any, schema: Any) -> jsonschema_rs.Validator:
    """Return the validator of a schema within the document."""
    return jsonschema_rs.validator_for({**schema, "components": document["components"]})


async def test_live_events_and_trace() -> None:
    async with operated() as operator:
        await messages(operator, ok=1)
        found = await operator.get("/api/trace")
        assert [step["what"] for step in found["steps"]] == ["handler", "delivered"]
        assert [(span["kind"], span["outcome"]) for span in found["spans"]] == [
            ("handler", None), ("delivery", "delivered")
        ]  # fmt: skip
        by_id = await operator.get(f"/api/trace?id={found['root']}")
        shown = json.loads((await command(operator, "trace", "--last", "--json"))[0])
        for again in (by_id, shown):  # the times are of the wall clock, which is read anew
            assert [(step["id"], step["what"], step["where"]) for step in again["steps"]] == [
                (step["id"], step["what"], step["where"]) for step in found["steps"]
            ]
        lines = await command(operator, "trace", found["root"])
        assert lines[0].split() == ["AFTER", "MS", "TOOK", "MS", "WHAT", "WHERE", "OUTCOME", "MESSAGE"]
        assert "handler" in lines[1] and "█" in lines[1] and "delivered" in lines[2] and "s1/alice" in lines[2]


async def test_commands_for_people() -> None:
    async with operated() as operator:
        client = await RawClient.login(operator.server, "alice")
        await messages(operator, ok=2, breaks=1)
        lines = await command(operator, "status")
        assert any(line.startswith("breaks") and "1 handler-failed" in line for line in lines)
        assert "alice  1" in await command(operator, "sessions")
        assert any(line.startswith("ok ") for line in await command(operator, "top", "--once", "--every", "0.2"))
        rows = [json.loads(line) for line in await command(operator, "top", "--once", "--every", "0.2", "--json")]
        (row,) = [row for row in rows if row["type"] == "ok"]
        assert (row["server"], row["workers"], row["waiting"], row["received_per_s"]) == ("s1", 1, 0, 0.0)
        client.writer.close()


async def test_token_must_be_a_secret_of_its_owner(tmp_path: Path) -> None:
    toml = head() + '[operator]\nhttp = "127.0.0.1:0"\n'
    (tmp_path / "bester.toml").write_text(toml + 'token = "token"\n')
    for content, mode, words in (
        (None, 0o600, "cannot be read"),
        (TOKEN, 0o644, "can be read by others; chmod 600"),
        ("short", 0o600, "holds no secret of 16 characters"),
    ):
        if content is not None:
            (tmp_path / "token").write_text(content)
            (tmp_path / "token").chmod(mode)
        process = await Process.start(BESTER, "up", cwd=tmp_path)
        await process.says(words)
        assert await asyncio.wait_for(process.process.wait(), 60.0) == 2
        await process.end()


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is missing: apt-get install prometheus")
async def test_metrics_and_rules_please_promtool() -> None:
    def promtool(*arguments: str, text: str = "") -> None:
        done = subprocess.run(["promtool", *arguments], input=text, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    async with operated() as operator:
        await messages(operator, ok=1, breaks=1)
        text = (await operator.request("/metrics"))[1]
    promtool("check", "metrics", text=text)
    promtool("check", "rules", str(ROOT / "deploy/alerts.yml"))
    promtool("test", "rules", str(ROOT / "deploy/alerts_test.yml"))


async def command(operator: Operator, *arguments: str) -> list[str]:
    """Return the lines of a good command in the server's directory."""
    process = await Process.start(BESTER, *arguments, cwd=operator.server.directory)
    status = await asyncio.wait_for(process.process.wait(), 60.0)
    await process.end()
    assert status == 0, process.lines
    return process.lines


def test_every_metric_of_the_dashboard_exists() -> None:
    shown = re.findall(r"bester_[a-z_]+", (ROOT / "deploy/dashboard.json").read_text())
    text = (ROOT / "broker/bester/broker/operator/metrics.py").read_text()
    for name in set(shown):
        stem = name.removesuffix("_total").removesuffix("_bucket")
        alone = stem.removeprefix("bester_messages_")
        assert stem in text or f'"{alone}"' in text or stem.startswith("bester_bridge_"), name
