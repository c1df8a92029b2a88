"""Letters and their way: to a user of this box, or to the box in the address.

A letter to `G` is for a user of this box, a letter to `G@magical-boks` is sent to that box first. The box is cut off
the address when the letter leaves, so that the other box cannot send the letter on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from bester.broker.wire.messages import Command
from bester.handlers import HandlerError, Message


@dataclass(frozen=True)
class Letter:
    """`to`: USER or USER@BOX (a server's name, or HOST:PORT). `read_in`: language to translate the letter into.

    `written_in` and `by` are set on the way: the letter's first language, and its writer.
    """

    to: str
    text: str
    read_in: str | None = None
    written_in: str | None = None
    by: str | None = None


def translated(message: Message, letter: Letter, text: str, language: str) -> Command:
    """Pass a translated letter to the gadget of its new language in this box."""
    asked = None if letter.read_in == language else letter.read_in
    first = letter.written_in or message.type
    return message.send_handler(language, replace(letter, text=text, read_in=asked, written_in=first))


def post(message: Message, letter: Letter) -> Command:
    """Deliver a letter in this box, or send it to the box in its address."""
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
    """Return a letter's writer: this box knows its own users, and marks another box's with the name of that box."""
    if message.user is not None:
        return message.user
    return f"{letter.by or 'somebody'}@{message.peer or message.origin}"
