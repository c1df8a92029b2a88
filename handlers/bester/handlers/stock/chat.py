"""chat: `{"to": ["bob", "carol"], "text": "hi"}` reaches them as `{"from": "alice", "text": "hi"}`.

`to` may be one name. `from` is null where no user of this server sent it. Anything else fails with a note saying why.
"""

from __future__ import annotations

from bester.broker.wire.messages import Command
from bester.handlers import App, HandlerError, Message

app = App()


@app.handler("chat", inline=True)
def chat(message: Message) -> Command:
    """Pass text on to the users it names."""
    data = message.data
    if not isinstance(data, dict):
        raise HandlerError('chat: send {"to": ["bob"], "text": "hi"}')
    to, text = data.get("to"), data.get("text")
    names = [to] if isinstance(to, str) else to
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise HandlerError('chat: "to" is a user\'s name or a list of names')
    if not isinstance(text, str):
        raise HandlerError('chat: "text" is a string')
    return message.send_clients(names, {"from": message.user, "text": text})
