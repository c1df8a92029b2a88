"""What the pages of the stock sub-protocols say to try, line by line, with the example of two servers running."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from pathlib import Path

from tests.e2e.example_kitchen import kitchen_servers
from tests.live import BESTER, DEADLINE_S, short_directory

PAGES = Path(__file__).parents[2] / "docs"
SHOWN = {
    "chat": ['"joined":"g"', '"joined":"t@s1"', "good: ", '"from":"t@s1"'],
    "mail": ["good: ", '"text":"are you there?"', "good: ", '"outcome":"read"'],
}
"""What each line of a page shows: a part of it. (How long `send` waits for a receipt is no part of it: a busy machine
may take longer.)"""


def lines_of(page: str) -> list[str]:
    """Return the commands that a page says to try."""
    text = (PAGES / f"{page}.md").read_text(encoding="utf-8")
    block = text.partition("Try it, with ")[2].partition("```sh\n")[2].partition("```")[0]
    return [re.sub(r" +#.*", "", line) for line in block.splitlines()]


async def test_lines_to_try_do_what_the_page_says() -> None:
    async with short_directory() as directory, kitchen_servers(directory, tuple(SHOWN)):
        for page, shown in SHOWN.items():
            lines = lines_of(page)
            assert len(lines) == len(shown), page
            letter = ""
            for line, part in zip(lines, shown, strict=True):
                letter = await shows(line, part, letter, directory)


async def shows(line: str, part: str, letter: str, directory: Path) -> str:
    """Run a line of a page, and one that listens again while it shows what came before; return the last letter's id."""
    listens = "bester listen" in line
    command = line.replace("ID", letter) + (" --count 1" if listens and "--count" not in line else "")
    path = f"{Path(BESTER).parent}:{os.environ['PATH']}"
    while True:
        process = await asyncio.create_subprocess_shell(
            command,
            cwd=directory,
            env={**os.environ, "BESTER_PASSWORD": "secret", "PATH": path},
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        try:
            printed = (await asyncio.wait_for(process.communicate(), DEADLINE_S))[0].decode()
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
        assert process.returncode == 0 and (listens or part in printed), (line, printed)
        if part in printed:
            return "".join(re.findall(r'"mail":"([^"]*)"', printed)) or letter
