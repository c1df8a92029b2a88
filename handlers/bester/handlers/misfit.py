"""Sentence for a sender whose data does not fit its declared type: `data.to[1]: expected a string`. Pure.

msgspec's own text is for Python programmers (Expected `str`, got `int` - at `$.to[1]`); the sender knows JSON. The text
of an exception in the handler's own code (`__post_init__`) is left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_PLACE = re.compile(r" - at (?P<key>`key` in )?`\$(?P<path>[^`]*)`\Z", re.DOTALL)
_EXPECTED = re.compile(r"Expected `(?P<kinds>[^`]+)`(?P<more>.*?)(?:, got [^,]+)?\Z", re.DOTALL)
_FIELD = re.compile(r"Object (?P<fault>missing required|contains unknown) field `(?P<name>.*)`\Z", re.DOTALL)
_VALUE = re.compile(r"Invalid (?:enum )?value (?P<value>.*)\Z", re.DOTALL)
_KINDS = {
    "str": "a string",
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "null": "null",
    "array": "an array",
    "object": "an object",
    "bytes": "a string in base64",
}
"""JSON's names of the types that msgspec names; other types keep msgspec's name."""
_PYDANTIC = {
    "missing": "required, but missing",
    "extra_forbidden": "not a known field",
    "string_type": "expected a string",
    "int_type": "expected an integer",
    "int_parsing": "expected an integer",
    "int_from_float": "expected an integer",
    "float_type": "expected a number",
    "float_parsing": "expected a number",
    "bool_type": "expected true or false",
    "bool_parsing": "expected true or false",
    "list_type": "expected an array",
    "tuple_type": "expected an array",
    "set_type": "expected an array",
    "dict_type": "expected an object",
    "model_type": "expected an object",
    "model_attributes_type": "expected an object",
    "none_required": "expected null",
    "json_invalid": "not JSON",
}
"""Sentences by the type of pydantic's error; other types are spelled out as words."""


def place_of(path: Iterable[str | int]) -> str:
    """Return a path into the data as text: `data.to[1]`."""
    return "data" + "".join(f"[{step}]" if type(step) is int else f".{step}" for step in path)


def sentence_of_pydantic(kind: str, place: str) -> str:
    """Return the sentence for an error of pydantic of this type at this place; its text may quote a handler's code, and
    is left out."""
    if kind in ("value_error", "assertion_error"):
        return f"{place}: not allowed"
    return f"{place}: {_PYDANTIC.get(kind) or 'not allowed (' + kind.replace('_', ' ') + ')'}"


def sentence_of(error: Exception) -> str:
    """Return the path into the data and the fault there. `error` is a msgspec.DecodeError."""
    text = str(error)
    place = _PLACE.search(text)
    path = "data"
    if place is not None:
        text = text[: place.start()]
        path += place["path"] + (" (a key)" if place["key"] else "")
    if error.__cause__ is not None:  # the text belongs to an exception in the handler's code
        return f"{path}: not allowed"
    if field := _FIELD.match(text):
        fault = "required, but missing" if field["fault"] == "missing required" else "not a known field"
        return f"{path}.{field['name']}: {fault}"
    if expected := _EXPECTED.match(text):
        kinds = [_KINDS.get(kind, kind) for kind in expected["kinds"].split(" | ")]
        listed = " or ".join(filter(None, (", ".join(kinds[:-1]), kinds[-1])))
        return f"{path}: expected {listed}{expected['more']}"
    if value := _VALUE.match(text):
        return f"{path}: {value['value']} is not one of the values allowed here"
    return f"{path}: {text[:1].lower()}{text[1:] or 'not allowed'}"
