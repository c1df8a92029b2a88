"""The honest handler: letters to users here and at other servers. Copied beside the configuration of each server.

A letter is `{"to": "bob"}` or `{"to": "bob@s2"}` with anything beside. The recipient gets the letter with `from`: the
user who sent the letter here, or the server that it came from, as the server knows them.
"""

from __future__ import annotations

from typing import Any

from bester.handlers import App, Message

app = App()


@app.handler("letter", inline=True)
def letter(message: Message) -> Any:
    """Pass a letter on."""
    data = message.data
    name, at, server = data["to"].partition("@")
    if at and message.user is not None:
        return message.send_servers([server], {**data, "to": name, "from": message.user})
    by = message.user if message.user is not None else message.peer
    return message.send_clients([name], {**data, "from": by})
