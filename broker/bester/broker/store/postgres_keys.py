"""Keys by which rows are found in PostgreSQL: texts in their written form, digests, and the beginnings of indexes."""

from __future__ import annotations

import hashlib
import re

from bester.broker.store.rows import text

ID_PART = 200
"""Characters of an id that its index has: an index holds no long text, and ids of one message differ at their end."""
_ZERO = "\ufdd00000"
"""Written form of the one character that PostgreSQL cannot hold."""
_NUL = re.compile("\0")

ALL_BROKERS = "ARRAY(SELECT ns FROM broker)"
"""The namespaces of all brokers, which an index may begin with: where PostgreSQL joins the brokers, and does not know
how few there are, it goes through the whole index."""


def written(value: str) -> str:
    """Return the form of a text in the database, which `rows.read_text` reads. The form of a beginning is the beginning
    of the form."""
    form = text(value)
    return _NUL.sub(_ZERO, form) if "\0" in form else form


def key_of_entry(id_: str, queue: str) -> bytes:
    """Return the digest under which an entry is unique."""
    return _digest(f"{len(id_)} {id_} {queue}")


def key_of_letter(id_: str) -> bytes:
    """Return the digest under which a dead letter is unique."""
    return _digest(id_)


def _digest(name: str) -> bytes:
    return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def beginning(start: str) -> tuple[str, str]:
    """Return the bounds of all texts with a beginning whose last character is a '.' or a '/'."""
    form = written(start)
    return form, form[:-1] + chr(ord(form[-1]) + 1)
