"""The phrase book: phrases before words, capitals and punctuation kept, unknown words marked."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bester.handlers.stories.letters.phrase_book import (
    AFRIKAANS_TO_ENGLISH,
    ENGLISH_TO_AFRIKAANS,
    PORTUGUESE_TO_ENGLISH,
    PhraseBook,
)

BOOKS = (PORTUGUESE_TO_ENGLISH, ENGLISH_TO_AFRIKAANS, AFRIKAANS_TO_ENGLISH)


@pytest.mark.parametrize(
    ("book", "text", "expected"),
    [
        (PORTUGUESE_TO_ENGLISH, "bom dia", "good morning"),
        (PORTUGUESE_TO_ENGLISH, "Bom dia!", "Good morning!"),
        (PORTUGUESE_TO_ENGLISH, "BOM DIA", "GOOD MORNING"),
        (PORTUGUESE_TO_ENGLISH, "Olá, minha amiga! Tenho saudades tuas.", "Hello, my friend! I miss you."),
        (ENGLISH_TO_AFRIKAANS, "Yes, I can. I speak English.", "Ja, ek kan. Ek praat Engels."),
        (ENGLISH_TO_AFRIKAANS, "see you on Saturday", "«see» jy op Saterdag"),
        (AFRIKAANS_TO_ENGLISH, "Kom ons drink koffie, ek en jy", "Let us drink coffee, I and you"),
        (AFRIKAANS_TO_ENGLISH, "'n huis", "a house"),
        (AFRIKAANS_TO_ENGLISH, "\u2019n huis", "a house"),
    ],
)
def test_phrases_are_translated_with_capitals_and_punctuation(book: PhraseBook, text: str, expected: str) -> None:
    assert book.translate(text) == expected


def test_longest_phrase_wins() -> None:
    book = PhraseBook([("a", "1"), ("a b", "2"), ("a b c", "3"), ("b", "4")])
    assert book.translate("a b c, a b b a") == "3, 2 4 1"


def test_no_phrase_spans_punctuation() -> None:
    book = PhraseBook([("a b", "both"), ("a", "1"), ("b", "2")])
    assert book.translate("a, b / a\n b") == "1, 2 / both"


def test_adjacent_unknown_words_are_marked_together() -> None:
    text = "quando podemos tomar um cafezinho fresquinho, amigo? 3 pastéis"
    assert PORTUGUESE_TO_ENGLISH.translate(text) == "when can we have a «cafezinho fresquinho», friend? 3 «pastéis»"


def test_marked_words_are_not_marked_again() -> None:
    once = PORTUGUESE_TO_ENGLISH.translate("um cafezinho fresquinho com amigo")
    assert ENGLISH_TO_AFRIKAANS.translate(once) == "'n «cafezinho fresquinho» met vriend"


@pytest.mark.parametrize("book", BOOKS)
def test_every_phrase_of_a_book_is_translated(book: PhraseBook) -> None:
    for phrase, meaning in book.phrases:
        assert book.translate(phrase).casefold() == meaning.casefold()


@pytest.mark.parametrize("book", BOOKS)
@given(text=st.text(alphabet=st.sampled_from("aeo ãT'«».,\n3áquerida-n"), max_size=60))
def test_text_between_words_is_kept(book: PhraseBook, text: str) -> None:
    def between(text: str) -> str:
        return "".join(c for c in text if c in ".,\n3")

    assert between(book.translate(text)) == between(text)
