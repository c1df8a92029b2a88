"""The English gadget: delivers English letters, and translates those with `read_in` Afrikaans."""

from __future__ import annotations

from bester.broker.wire.messages import Command
from bester.handlers import App, Message
from bester.handlers.stories.letters.phrase_book import ENGLISH_TO_AFRIKAANS
from bester.handlers.stories.letters.post import Letter, post, translated

app = App()


@app.handler("english", order="user")
async def english(message: Message, letter: Letter) -> Command:
    """Post a letter that is written in English."""
    if letter.read_in == "afrikaans":
        return translated(message, letter, ENGLISH_TO_AFRIKAANS.translate(letter.text), "afrikaans")
    return post(message, letter)
