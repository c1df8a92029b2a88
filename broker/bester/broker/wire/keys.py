"""CURVE keys as texts: 40 characters of Z85, as ZeroMQ writes the 32 bytes of a key. Pure."""

from __future__ import annotations

from bester.broker.wire.address import parse_endpoint

KEY_LENGTH = 40
_ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
_VALUE = {char: value for value, char in enumerate(_ALPHABET)}


def key_fault(text: str) -> str | None:
    """Return the fault of a key, or None. A secret key is not shown in the fault: neither is any other."""
    if len(text) != KEY_LENGTH:
        return f"a key is {KEY_LENGTH} characters long (Z85), and not {len(text)}"
    if not all(char in _VALUE for char in text):
        return "a key has letters, digits and .-:+=^!/*?&<>()[]{}@%$# (Z85), and no other characters"
    for start in range(0, KEY_LENGTH, 5):
        number = 0
        for char in text[start : start + 5]:
            number = number * 85 + _VALUE[char]
        if number >> 32:
            return "these 40 characters are no key; a character may be wrong, so copy the key again"
    return None


def parse_key(text: str) -> str:
    """Return a key without the blanks around it. Raises ValueError with the fault."""
    key = text.strip()
    fault = key_fault(key)
    if fault is not None:
        raise ValueError(fault)
    return key


def must_encrypt(endpoint: str) -> bool:
    """Return whether a fabric endpoint is reached from beyond this machine, so that links to it need CURVE."""
    return not parse_endpoint(endpoint).local
