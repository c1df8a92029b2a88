"""echo: sends a message's data back to the user who sent it, byte for byte.

What came from a server or a handler has no user to go back to; it fails, and the report says so.
"""

from __future__ import annotations

from bester.broker.wire.messages import Command
from bester.handlers import App, Message

app = App()


@app.handler("echo", inline=True)
def echo(message: Message) -> Command:
    """Give the sender's own data back."""
    return message.reply(raw=message.raw)
