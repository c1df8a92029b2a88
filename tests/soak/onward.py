"""The handler of a soak run's servers that sends to another server: to a listed one, to one that nobody knows."""

from __future__ import annotations

from bester.broker.wire.messages import Command
from bester.handlers import App, Message

app = App("onward")


@app.handler("onward", inline=True)
def onward(message: Message) -> Command:
    """Send the message to the server behind the @ of its recipient, without one to the recipient."""
    user, at, server = str(message.data["to"]).partition("@")
    if at:
        return message.send_servers([server], message.data, as_type="chat")
    return message.send_clients([user], message.data)
