"""S3's handler: M1 delivers to U2, with the path that the message took."""

from __future__ import annotations

from bester.broker.wire.messages import Command
from bester.handlers import App, Message

app = App()


@app.handler("M1")
async def m1(message: Message) -> Command:
    """Deliver; `came_by` holds the steps before this one."""
    return message.send_clients(["U2"], {"message": message.data, "came_by": message.path})
