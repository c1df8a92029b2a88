"""chat: `{"to": ["bob", "carol"], "text": "hi"}` reaches them as `{"from": "alice", "text": "hi"}`.

`to` may be one name, or up to 1,000. `from` is null where no user of this server sent it. Anything else is refused,
with a note that says why. What one user sends arrives in the order it was sent, with several workers too.
"""

from __future__ import annotations

from bester.broker.wire.messages import Command
from bester.handlers import App, HandlerError, Message

MOST = 1000
"""Users one message may name. Each costs the server some work: a frame full of names would hold up everybody."""

app = App()


@app.handler("chat", order="user", inline=True)
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
    names = list(dict.fromkeys(names))  # who is named twice gets it once
    if len(names) > MOST:
        raise HandlerError(f'chat: "to" names {MOST} users at most')
    return message.send_clients(names, {"from": message.user, "text": text})
