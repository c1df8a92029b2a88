"""The Afrikaans gadget: delivers Afrikaans letters, and translates those with `read_in` English."""

from __future__ import annotations

from bester.broker.wire.messages import Command
from bester.handlers import App, Message
from bester.handlers.stories.letters.phrase_book import AFRIKAANS_TO_ENGLISH
from bester.handlers.stories.letters.post import Letter, post, translated

app = App()


@app.handler("afrikaans", order="user")
async def afrikaans(message: Message, letter: Letter) -> Command:
    """Post a letter that is written in Afrikaans."""
    if letter.read_in == "english":
        return translated(message, letter, AFRIKAANS_TO_ENGLISH.translate(letter.text), "english")
    return post(message, letter)
