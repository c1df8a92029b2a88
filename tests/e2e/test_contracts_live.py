"""Contracts on a real server: refused before dispatch, hostile schemas at HELLO, and `bester types`."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.live import BESTER, LiveServer, Process, RawClient, RawHandler, live_server, raw_handler

LETTER = {"type": "object", "properties": {"to": {"type": "array", "items": {"type": "string"}}}, "required": ["to"]}


async def types(server: LiveServer, option: str) -> list[str]:
    """Return the lines that `bester types` prints."""
    run = await Process.start(BESTER, "types", option, cwd=server.directory)
    async with asyncio.timeout(60):
        assert await run.process.wait() == 0, run.lines
    await run.end()
    return run.lines


async def test_a_bad_payload_never_reaches_the_handler() -> None:
    async with (
        live_server() as server,
        raw_handler(server.fabric, "letter", schema={"letter": LETTER}, version="1.2") as handler,
    ):
        serving = asyncio.create_task(handler.serve(2, lambda request: []))
        bob = await RawClient.login(server, "bob")
        for data, note in (
            ({"to": ["a", "b", "c", 1]}, "data.to[3]: expected a string"),
            ({}, "data.to: required, but missing"),
            ("hello", "data: expected an object"),
            ({"to": ["a"]}, None),
            ({"to": []}, None),
        ):
            bob.submit("letter", data, "m")
            report, _ = await bob.until_report("m")
            payload = report["payload"]
            expected = (None, None) if note is None else ("schema", note)
            assert (payload.get("reason"), payload.get("note")) == expected
        await serving
        await bob.close()
        (row,) = map(json.loads, await types(server, "--json"))
        assert (row["type"], row["contracts"], row["differ"]) == ("letter", [LETTER], False)
        assert [(each["name"], each["version"]) for each in row["workers"]] == [("raw", "1.2")]
        document = json.loads("\n".join(await types(server, "--asyncapi")))
        assert document["asyncapi"] == "3.0.0" and set(document) >= {"info", "channels", "operations"}
        for operation in document["operations"].values():
            assert operation["action"] == "receive"
            for ref in (operation["channel"]["$ref"], *(each["$ref"] for each in operation["messages"])):
                assert follow(document, ref)
        channel = document["channels"]["letter"]
        message = follow(document, channel["messages"]["letter"]["$ref"])
        assert channel["address"] == "letter" and message["payload"]["schema"] == LETTER


def follow(document: object, ref: str) -> dict[str, dict[str, object]]:
    """Return what a local reference leads to."""
    found = document
    for step in ref.removeprefix("#/").split("/"):
        assert isinstance(found, dict)
        found = found[step]
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("schema", [{"$ref": "http://127.0.0.1:1/x"}, {"$ref": "#"}, {"pattern": "(?=a)"}, "text"])
async def test_a_hostile_schema_is_refused_at_hello_with_its_reason(schema: object) -> None:
    async with live_server() as server:
        handler = RawHandler(server.fabric, ["letter"], schema={"letter": schema})
        try:
            op, code, text, *_ = await handler.hello()
        finally:
            handler.close()
        assert (op, code) == (5, "schema") and "'letter'" in text


async def test_workers_that_differ_are_named_in_the_log() -> None:
    async with (
        live_server() as server,
        raw_handler(server.fabric, "letter", schema={"letter": LETTER}),
        raw_handler(server.fabric, "letter", schema={"letter": {"type": "string"}}),
    ):
        await server.processes[0].says("contracts-differ")
        (row,) = map(json.loads, await types(server, "--json"))
        assert row["differ"] and len(row["contracts"]) == 2


async def test_a_message_that_waited_for_its_handler_is_checked_too() -> None:
    async with live_server() as server:
        async with raw_handler(server.fabric, "letter"):
            pass
        bob = await RawClient.login(server, "bob")
        for number in range(3):
            bob.submit("letter", {"to": [number]}, str(number))
        bob.submit("echo", 1, "behind")  # nobody serves it: its report tells that the others wait
        assert (await bob.until_report("behind"))[0]["payload"]["reason"] == "unknown-type"
        async with raw_handler(server.fabric, "letter", schema={"letter": LETTER}):
            for number in range(3):
                report, _ = await bob.until_report(str(number))
                assert report["payload"]["note"] == "data.to[0]: expected a string"
        await bob.close()
