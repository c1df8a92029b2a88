"""The HELLO of a handler: the options that tell a broker what an app serves, and how."""

from __future__ import annotations

import platform
from collections.abc import Mapping

from bester.broker.wire.messages import REQUEST_MS, Meta
from bester.handlers.app import App, Route

LEASE_MS = REQUEST_MS
"""Default lease over ipc: no thread can send a heartbeat while a C function holds the interpreter. A long lease costs
little there, for the broker sees whether a silent process is stopped."""


def hello_options(app: App, routes: Mapping[str, Route], endpoint: str = "", shared: str | None = None) -> Meta:
    """Return the HELLO options of an app that serves these routes, for the broker at an endpoint. `shared` is the name
    of the process at all its brokers, where it has several."""
    options: Meta = {
        "types": list(routes),
        "credit": app.credit,
        "software": f"bester.handlers (Python {platform.python_version()})",
    }
    lease_ms = app.lease_ms or (LEASE_MS if endpoint.startswith("ipc:") else None)
    longest_ms = max((round(1000 * (route.timeout_s or 0)) for route in routes.values()), default=0)
    if longest_ms > max(lease_ms or 0, REQUEST_MS):  # beyond the usual time the broker counts the lease
        lease_ms = longest_ms
    if lease_ms is not None:
        options["lease_ms"] = lease_ms
    if shared is not None:
        options["shared"] = shared
    if app.version is not None:
        options["version"] = app.version
    schema = {type_: route.schema for type_, route in routes.items() if route.schema is not None and route.contract}
    if schema:
        options["schema"] = schema
    order = {type_: "user" for type_, route in routes.items() if route.by_user}
    if order:
        options["order"] = order
    return options
