"""Translates letters word for word, phrases before words: a phrase book, no dictionary and no grammar. Pure.

The longest phrase that fits is taken. Capitals and punctuation are kept; unknown words are put between guillemets,
«so», and text between guillemets is left alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from bester.handlers.stories.letters.phrases import ENGLISH_AFRIKAANS, PORTUGUESE_ENGLISH

# Text marked before, then words: letters with hyphens and apostrophes inside, and the Afrikaans article 'n.
_PIECES = re.compile(r"«[^«»]*»|['\u2019]n\b|[^\W\d_]+(?:['\u2019-][^\W\d_]+)*")
_SENTENCE_ENDS = re.compile(r"[.!?…\n]")

Pair = tuple[str, str]


class PhraseBook:
    """Phrases of one language and their meanings in another; of a phrase listed twice, the first meaning counts."""

    def __init__(self, pairs: Iterable[Pair]) -> None:
        self._phrases: dict[tuple[str, ...], Pair] = {}
        for phrase, meaning in pairs:
            self._phrases.setdefault(tuple(map(_key, phrase.split())), (phrase, meaning))
        self._longest = max(map(len, self._phrases), default=1)

    @property
    def phrases(self) -> Iterable[Pair]:
        """Phrases and meanings as written in the book."""
        return self._phrases.values()

    def translate(self, text: str) -> str:
        """Return the text in the other language."""
        pieces = list(_PIECES.finditer(text))
        out: list[str] = []
        end = i = 0
        while i < len(pieces):
            between = text[end : pieces[i].start()]
            out.append(between)
            count = self._known(text, pieces, i)
            if count:
                found = [piece.group() for piece in pieces[i : i + count]]
                begins = i == 0 or _SENTENCE_ENDS.search(between) is not None
                out.append(_cased(*self._phrases[tuple(map(_key, found))], found, begins))
            else:
                count = self._unknown(text, pieces, i)
                words = text[pieces[i].start() : pieces[i + count - 1].end()]
                out.append(words if words.startswith("«") else f"«{words}»")
            end = pieces[i + count - 1].end()
            i += count
        return "".join(out) + text[end:]

    def _known(self, text: str, pieces: list[re.Match[str]], first: int) -> int:
        """Return the number of pieces in the longest phrase that begins at `first`, 0 where none does."""
        words: list[str] = []
        longest = 0
        for at in range(first, min(first + self._longest, len(pieces))):
            if words and not _together(text, pieces, at):
                break
            words.append(_key(pieces[at].group()))
            if tuple(words) in self._phrases:
                longest = len(words)
        return longest

    def _unknown(self, text: str, pieces: list[re.Match[str]], first: int) -> int:
        """Return the number of pieces from `first` on that are marked together: adjacent words that begin no phrase."""
        at = first + 1
        if not pieces[first].group().startswith("«"):
            while at < len(pieces) and _together(text, pieces, at):
                if pieces[at].group().startswith("«") or self._known(text, pieces, at):
                    break
                at += 1
        return at - first


def _together(text: str, pieces: list[re.Match[str]], at: int) -> bool:
    """Return whether only blanks separate this piece from the one before: no phrase spans a comma."""
    return text[pieces[at - 1].end() : pieces[at].start()].isspace()


def _key(word: str) -> str:
    return word.replace("\u2019", "'").casefold()


def _cased(phrase: str, meaning: str, found: list[str], begins: bool) -> str:
    """Return the meaning with the capitals of the found words: all, the first, or none.

    A capital of the book's own phrase ("I", "Saturday") counts only where a sentence begins.
    """
    letters = "".join(found)
    if letters.isupper() and len(letters) > 1:
        return meaning.upper()
    if found[0][:1].isupper() and (begins or phrase[:1].islower()):
        return meaning[:1].upper() + meaning[1:]
    return meaning


def _pairs(table: str, *, backwards: bool = False) -> Iterator[Pair]:
    """Read lines of `phrase = meaning`."""
    for line in table.strip().splitlines():
        phrase, _, meaning = (part.strip() for part in line.partition("="))
        yield (meaning, phrase) if backwards else (phrase, meaning)


PORTUGUESE_TO_ENGLISH = PhraseBook(_pairs(PORTUGUESE_ENGLISH))
ENGLISH_TO_AFRIKAANS = PhraseBook(_pairs(ENGLISH_AFRIKAANS))
AFRIKAANS_TO_ENGLISH = PhraseBook(_pairs(ENGLISH_AFRIKAANS, backwards=True))
