"""What a letter is, and how it travels: to a user of this box, or to the box that its address names.

A letter to `G` is for a user here, one to `G@magical-boks` goes there first. The box is taken off the address when
the letter leaves, so that it can go no further than it was meant to.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from bester.broker.wire.messages import Command
from bester.handlers import HandlerError, Message


@dataclass(frozen=True)
class Letter:
    """`to`: USER or USER@BOX (a server's name, or HOST:PORT). `read_in`: the language it is to be translated into.

    `written_in` and `by` are filled in on the way: the language it was first written in, and who wrote it.
    """

    to: str
    text: str
    read_in: str | None = None
    written_in: str | None = None
    by: str | None = None


def translated(message: Message, letter: Letter, text: str, language: str) -> Command:
    """Hand a letter, now in another language, to that language's gadget in this box."""
    asked = None if letter.read_in == language else letter.read_in
    first = letter.written_in or message.type
    return message.send_handler(language, replace(letter, text=text, read_in=asked, written_in=first))


def post(message: Message, letter: Letter) -> Command:
    """Deliver a letter here, or send it to the box it is for."""
    user, _, box = letter.to.partition("@")
    if not user:
        raise HandlerError('a letter needs a name to go to, as in {"to": "G@magical-boks", "text": "Hello!"}')
    by = _writer(message, letter)
    if not box:
        first = letter.written_in or message.type
        return message.send_clients([user], {"by": by, "text": letter.text, "written_in": first})
    if message.peer is not None:
        raise HandlerError("letters from other boxes are for users of this one")
    return message.send_servers([box], replace(letter, to=user, by=by))


def _writer(message: Message, letter: Letter) -> str:
    """Say who wrote a letter: a user is known to this box; of another box's users only that box can tell."""
    if message.user is not None:
        return message.user
    return f"{letter.by or 'somebody'}@{message.peer or message.origin}"
