"""The README's handler and program run as printed; only the port differs."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

from tests.live import BESTER, DEADLINE_S, Process, short_directory

README = (Path(__file__).parents[2] / "README.md").read_text()
ADDRESS = "127.0.0.1:2223"


def files() -> dict[str, str]:
    """Return the files that the README prints, by the name in their first line."""
    blocks = re.findall(r"```(?:python|toml)\n(# (\S+)\n.*?)```", README, re.DOTALL)
    return {name: text for text, name in blocks}


async def ended(directory: Path, *command: str, given: str = "") -> str:
    """Run a program that must succeed; return its output."""
    process = await asyncio.create_subprocess_exec(
        *command, cwd=directory, env={"BESTER_PASSWORD": "secret"}, stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(given.encode()), DEADLINE_S)
    assert process.returncode == 0, err.decode()
    return out.decode()


async def test_second_section_and_the_program_after_it() -> None:
    printed = files()
    assert set(printed) == {"shout.py", "bester.toml", "hello.py"}
    (command,) = re.findall(r"^\.venv/bin/bester send .* shout '(.*)'$", README, re.MULTILINE)
    async with short_directory() as directory:
        (directory / "shout.py").write_text(printed["shout.py"])
        (directory / "bester.toml").write_text('[native]\ntcp4 = "127.0.0.1:0"\n' + printed["bester.toml"])
        await ended(directory, BESTER, "user", "add", "alice", "--password-stdin", given="secret\n")
        server = await Process.start(BESTER, "up", cwd=directory)
        try:
            address = (await server.says(" serves ")).partition(" serves ")[2]
            await server.says("so the stock handlers echo and chat do not run; to keep them add [handlers.echo] with")
            send = ("send", "--to", address, "--user", "alice", "shout", command)
            assert '{"text":"HELLO"}' in await ended(directory, BESTER, *send)
            assert ADDRESS in printed["hello.py"]
            (directory / "hello.py").write_text(printed["hello.py"].replace(ADDRESS, address))
            assert (
                await ended(directory, sys.executable, "hello.py", given="secret\n") == "good {}\n{'text': 'HELLO'}\n"
            )
        finally:
            assert await server.end() == 0
