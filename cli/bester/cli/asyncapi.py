"""AsyncAPI 3 document of a server's message types. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

VERSION = "3.0.0"
SCHEMA_FORMAT = "application/schema+json;version=draft-2020-12"
DATA = frozenset({"const", "default", "enum", "examples"})
"""Keys of a schema whose values are data."""
NAMED = frozenset({"$defs", "definitions", "dependentSchemas", "patternProperties", "properties"})
"""Keys of a schema whose values are schemas by names of the author's choice."""


def document(server: str, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the document for the rows of an answer to `types`: a channel, an operation and a message for each type.

    A type whose workers disagree on the contract has all of them as alternatives.
    """
    channels: dict[str, Any] = {}
    operations: dict[str, Any] = {}
    messages: dict[str, Any] = {}
    for row in rows:
        key = _key(row["type"], channels)
        messages[key] = {"name": row["type"], "contentType": "application/json", **_payload(row["contracts"], key)}
        channels[key] = {"address": row["type"], "messages": {key: {"$ref": f"#/components/messages/{key}"}}}
        operations[f"receive-{key}"] = {
            "action": "receive",
            "channel": {"$ref": f"#/channels/{key}"},
            "messages": [{"$ref": f"#/channels/{key}/messages/{key}"}],
        }
    return {
        "asyncapi": VERSION,
        "info": {"title": f"Bester server {server}", "version": "1"},
        "defaultContentType": "application/json",
        "channels": channels,
        "operations": operations,
        "components": {"messages": messages},
    }


def _payload(contracts: Sequence[Any], key: str) -> dict[str, Any]:
    """Return the payload of the message `key`, nothing where its type has no contract."""
    place = f"#/components/messages/{key}/payload/schema"
    if not contracts:
        return {}
    if len(contracts) == 1:
        schema = _placed(contracts[0], place)
    else:
        schema = {"anyOf": [_placed(each, f"{place}/anyOf/{number}") for number, each in enumerate(contracts)]}
    return {"payload": {"schemaFormat": SCHEMA_FORMAT, "schema": schema}}


def _placed(schema: Any, place: str) -> Any:
    """Return a schema whose references into itself lead to its place in the document, where AsyncAPI tools look."""
    if not isinstance(schema, dict) or "$id" in schema:  # references in a schema with an id are relative to that
        return schema
    placed: dict[str, Any] = {}
    for key, value in schema.items():
        if key in DATA:
            placed[key] = value
        elif key in NAMED and isinstance(value, dict):
            placed[key] = {name: _placed(each, place) for name, each in value.items()}
        elif key == "$ref" and isinstance(value, str) and (value == "#" or value.startswith("#/")):
            placed[key] = place + value[1:]
        elif isinstance(value, list):
            placed[key] = [_placed(each, place) for each in value]
        else:
            placed[key] = _placed(value, place)
    return placed


def _key(type_: str, taken: dict[str, Any]) -> str:
    """Return a key of letters, digits, dots, dashes and underscores for a type, different from those taken."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", type_)
    key, number = plain, 1
    while key in taken:
        number += 1
        key = f"{plain}-{number}"
    return key
