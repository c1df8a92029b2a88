"""Command that runs a handler program: `python -m bester.handlers MODULE:APP`, and `bester handler`.

Exit status 0 done (SIGTERM, SIGINT), 1 failed, 2 wrong usage. A user's mistake is one line on standard error.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import logging
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from bester.broker import logs
from bester.broker.keys import LinkKeys, link_keys, refuse_unused
from bester.broker.streams import forgive, secure
from bester.broker.terminals import outlive_terminals
from bester.broker.wire.address import endpoints_to
from bester.broker.wire.codes import ConfigError
from bester.broker.wire.type_names import spelling_fault
from bester.handlers.app import App
from bester.handlers.cluster import Cluster
from bester.handlers.loading import LoadError, load
from bester.handlers.serving import fail, on_loop, serve
from bester.handlers.slow_starts import slow_import_logged
from bester.handlers.supervising import supervise
from bester.handlers.worker import Worker

DEFAULT_FABRIC = "ipc://bester-data/fabric.sock"
"""Default address of a server started in this directory."""
MAX_WORKERS = 256
KEY_NAMES = ("--key FILE (or BESTER_KEY)", "--server-key KEY (or BESTER_SERVER_KEY)")
"""Names of the two keys of an encrypted link, for people."""
ORDERS = ("user", "none")
"""Orders of a user's messages for a handler at a socket: one at a time and in order, or concurrently."""

log = logging.getLogger("bester.handlers")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bester.handlers", description="Run a Bester handler.")
    parser.add_argument("app", metavar="MODULE:APP", nargs="?", help="the app, as in mychat:app")
    parser.add_argument("--socket", metavar="PATH", help="instead: a handler of the reference daemon, listening there")
    parser.add_argument(
        "--order", choices=ORDERS, help="of a handler at --socket: each user's messages in order (user)"
    )
    parser.add_argument(
        "--fabric", metavar="URL", action="append",
        help=f"the server's fabric; once for each of several brokers (BESTER_FABRIC, or {DEFAULT_FABRIC})",
    )  # fmt: skip
    parser.add_argument("--key", metavar="FILE", help="this handler's secret key, for an encrypted link (BESTER_KEY)")
    parser.add_argument("--server-key", metavar="KEY", help="the server's public key (BESTER_SERVER_KEY)")
    parser.add_argument("--types", metavar="T,T", help="serve these message types (BESTER_TYPES, or all of the app's)")
    parser.add_argument("--name", help="label at the server (BESTER_NAME)")
    parser.add_argument("--workers", metavar="N", type=int, default=1, help="processes to run (1)")
    parser.add_argument("--reload", action="store_true", help="start anew when a Python file of the app changes")
    parser.add_argument("--log", choices=logs.FORMATS, default="text", help="form of log lines (text)")
    parser.add_argument("--log-level", choices=logs.LEVELS, default="info", help="least urgent lines to log (info)")
    parser.add_argument("--child", metavar="I", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    return run(
        options.app,
        socket=options.socket,
        order=options.order,
        fabric=options.fabric or (),
        key=options.key,
        server_key=options.server_key,
        types=None if options.types is None else options.types.split(","),
        name=options.name,
        workers=options.workers,
        reload=options.reload,
        child=options.child,
        log_format=options.log,
        log_level=options.log_level,
    )


def run(
    spec: str | None,
    *,
    socket: str | None = None,
    order: str | None = None,
    fabric: Sequence[str] = (),
    key: str | None = None,
    server_key: str | None = None,
    types: Sequence[str] | None = None,
    name: str | None = None,
    workers: int = 1,
    reload: bool = False,
    child: int | None = None,
    log_format: str = "text",
    log_level: str = "info",
    environ: Mapping[str, str] = os.environ,
) -> int:
    """Run the app that `spec` (MODULE:APP) names, or a reference handler at `socket`, until SIGTERM or SIGINT.

    `order` is one of ORDERS and holds for the handler at `socket`; None: the first of ORDERS. `fabric` (one endpoint
    a broker), `types` and `name` default to the environment: BESTER_FABRIC, BESTER_TYPES (both comma-separated),
    BESTER_NAME; so do `key` (the file of the own secret key) and `server_key`, which encrypt the link: BESTER_KEY,
    BESTER_SERVER_KEY. With BESTER_SHADOW (any text but 0) the handler is a shadow: it gets copies, and its commands
    are never carried out. An empty variable counts as none, and an empty argument is a mistake. `workers` above 1
    runs so many processes, restarted when they die. `reload`: the processes are drained and started anew when a
    Python file of the app changes. `child`: number of this process among them, which ends with its standard input;
    number 0 alone runs timers and tasks. `log_format` is one of `logs.FORMATS`, `log_level` one of `logs.LEVELS`.
    Returns the exit status.
    """
    _prepare(log_format, log_level)
    lifeline = None if child is None else os.dup(0)  # the app's modules may close or replace standard input
    shadow = environ.get("BESTER_SHADOW", "") not in ("", "0")
    try:
        _check_filled({"--fabric": fabric, "--key": (key,), "--server-key": (server_key,), "--name": (name,)})
        name = name or environ.get("BESTER_NAME")
        served = _served_types(types, environ)
        endpoints = _endpoints(fabric, environ)
        _check_keys(endpoints, key, server_key, known=bool(environ.get("BESTER_SERVER_KEY")))
        key, server_key = key or environ.get("BESTER_KEY"), server_key or environ.get("BESTER_SERVER_KEY")
        if reload:
            _check_reload(spec)
        links = _links(endpoints, key, server_key)
        _check_workers(workers, shadow=shadow)
        worker = _made(spec, socket, order, served, links, name, background=not child, shadow=shadow)
    except LoadError as error:
        return fail(str(error), error.status)
    if workers == 1 and not reload:
        return on_loop(lambda: serve(worker, lifeline))
    command = [sys.executable, "-m", "bester.handlers"]
    command += [word for endpoint in endpoints for word in ("--fabric", endpoint)]
    command += [spec] if spec else ["--socket", str(socket), "--order", order or ORDERS[0]]
    command += ["--types", ",".join(served)] if served else []
    if any(keys is not None for _, keys in links):
        command += ["--key", str(key), "--server-key", str(server_key)]
    command += ["--log", log_format, "--log-level", log_level]
    watched = _watched(spec) if reload else None
    return on_loop(lambda: supervise(command, name or worker.name, workers, watched))


def _check_filled(options: Mapping[str, Sequence[str | None]]) -> None:
    """Raise LoadError for an option that was given without a value, as by a variable of a script that is not set."""
    for option, values in options.items():
        if "" in values:
            raise LoadError(f"{option} is empty; leave it out, or give it a value")


def _served_types(types: Sequence[str] | None, environ: Mapping[str, str]) -> list[str] | None:
    """Return the types to serve; None for all of the app's. Raises LoadError for one that is misspelled."""
    if types is None and environ.get("BESTER_TYPES"):
        types = environ["BESTER_TYPES"].split(",")
    if types is None:
        return None
    served = [type_.strip() for type_ in types if type_.strip()]
    if not served:
        raise LoadError("--types (or BESTER_TYPES) names no type; leave it out for all of the app's, or name some")
    for type_ in served:
        if fault := spelling_fault(type_):
            raise LoadError(f"--types (or BESTER_TYPES): {fault}")
    return served


def _endpoints(fabric: Sequence[str], environ: Mapping[str, str]) -> list[str]:
    """Return the endpoints of the server's brokers, each once. Raises LoadError for one that cannot be read."""
    named = list(fabric) or [environ.get("BESTER_FABRIC") or DEFAULT_FABRIC]
    try:
        return endpoints_to(named)
    except ValueError as error:
        raise LoadError(f"--fabric (or BESTER_FABRIC): {error}") from None


def _check_reload(spec: str | None) -> None:
    """Raise LoadError where the handler cannot be started anew at a change of its files."""
    if spec is None:
        raise LoadError("--reload is for MODULE:APP; a handler at a socket is restarted by whoever runs it")
    if importlib.util.find_spec("watchfiles") is None:
        raise LoadError("--reload needs the module 'watchfiles': pip install watchfiles")


def _check_keys(endpoints: list[str], key: str | None, server_key: str | None, *, known: bool) -> None:
    """Raise LoadError for keys that encrypt nothing."""
    try:
        refuse_unused(endpoints, key, server_key, known=known)
    except ConfigError as error:
        raise LoadError(error.text) from None


def _links(endpoints: list[str], key: str | None, server_key: str | None) -> list[tuple[str, LinkKeys | None]]:
    """Return each endpoint with the keys of its link; None for one that is not encrypted. Raises LoadError."""
    key_file = Path(key) if key else None
    try:
        return [(endpoint, link_keys(endpoint, key_file, server_key or None, KEY_NAMES)) for endpoint in endpoints]
    except ConfigError as error:
        raise LoadError(error.text) from None


def _check_workers(workers: int, *, shadow: bool) -> None:
    """Raise LoadError for a number of processes that cannot run."""
    most = 1 if shadow else MAX_WORKERS
    if not 1 <= workers <= most:
        why = "; BESTER_SHADOW is set, and a shadow is one worker" if shadow else ""
        raise LoadError(f"--workers is a number from 1 to {most}, not {workers}{why}")


def _made(
    spec: str | None, socket: str | None, order: str | None, types: list[str] | None,
    links: list[tuple[str, LinkKeys | None]], name: str | None, *, background: bool, shadow: bool,
) -> Worker | Cluster:  # fmt: skip
    """Load the app and return its worker, for one broker or several. Raises LoadError."""
    app: App | None = None
    try:
        with slow_import_logged(spec):
            app = _app(spec, socket, order, types)
        if len(links) > 1:
            return Cluster(app, links, name=name, types=types, background=background, shadow=shadow)
        endpoint, keys = links[0]
        return Worker(app, endpoint, name=name, types=types, background=background, keys=keys, shadow=shadow)
    except ValueError as error:
        missing = app is not None and bool(app.routes) and not app.routes.keys() >= set(types or ())
        hint = "; name the types to serve: `types` in [handlers.NAME] of bester.toml, --types elsewhere"
        raise LoadError(f"{spec}: {error}{hint if missing else ''}") from None


def _watched(spec: str | None) -> list[str]:
    """Return the directories whose Python files make the app: the working directory, and that of the app's module."""
    module = sys.modules[str(spec).partition(":")[0]]
    places = [os.getcwd(), os.path.dirname(os.path.abspath(module.__file__ or "."))]
    return [place for place in dict.fromkeys(places) if not any(place.startswith(other + os.sep) for other in places)]


def _app(spec: str | None, socket: str | None, order: str | None, types: Sequence[str] | None) -> App:
    if (spec is None) == (socket is None):
        raise LoadError("name the handler to run: MODULE:APP, as in mychat:app, or --socket PATH")
    if spec is not None:
        if order is not None:
            raise LoadError('--order is for --socket; a Python handler has @app.handler(…, order="user")')
        return load(spec)
    assert socket is not None
    if not types:
        raise LoadError("--socket: name its message types with --types or BESTER_TYPES")
    try:
        from bester.handlers.legacy import legacy_app  # part of the server: msgspec is required
    except ImportError as error:
        raise LoadError(f"--socket needs the module {error.name!r}: pip install {error.name}") from None
    return legacy_app(socket, types, order="user" if order in (None, "user") else None)


def _prepare(log_format: str, log_level: str) -> None:
    """Keep the streams and the terminal from blocking or ending the process, and flush printed lines at once."""
    secure()
    forgive()
    outlive_terminals()
    logs.configure(log_format, log_level)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)
    if log_format == "json":
        sys.excepthook = _uncaught
        threading.excepthook = lambda failure: _uncaught(
            failure.exc_type, failure.exc_value, failure.exc_traceback, "uncaught-in-thread"
        )


def _uncaught(
    kind: type[BaseException], error: BaseException | None, traceback: TracebackType | None, event: str = "uncaught"
) -> None:
    """Log an uncaught exception as one record, where the interpreter would print many lines."""
    if issubclass(kind, KeyboardInterrupt | SystemExit):
        return
    fields = logs.facts(event)
    log.error("%s is not caught", kind.__name__, exc_info=(kind, error or kind(), traceback), extra=fields)
