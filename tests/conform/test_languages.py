"""The examples in other languages pass every case, where what they are written in is installed."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conform.programs import ROOT, failures, tried
from tests.live import Process, RawClient, live_server

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
    build = ["make", "-C", str(source), f"BUILD={directory}", "CFLAGS=-O1 -Werror"]
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
async def test_the_example_serves_a_real_broker(language: str, tmp_path: Path) -> None:
    command = LANGUAGES[language](tmp_path)
    async with live_server() as server:
        environment = {"BESTER_FABRIC": server.fabric, "BESTER_TYPES": "shout", "BESTER_NAME": f"{language}-1"}
        handler = await Process.start(*command, cwd=tmp_path, env=environment)
        try:
            await server.has_type("shout")
            bob = await RawClient.login(server, "bob")
            for data, shouted in (("hello", "HELLO"), ("x" * 100_000, "X" * 100_000), ('"\\\n', '"\\\n')):
                bob.submit("shout", data, "m")
                report, before = await bob.until_report("m")
                assert report["header"]["status"] == "good" and before[0]["payload"]["data"] == shouted
            bob.submit("shout", 5, "m")
            report, _ = await bob.until_report("m")
            assert report["payload"]["reason"] == "handler-failed"
            await bob.close()
        finally:
            status = await handler.end()
        assert status == 0, handler.lines
