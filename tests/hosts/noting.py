"""Handlers of the servers at the two ends of a bad link: `onward` sends to S2, `note` writes down what it is given."""

from __future__ import annotations

import os

from bester.broker.wire.messages import Command
from bester.handlers import App, Message

onward_app = App("onward")
note_app = App("note")


@onward_app.handler("onward", inline=True)
def onward(message: Message) -> Command:
    """Send the message to the other end."""
    return message.send_servers(["S2"], message.data, as_type="note")


@note_app.handler("note", inline=True)
def note(message: Message) -> None:
    """Add the message's number to the file `noted`, in one write."""
    file = os.open("noted", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(file, b"%d\n" % message.data["number"])
    finally:
        os.close(file)
