"""The Portuguese gadget, in T's box alone: translates into English and leaves the rest to the English gadget."""

from __future__ import annotations

from bester.broker.wire.messages import Command
from bester.handlers import App, Message
from bester.handlers.stories.letters.phrase_book import PORTUGUESE_TO_ENGLISH
from bester.handlers.stories.letters.post import Letter, translated

app = App()


@app.handler("portuguese", order="user")
async def portuguese(message: Message, letter: Letter) -> Command:
    """Translate a letter into English: the other box has no Portuguese gadget."""
    return translated(message, letter, PORTUGUESE_TO_ENGLISH.translate(letter.text), "english")
