"""echo: sends a message's data back to the user who sent it, byte for byte.

What came from a server or a handler has no user to go back to: it is refused, and the report says so. With several
workers, answers to one user may overtake each other: echo is for trying things out, and order costs time.
"""

from __future__ import annotations

from bester.broker.wire.messages import Command
from bester.handlers import App, Message

app = App()


@app.handler("echo", inline=True)
def echo(message: Message) -> Command:
    """Give the sender's own data back."""
    return message.reply(raw=message.raw)
