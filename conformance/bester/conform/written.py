"""Expand the abbreviations that case files use for long texts and bytes. Pure."""

from __future__ import annotations


def filled(text: str) -> str:
    """Return a text in which `A*N` between double braces is the character A, N times."""
    before, found, rest = text.partition("{{")
    if not found:
        return text
    inner, _, after = rest.partition("}}")
    return before + inner[0] * int(inner[2:]) + filled(after)


def hex_bytes(written: str) -> bytes:
    """Return bytes written in hexadecimal, in groups; a group `HH*N` is the byte HH, N times."""
    whole = b""
    for group in written.split():
        text, _, times = group.partition("*")
        whole += bytes.fromhex(text) * int(times or 1)
    return whole
