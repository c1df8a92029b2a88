"""chat: texts to named users, and rooms over several servers (docs/chat.md).

`{"to": ["bob", "carol"], "text": "hi"}` is delivered to them as `{"from": "alice", "text": "hi"}`. `to` may be one
name, or up to 1,000. `from` is null for a message without a user of this server. A user's messages arrive in the order
sent, with several workers too. `{"room": "lobby@s2", …}` is for rooms.
"""

from __future__ import annotations

from bester.broker.wire.messages import Command
from bester.handlers import App, HandlerError, Message
from bester.handlers.stock.rooms import Rooms

MOST = 1000
"""Users in one message. Each costs the server some work: a frame full of names would delay everybody."""

app = App()
rooms = Rooms()


@app.handler("chat", order="user", inline=True)
def chat(message: Message) -> Command | list[Command]:
    """Deliver the text to the named users, or take part in a room."""
    data = message.data
    if not isinstance(data, dict):
        raise HandlerError('chat: send {"to": ["bob"], "text": "hi"}')
    if "room" in data and "to" not in data:
        return rooms.handle(message)
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
