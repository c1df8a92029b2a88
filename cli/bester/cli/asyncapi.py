"""AsyncAPI 3 document of a server's message types. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

VERSION = "3.0.0"
SCHEMA_FORMAT = "application/schema+json;version=draft-2020-12"


def document(server: str, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the document for the rows of an answer to `types`: a channel, an operation and a message for each type.

    A type whose workers disagree on the contract has all of them as alternatives.
    """
    channels: dict[str, Any] = {}
    operations: dict[str, Any] = {}
    messages: dict[str, Any] = {}
    for row in rows:
        key = _key(row["type"], channels)
        messages[key] = {"name": row["type"], "contentType": "application/json", **_payload(row)}
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


def _payload(row: dict[str, Any]) -> dict[str, Any]:
    name = quote(row["type"], safe="")
    schemas = [_named(schema, f"urn:bester:{name}:{number}") for number, schema in enumerate(row["contracts"])]
    if not schemas:
        return {}
    schema = schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
    return {"payload": {"schemaFormat": SCHEMA_FORMAT, "schema": schema}}


def _named(schema: Any, name: str) -> Any:
    """Return a schema with an id: the references in it lead to its own parts, not to parts of the document."""
    return {"$id": name, **schema} if isinstance(schema, dict) else schema


def _key(type_: str, taken: dict[str, Any]) -> str:
    """Return a key of letters, digits, dots, dashes and underscores for a type, different from those taken."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", type_)
    key, number = plain, 1
    while key in taken:
        number += 1
        key = f"{plain}-{number}"
    return key
