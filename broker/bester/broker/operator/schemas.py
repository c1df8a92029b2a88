"""Schemas of the answers of the operator's API. Answers may have further fields; those named are always there."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
COUNT: Schema = {"type": "integer", "minimum": 0}
NUMBER: Schema = {"type": "number"}
TRUTH: Schema = {"type": "boolean"}
COUNTS: Schema = {"type": "object", "additionalProperties": COUNT}


def maybe(schema: Schema) -> Schema:
    """Return a schema that null fits as well."""
    return {"anyOf": [schema, {"type": "null"}]}


def several(schema: Schema) -> Schema:
    """Return the schema of a list."""
    return {"type": "array", "items": schema}


def record(*texts: str, **fields: Schema) -> Schema:
    """Return the schema of an object that has all these fields; those in `texts` are strings."""
    properties = dict.fromkeys(texts, TEXT) | fields
    return {"type": "object", "required": list(properties), "properties": properties}


FIGURES = record(
    **dict.fromkeys(
        ("received", "answered", "reported", "results", "again", "dead", "workers", "stuck", "waiting", "inflight"),
        COUNT,
    ),
    failed=COUNTS,
    took=several(COUNT),
    took_s=NUMBER,
    whole=several(COUNT),
    whole_s=NUMBER,
)
STATUS = record(
    "server",
    up_s=NUMBER,
    draining=TRUTH,
    users=COUNT,
    sessions=COUNT,
    peers=COUNTS,
    logins=COUNTS,
    lockouts=COUNT,
    types={"type": "object", "additionalProperties": FIGURES},
    buckets_s=several(NUMBER),
    handlers=several(
        record(
            "name", types=several(TEXT), more_types=COUNT, credit=COUNT, inflight=COUNT, stuck=TRUTH, silent_s=NUMBER
        )
    ),
    bridges=several(record("name", listeners=several(TEXT), figures=COUNTS)),
    servers=several(
        record(
            "name",
            "state",
            held=TRUTH,
            queued=COUNT,
            bytes=COUNT,
            oldest_s=maybe(NUMBER),
            retries=COUNT,
            next_try_s=maybe(NUMBER),
            error=maybe(TEXT),
        )
    ),
    queued=COUNTS,
    store=record(
        adopted=COUNT,
        commits=COUNT,
        failures=COUNT,
        failing=maybe(TEXT),
        commit_s=NUMBER,
        sync=several(COUNT),
        sync_s=NUMBER,
        sync_buckets_s=several(NUMBER),
    ),
    brokers=several(record("name", "state", "process", gone_s=maybe(NUMBER), waiting=COUNT)),
    adoptions=several(record("broker", "adopter", ago_s=NUMBER, messages=COUNT, outcomes=COUNT, dead_letters=COUNT)),
    bounds={"type": "object", "additionalProperties": {"type": "array", "minItems": 2, "maxItems": 2}},
)
LETTER: Schema = record(
    "id", "type", "reason", at_ms=COUNT, attempts=COUNT, bytes=COUNT, path=several(TEXT), server=maybe(TEXT)
)
WHOLE_LETTER: Schema = {"allOf": [LETTER, record("body", "origin", "root", "scope", user=maybe(TEXT))]}
WORKER = record("name", version=maybe(TEXT), software=maybe(TEXT), credit=COUNT, inflight=COUNT, leaving=TRUTH)
TYPES = record(
    types=several(record("type", waiting=COUNT, workers=several(WORKER), shadows={"type": "array"}, differ=TRUTH)),
    left=COUNT,
)
TYPES["properties"]["next"] = TEXT  # where some are left
PEER = record(
    "name", "protocol", "state", address=maybe(TEXT), error=maybe(TEXT), outbox={"type": "array"}, more_messages=COUNT
)
STEP = record("id", "what", "where", at_ms=NUMBER)
SPAN = record("kind", "server", "where", "id", from_ms=NUMBER, to_ms=maybe(NUMBER), outcome=maybe(TEXT))
WAY = record(
    root=maybe(TEXT),
    steps=several(STEP),
    spans=several(SPAN),
    servers={"type": "object", "additionalProperties": TEXT},
)

ANSWERS: dict[str, Schema] = {
    "/health": record("status", "server"),
    "/ready": record(ready=TRUTH, why=maybe(TEXT)),
    "/api/status": STATUS,
    "/api/findings": several(record("check", "level", "text", "remedy")),
    "/api/sessions": record(users=several(record("user", sessions=COUNT)), left=COUNT),
    "/api/types": TYPES,
    "/api/peers": several(PEER),
    "/api/dead": several(LETTER),
    "/api/dead/letter": WHOLE_LETTER,
    "/api/trace": WAY,
    "/api/dead/replay": record(replayed=COUNT, left=COUNT),
    "/api/dead/drop": record(dropped=COUNT, left=COUNT),
    "/api/peers/retry": record(messages=COUNT, held=TRUTH),
    "/api/peers/hold": record(messages=COUNT, held=TRUTH),
    "/api/peers/release": record(messages=COUNT, held=TRUTH),
    "/api/peers/drop": record(messages=COUNT, held=TRUTH),
}
"""Schema of each good answer in JSON, by its path."""
ERROR = record("error")
"""Schema of every refusal."""
