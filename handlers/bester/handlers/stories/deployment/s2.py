"""S2's handler: M1 passes a message on to M1 of S3."""

from __future__ import annotations

import os

from bester.broker.wire.messages import Command
from bester.handlers import App, Message

app = App()

S3 = os.environ.get("S3_ADDRESS", "S3")
"""S3 by its name in s2.toml, or by an address, as HOST:PORT."""


@app.handler("M1")
async def m1(message: Message) -> Command:
    """Pass on to the next server under the same type."""
    return message.send_servers([S3], raw=message.raw)
