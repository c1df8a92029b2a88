"""The Portuguese gadget, which only T's box has: it translates into English and leaves the rest to that gadget."""

from __future__ import annotations

from bester.broker.wire.messages import Command
from bester.handlers import App, Message
from bester.handlers.stories.letters.phrase_book import PORTUGUESE_TO_ENGLISH
from bester.handlers.stories.letters.post import Letter, translated

app = App()


@app.handler("portuguese", order="user")
async def portuguese(message: Message, letter: Letter) -> Command:
    """Translate a letter; nobody at the other end needs to know Portuguese."""
    return translated(message, letter, PORTUGUESE_TO_ENGLISH.translate(letter.text), "english")
