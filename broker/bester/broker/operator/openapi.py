"""The OpenAPI document of the operator's API."""

from __future__ import annotations

from typing import Any

GETS = {
    "/health": ("The process lives.", ()),
    "/ready": ("The server takes messages; 503 with `why` where it does not.", ()),
    "/metrics": ("The status as Prometheus metrics.", ()),
    "/api/status": ("Who is connected, figures by type, servers, store, bounds.", ()),
    "/api/sessions": ("The users with a session.", ()),
    "/api/types": ("The message types, their workers and contracts.", ()),
    "/api/peers": ("The other servers, and what is queued for them.", ()),
    "/api/dead": ("Dead letters without their bodies, the latest first.", ("type", "limit")),
    "/api/dead/letter": ("One dead letter with its body.", ("id",)),
    "/api/trace": ("The steps of a message on this server; of the latest one without `id`.", ("id",)),
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


def document() -> dict[str, Any]:
    """Return the document, as OpenAPI 3.1."""
    answers = {"200": {"description": "the answer"}, "401": {"description": "the token is missing"}}
    paths: dict[str, Any] = {}
    for path, (summary, names) in GETS.items():
        parameters = [{"name": name, "in": "query", "schema": {"type": "string"}} for name in names]
        paths[path] = {"get": {"summary": summary, "parameters": parameters, "responses": answers}}
    for path, (summary, name) in POSTS.items():
        schema = {"type": "object", "required": [name], "properties": {name: {"type": "string"}}}
        body = {"required": True, "content": {"application/json": {"schema": schema}}}
        paths[path] = {"post": {"summary": summary, "requestBody": body, "responses": answers}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Bester, for its operator", "version": "1"},
        "paths": paths,
        "components": {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
        "security": [{"token": []}, {}],
    }
