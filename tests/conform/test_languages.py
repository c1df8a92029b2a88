"""The examples in other languages pass every case, where the language is installed."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import msgpack  # type: ignore[import-untyped]  # it ships no types
import pytest
import zmq
import zmq.asyncio

from bester.broker.wire.messages import OP_OF, Goodbye, Heartbeat, Hello
from tests.conform.programs import ROOT, failures, tried
from tests.keyed import free_port, server_key
from tests.live import BESTER, DEADLINE_S, LiveServer, Process, RawClient, live_server, short_directory

EXAMPLES = ROOT / "examples"
BUILD_S = 120


def _c(directory: Path) -> tuple[str, ...]:
    source = EXAMPLES / "c"
    how = "apt-get install gcc make libzmq3-dev libmsgpack-dev"
    for tool in ("cc", "make"):
        if shutil.which(tool) is None:
            pytest.skip(f"examples/c is not tried, {tool} is missing: {how}")
    probe = subprocess.run(
        ["cc", "-E", "-"], input="#include <zmq.h>\n#include <msgpack.h>\n", text=True, capture_output=True, check=False
    )
    if probe.returncode != 0:
        pytest.skip(f"examples/c is not tried, headers are missing: {how}")
    programs = [str(directory / name) for name in ("shout", "deployment")]
    build = ["make", "-C", str(source), f"BUILD={directory}", "CFLAGS=-O1 -Werror", *programs]
    subprocess.run(build, check=True, capture_output=True, text=True, timeout=BUILD_S)
    return (str(directory / "shout"),)


def _node(directory: Path) -> tuple[str, ...]:
    how = "npm install in examples/node"
    if shutil.which("node") is None:
        pytest.skip(f"examples/node is not tried, node is missing: apt-get install nodejs npm, then {how}")
    loads = 'require("zeromq"), require("@msgpack/msgpack")'
    probe = subprocess.run(["node", "-e", loads], cwd=EXAMPLES / "node", capture_output=True, check=False)
    if probe.returncode != 0:
        pytest.skip(f"examples/node is not tried, its packages are missing: {how}")
    return ("node", str(EXAMPLES / "node" / "shout.js"))


def _ruby(directory: Path) -> tuple[str, ...]:
    how = "apt-get install ruby ruby-ffi-rzmq ruby-msgpack"
    if shutil.which("ruby") is None:
        pytest.skip(f"examples/ruby is not tried, ruby is missing: {how}")
    probe = subprocess.run(["ruby", "-e", 'require "ffi-rzmq"; require "msgpack"'], capture_output=True, check=False)
    if probe.returncode != 0:
        pytest.skip(f"examples/ruby is not tried, its packages are missing: {how}")
    return ("ruby", str(EXAMPLES / "ruby" / "shout.rb"))


LANGUAGES: dict[str, Callable[[Path], tuple[str, ...]]] = {"c": _c, "node": _node, "ruby": _ruby}
every_language = pytest.mark.parametrize("language", LANGUAGES)


@every_language
async def test_the_example_passes(language: str, tmp_path: Path) -> None:
    results = await tried(LANGUAGES[language](tmp_path), curve=True)
    assert not failures(results)
    assert not [result for result in results if result.state != "pass"]


@every_language
async def test_the_example_serves_a_real_broker_by_ipc_and_by_curve(language: str, tmp_path: Path) -> None:
    command = LANGUAGES[language](tmp_path)
    key, port = tmp_path / "h.key", free_port()
    subprocess.run([BESTER, "keys", "new", str(key)], check=True, capture_output=True, text=True)
    toml = (
        f'[fabric]\nlisten = ["ipc://DATA_DIR/fabric.sock", "tcp://127.0.0.1:{port}"]\ncurve = true\n'
        f'[fabric.parties.h]\nkey = "{Path(f"{key}.pub").read_text().strip()}"\nrole = "handler"\ntypes = ["shout"]\n'
    )
    async with live_server(toml) as server:
        named = {"BESTER_TYPES": "shout", "BESTER_NAME": f"{language}-1"}
        by_curve = {"BESTER_KEY": str(key), "BESTER_SERVER_KEY": server_key(server.directory)}
        await _shouts(command, server, named, tmp_path)
        named["BESTER_NAME"] = f"{language}-2"
        await _shouts(command, server, named | by_curve | {"BESTER_FABRIC": f"tcp://127.0.0.1:{port}"}, tmp_path)
        refused = {**named, **by_curve, "BESTER_TYPES": "whisper", "BESTER_FABRIC": f"tcp://127.0.0.1:{port}"}
        handler = await Process.start(*command, cwd=tmp_path, env=refused)
        try:
            await handler.says("this key is not for the type 'whisper'")
            async with asyncio.timeout(DEADLINE_S):
                assert await handler.process.wait() == 1, handler.lines
        finally:
            if handler.process.returncode is None:
                await handler.end(signal.SIGKILL)


async def _shouts(command: tuple[str, ...], server: LiveServer, environment: dict[str, str], directory: Path) -> None:
    """Run the handler, and let a user try it."""
    async with _serving(command, server, environment, directory) as (_, bob):
        for data, shouted in (("hello", "HELLO"), ("x" * 100_000, "X" * 100_000), ('"\\\n', '"\\\n')):
            bob.submit("shout", data, "m")
            report, before = await bob.until_report("m")
            assert report["header"]["status"] == "good" and before[0]["payload"]["data"] == shouted
        bob.submit("shout", 5, "m")
        report, _ = await bob.until_report("m")
        assert report["payload"]["reason"] == "handler-failed"


@asynccontextmanager
async def _serving(
    command: Sequence[str], server: LiveServer, environment: dict[str, str], directory: Path
) -> AsyncIterator[tuple[Process, RawClient]]:
    """Run a handler, at the server's own endpoint unless `environment` names one, and log a user in. The handler must
    end well."""
    handler = await Process.start(*command, cwd=directory, env={"BESTER_FABRIC": server.fabric, **environment})
    try:
        await server.processes[0].says(f"name='{environment['BESTER_NAME']}'")
        bob = await RawClient.login(server, "bob")
        yield handler, bob
        await bob.close()
    finally:
        status = await handler.end()
    assert status == 0, handler.lines


ODD = {"BESTER_TYPES": "odd", "BESTER_NAME": "odd"}
ODD_NOTES = {
    "c": """
#include "bester.h"
#include <string.h>
static int refuse(const bester_message *message, bester_reply *reply, void *context) {
    static const char *const notes[] = {"caf\\xe9 \\xed\\xa0\\x80 \\xf0\\x9f", NULL};
    char cut[1001] = "x", faces[2405] = "";
    (void)context;
    if (message->body.data[0] == '3') return bester_refuse(reply, "");
    for (int n = 0; n < 600; n++) strcat(faces, "\\xf0\\x9f\\x98\\x80");
    if (message->body.data[0] == '4') return bester_refuse(reply, faces);
    for (int n = 1; n < 999; n += 2) cut[n] = '\\xc3', cut[n + 1] = '\\xa9';
    return bester_refuse(reply, message->body.data[0] == '0' ? notes[0] : cut);
}
int main(void) { return bester_run(NULL, refuse, NULL); }
""",
    "node": """
const { serve, Refusal } = require(LIBRARY);
serve({ odd(message) {
  if (message.data === 3) throw new Refusal();
  if (message.data === 4) throw new Refusal("\\u{1f600}".repeat(600));
  if (message.data === 1) throw new Refusal("x".repeat(499) + "\\u{1f600}");
  throw message.data === 0 ? new Refusal("caf\\ud83d") : Object.create(null);
} });
""",
    "ruby": """
require LIBRARY
Bester.serve({ "odd" => ->(message) {
  raise Bester::Refusal if message.data == 3
  raise Bester::Refusal, "\\u{1f600}" * 600 if message.data == 4
  raise Bester::Refusal, message.data == 1 ? "x" + "\\u{e9}" * 900 : "caf\\xe9".b if message.data < 2
  raise "\\u{e9}".encode("ISO-8859-1")
} })
""",
}
"""Programs that refuse `0` with a note that is no UTF-8, `1` and `4` with one that is too long, and `3` without one."""


def _program(language: str, source: str, directory: Path) -> list[str]:
    """Write a program with the language's library, build it where that is needed, and return its command."""
    LANGUAGES[language](directory)
    library = EXAMPLES / language / f"bester.{ {'c': 'c', 'node': 'js', 'ruby': 'rb'}[language] }"
    program = directory / f"odd.{library.suffix[1:]}"
    program.write_text(source.replace("LIBRARY", json.dumps(str(library))))
    if language != "c":
        return [language, str(program)]
    command = [str(directory / "odd")]
    build = [f"BUILD={directory}", f"VPATH={directory}", "CFLAGS=-I. -O1 -Werror -fsanitize=address,undefined"]
    make = ["make", "-C", str(library.parent), *build, *command]
    subprocess.run(make, check=True, capture_output=True, text=True, timeout=BUILD_S)
    return command


@every_language
async def test_a_note_is_sent_whatever_is_in_it(language: str, tmp_path: Path) -> None:
    command = _program(language, ODD_NOTES[language], tmp_path)
    async with live_server() as server, _serving(command, server, ODD, tmp_path) as (_, bob):
        notes = []
        for data in (0, 1):
            bob.submit("odd", data, "m")
            report, _ = await bob.until_report("m")
            assert report["payload"]["reason"] == "refused", report
            notes.append(report["payload"]["note"])
        assert notes[0].startswith("caf") and notes[1].startswith("x"), notes
        bob.submit("odd", 2, "m")
        report, _ = await bob.until_report("m")
        assert report["payload"]["reason"] in ("handler-failed", "refused"), report
        for data, note in ((3, "the handler refused the message"), (4, "\U0001f600" * 500)):
            bob.submit("odd", data, "m")
            report, _ = await bob.until_report("m")
            assert report["payload"]["note"] == note


@every_language
async def test_a_closed_terminal_ends_no_handler(language: str, tmp_path: Path) -> None:
    command = LANGUAGES[language](tmp_path)
    named = {"BESTER_TYPES": "shout", "BESTER_NAME": "h"}
    async with live_server() as server, _serving(command, server, named, tmp_path) as (handler, bob):
        handler.process.send_signal(signal.SIGHUP)
        bob.submit("shout", "hello", "m")
        report, _ = await bob.until_report("m")
        assert report["header"]["status"] == "good", report


@every_language
async def test_a_broker_that_does_not_answer_is_told_once(language: str, tmp_path: Path) -> None:
    command = LANGUAGES[language](tmp_path)
    async with short_directory() as directory:
        named = {"BESTER_TYPES": "shout", "BESTER_NAME": "", "BESTER_FABRIC": f"ipc://{directory}/data/fabric.sock"}
        handler = await Process.start(*command, cwd=tmp_path, env=named)
        try:
            await handler.says(f"bester: no broker answers at ipc://{directory}/data/fabric.sock; trying again")
        finally:
            status = await handler.end()
    assert (status, len(handler.lines)) == (0, 1), handler.lines


@every_language
async def test_stopped_before_it_is_welcome_it_says_goodbye_and_ends(language: str, tmp_path: Path) -> None:
    """A broker that is heard and has not taken the handler: GOODBYE is the last that comes, for nothing is in hand."""
    command = LANGUAGES[language](tmp_path)
    async with short_directory() as directory:
        fabric = f"ipc://{directory}/fabric.sock"
        with zmq.asyncio.Context() as context, context.socket(zmq.ROUTER) as router:
            router.linger = 0
            router.bind(fabric)
            named = {"BESTER_TYPES": "shout", "BESTER_NAME": "", "BESTER_FABRIC": fabric}
            handler = await Process.start(*command, cwd=tmp_path, env=named)
            said: list[int] = []
            try:
                async with asyncio.timeout(DEADLINE_S):
                    peer, batch = await router.recv_multipart()
                    said += [message[0] for message in msgpack.unpackb(batch)]
                    handler.process.send_signal(signal.SIGTERM)
                    while handler.process.returncode is None or await router.poll(0):
                        if await router.poll(100):
                            _, batch = await router.recv_multipart()
                            said += [message[0] for message in msgpack.unpackb(batch)]
                        await router.send_multipart([peer, msgpack.packb([[OP_OF[Heartbeat]]])])
            finally:
                status = await handler.end()
    assert (status, handler.lines) == (0, [])
    assert (said[0], said[-1]) == (OP_OF[Hello], OP_OF[Goodbye]), said


@pytest.mark.parametrize("language", ["node", "ruby"])
async def test_empty_variables_are_as_good_as_none(language: str, tmp_path: Path) -> None:
    command = LANGUAGES[language](tmp_path)
    named = {"BESTER_TYPES": "", "BESTER_NAME": "", "BESTER_FABRIC": ""}
    handler = await Process.start(*command, cwd=tmp_path, env=named)
    await handler.says("where is the broker? set BESTER_FABRIC to its URL")
    async with asyncio.timeout(DEADLINE_S):
        assert await handler.process.wait() == 1, handler.lines
    async with live_server() as server:
        handler = await Process.start(*command, cwd=tmp_path, env={**named, "BESTER_FABRIC": server.fabric})
        try:
            await server.processes[0].says("types=['shout']")
        finally:
            assert await handler.end() == 0, handler.lines


async def test_the_deployment_in_four_languages(tmp_path: Path) -> None:
    """U1 → S1: M1 (Python), M2 (JavaScript) → S2: M1 (C) → S3: M1 (Ruby) → U2; each message once, each report good."""
    node, c, ruby = (LANGUAGES[language](tmp_path)[:-1] for language in ("node", "c", "ruby"))
    commands = {
        ("s1", "M2"): [*node, str(EXAMPLES / "node" / "deployment.js")],
        ("s2", "M1"): [*c, str(tmp_path / "deployment")],
        ("s3", "M1"): [*ruby, str(EXAMPLES / "ruby" / "deployment.rb")],
    }
    async with short_directory() as directory, AsyncExitStack() as stack:
        servers = {}
        for name in ("s1", "s2", "s3"):
            toml = (EXAMPLES / "deployment" / f"{name}.toml").read_text()
            toml = re.sub(r'tcp4 = ".*"', 'tcp4 = "127.0.0.1:0"', toml) + '\n[accounts]\nauth = "open"\n'
            for (server, type_), command in commands.items():
                if server == name:
                    toml = re.sub(rf"(?<=\[handlers\.{type_}\]\n)app = .*", f"command = {json.dumps(command)}", toml)
            (directory / f"{name}.toml").write_text(toml)
            process = await Process.start(BESTER, "up", "-c", f"{name}.toml", cwd=directory)
            stack.push_async_callback(process.end)
            address = (await process.says(" serves ")).partition(" serves ")[2].split(",")[0].strip()
            servers[name] = LiveServer(directory, [process], address)
        await servers["s1"].has_type("M1")
        for name, type_ in commands:
            await servers[name].has_type(type_)
        u1, u2 = await RawClient.login(servers["s1"], "U1"), await RawClient.login(servers["s3"], "U2")
        for number in range(50):
            u1.submit("M1", {"number": number, "text": "grüße"}, str(number))
        came = [(await u2.receive())["payload"]["data"] for _ in range(50)]
        assert sorted(each["message"]["number"] for each in came) == list(range(50))
        assert all(each["came_by"] == ["S1/M1", "S1/M2", "S2/M1"] for each in came)
        reports = [await u1.receive() for _ in range(50)]
        assert all(report["header"]["status"] == "good" for report in reports)
        await u1.close()
        await u2.close()


TOO_MUCH = {
    "c": """
#include "bester.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
static int answer(const bester_message *message, bester_reply *reply, void *context) {
    size_t size = message->body.data[0] == '1' ? 70000000 : 16000, count = message->body.data[0] == '2' ? 5000 : 1;
    char *text = malloc(size), attempt[24];
    (void)context;
    if (message->body.data[0] == '3') count = 0;
    memset(text, 'x', size);
    text[0] = text[size - 1] = '"';
    if (message->body.data[0] == '0') size = snprintf(text, 24, "%d", (int)message->attempt);
    for (size_t n = 0; n < count; n++) bester_send_clients(reply, &message->user, 1, text, size);
    free(text);
    return 0;
}
int main(void) { return bester_run(NULL, answer, NULL); }
""",
    "node": """
const { serve } = require(LIBRARY);
serve({ odd(message) {
  if (message.data === 1) return message.reply("x".repeat(70000000));
  if (message.data === 2) return Array.from({ length: 5000 }, () => message.reply("x".repeat(16000)));
  return message.data === 3 ? [] : message.reply(message.attempt);
} });
""",
    "ruby": """
require LIBRARY
Bester.serve({ "odd" => ->(message) {
  case message.data
  when 1 then message.reply("x" * 70_000_000)
  when 2 then [message.reply("x" * 16_000)] * 5000
  when 3 then []
  else message.reply(message.attempt)
  end
} })
""",
}
"""Programs that answer `1` with a body, and `2` with commands, of more than a reply may have, `3` with no command, and
`0` with the attempt."""


@every_language
async def test_a_reply_that_is_too_much_fails_alone(language: str, tmp_path: Path) -> None:
    """A frame above 64 MiB would end the link, and use up an attempt of all that the handler has in hand."""
    command = _program(language, TOO_MUCH[language], tmp_path)
    async with live_server() as server, _serving(command, server, ODD, tmp_path) as (_, bob):
        for id_, data in enumerate((0, 1, 0, 2, 0, 3)):
            bob.submit("odd", data, str(id_))
        reasons: dict[str, str | None] = {}
        attempts = []
        while len(reasons) < 6:
            frame = await bob.receive()
            if frame["header"]["messageType"] == "receivedMessage":
                attempts.append(frame["payload"]["data"])
            else:
                reasons[frame["payload"]["id"]] = frame["payload"].get("reason")
        assert reasons == {"0": None, "1": "bad-reply", "2": None, "3": "bad-reply", "4": None, "5": None}
        assert attempts == [1, 1, 1]
