"""chat: `{"to": ["bob", "carol"], "text": "hi"}` is delivered to them as `{"from": "alice", "text": "hi"}`.

`to` may be one name, or up to 1,000. `from` is null for a message without a user of this server. Anything else is
refused with a note. A user's messages arrive in the order sent, with several workers too.
"""

from __future__ import annotations

from bester.broker.wire.messages import Command
from bester.handlers import App, HandlerError, Message

MOST = 1000
"""Users in one message. Each costs the server some work: a frame full of names would delay everybody."""

app = App()


@app.handler("chat", order="user", inline=True)
def chat(message: Message) -> Command:
    """Deliver the text to the named users."""
    data = message.data
    if not isinstance(data, dict):
        raise HandlerError('chat: send {"to": ["bob"], "text": "hi"}')
    to, text = data.get("to"), data.get("text")
    names = [to] if isinstance(to, str) else to
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise HandlerError('chat: "to" is a user\'s name or a list of names')
    if not isinstance(text, str):
        raise HandlerError('chat: "text" is a string')
    names = list(dict.fromkeys(names))  # a user named twice gets one copy
    if len(names) > MOST:
        raise HandlerError(f'chat: "to" names {MOST} users at most')
    return message.send_clients(names, {"from": message.user, "text": text})
