"""echo: sends a message's data back to its sender, byte for byte.

A message of a server or a handler has no user to answer, and is refused. With several workers, answers to one user may
overtake each other: echo is for trying things out, and order costs time.
"""

from __future__ import annotations

from bester.broker.wire.messages import Command
from bester.handlers import App, Message

app = App()


@app.handler("echo", inline=True)
def echo(message: Message) -> Command:
    """Return the sender's own data."""
    return message.reply(raw=message.raw)
