"""S1's two handlers: M1 passes a message on to M2, and M2 sends it to S2, where it arrives as a message for M1."""

from __future__ import annotations

import os

from bester.broker.wire.messages import Command
from bester.handlers import App, Message

app = App()

S2 = os.environ.get("S2_ADDRESS", "S2")
"""S2 by its name in s1.toml, or by an address, as HOST:PORT."""


@app.handler("M1", order="user")
async def m1(message: Message) -> Command:
    """Pass on to the other handler of this server."""
    return message.send_handler("M2", raw=message.raw)


@app.handler("M2", order="user")
async def m2(message: Message) -> Command:
    """Pass on to the next server as type M1, which has no M2."""
    return message.send_servers([S2], raw=message.raw, as_type="M1")
