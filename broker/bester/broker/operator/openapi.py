"""The OpenAPI document of the operator's API."""

from __future__ import annotations

from typing import Any

from bester.broker.operator.schemas import ANSWERS, ERROR, STATUS, record

GETS = {
    "/health": ("The process lives.", ()),
    "/ready": ("The server takes messages; 503 with `why` where it does not.", ()),
    "/metrics": ("The status as Prometheus metrics.", ()),
    "/api/status": ("Who is connected, figures by type, servers, store, bounds.", ()),
    "/api/sessions": ("The users with a session.", ()),
    "/api/types": (
        "The message types, their workers and contracts; those behind `from`, which `next` names.",
        ("from",),
    ),
    "/api/peers": ("The other servers, and what is queued for them.", ()),
    "/api/dead": ("Dead letters without their bodies, the latest first.", ("type", "limit")),
    "/api/dead/letter": ("One dead letter with its body.", ("id",)),
    "/api/trace": (
        "The way of a message over servers: `steps`, `spans`, `servers`; of the latest one without `id`.",
        ("id",),
    ),
    "/api/findings": ("What needs attention, as `bester check` finds it, each with its remedy.", ()),
    "/api/live": ("The status with its findings once a second, as server-sent events.", ()),
}
POSTS = {
    "/api/dead/replay": ("Replay a dead letter.", "id"),
    "/api/dead/drop": ("Drop a dead letter.", "id"),
    "/api/peers/retry": ("Try what is queued for a server now.", "name"),
    "/api/peers/hold": ("Send a server nothing until it is released.", "name"),
    "/api/peers/release": ("Send a server its messages again.", "name"),
    "/api/peers/drop": ("Make dead letters of what is queued for a server.", "name"),
}


KINDS = {"/metrics": "text/plain", "/api/live": "text/event-stream"}
"""Types of the answers that are not JSON."""
REFUSALS = {
    "400": "a parameter or the body is not what is asked for",
    "401": "the token is missing or wrong",
    "404": "no such letter, server or path",
    "503": "too many requests at once; try again",
}


def document() -> dict[str, Any]:
    """Return the document, as OpenAPI 3.1."""
    paths: dict[str, Any] = {}
    for path, (summary, names) in GETS.items():
        parameters = [{"name": name, "in": "query", "schema": {"type": "string"}} for name in names]
        paths[path] = {"get": {"summary": summary, "parameters": parameters, "responses": _answers(path)}}
    for path, (summary, name) in POSTS.items():
        body = {"required": True, "content": {"application/json": {"schema": record(name)}}}
        paths[path] = {"post": {"summary": summary, "requestBody": body, "responses": _answers(path)}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Bester, for its operator", "version": "1"},
        "paths": paths,
        "components": {
            "schemas": {"Error": ERROR, "Status": STATUS},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"token": []}, {}],
    }


def _answers(path: str) -> dict[str, Any]:
    """Return the answers to a request: a good one, and refusals."""
    schema = {"$ref": "#/components/schemas/Status"} if path == "/api/status" else ANSWERS.get(path, {"type": "string"})
    good = {"description": "the answer", "content": {KINDS.get(path, "application/json"): {"schema": schema}}}
    answers = {"200": good} | {code: _refused(why) for code, why in REFUSALS.items()}
    if path == "/ready":
        answers["503"] = {**good, "description": "messages are not taken, and why"}
    return answers


def _refused(why: str) -> dict[str, Any]:
    return {"description": why, "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}}
