"""`python -m tests.page_pictures`: takes the pictures of the operator's page in docs/operating.md, of a real server.

Users are connected meanwhile, and the way of the latest message is shown.
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from tests.e2e.chromium import browser
from tests.e2e.operator_stand import TOKEN, Operator, operated
from tests.e2e.test_operator import messages
from tests.live import RawClient

PLACE = Path(__file__).parents[1] / "docs" / "pictures"
SECONDS = 20
MORE = """
[servers.s2]
native = "127.0.0.1:9"
[handlers.dies]
app = "mixed:app"
types = ["dies"]
attempts = 1
"""


async def take(operator: Operator, home: Path) -> None:
    """Let messages flow for a while, and take a picture, once light and once as on a dark phone."""
    users = [await RawClient.login(operator.server, name) for name in ("ann", "bob", "carol")]
    async with browser(home, 1100, 1400) as page:
        await page.go_to(f"{operator.base}/?token={TOKEN}")
        for second in range(SECONDS):
            await messages(operator, ok=20 + 10 * (second % 5), refuses=second % 3)
            if second == SECONDS // 2:
                await messages(operator, dies=1)
            await asyncio.sleep(0.7)
        await page.says("#dead", "handler-lost")
        await messages(operator, ok=1)
        await page.click("#ask", "Show")
        await page.says("#trace", "delivered")
        (PLACE / "page.png").write_bytes(await page.picture())
        await page.call("Emulation.setDeviceMetricsOverride", width=390, height=1500, deviceScaleFactor=1, mobile=True)
        dark = [{"name": "prefers-color-scheme", "value": "dark"}]
        await page.call("Emulation.setEmulatedMedia", features=dark)
        await asyncio.sleep(1.5)
        (PLACE / "phone.png").write_bytes(await page.picture())
    for user in users:
        await user.close()


async def main() -> None:
    PLACE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as home:
        async with operated(MORE) as operator:
            await operator.server.has_type("dies")
            await take(operator, Path(home))


if __name__ == "__main__":
    asyncio.run(main())
