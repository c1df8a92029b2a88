"""A real Bester server for tests of a handler: `bester up` in a process of its own, on a free port.

    with running("letters:app", Path.cwd()) as server:
        exchange = server.send("english", {"text": "hello"}, user="t")
        assert exchange.report.good

The whole of Bester must be installed, not the handlers' part alone.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from bester.handlers.loading import load

START_S = 60.0
"""Seconds that a server and its handler may take to start on a busy machine."""
ANSWER_S = 30.0
STOP_S = 20.0
"""Seconds that a server may take to end; it drains for 10 s at most."""
STEP_S = 0.02


class Exchange(NamedTuple):
    """The report on a message, and the data of the messages that came to its sender before the report."""

    report: Any
    received: list[Any]


class Server:
    """A running server. `address` is HOST:PORT of its listener, `fabric` the endpoint for handlers."""

    def __init__(self, directory: Path, process: subprocess.Popen[bytes]) -> None:
        self.directory = directory
        self.fabric = f"ipc://{directory}/data/fabric.sock"
        self.address = ""
        self._process = process

    def client(self, user: str = "t") -> Any:
        """Return a client of a user, to be used with `with`; see bester.client.blocking."""
        blocking = importlib.import_module("bester.client.blocking")
        return blocking.Client(self.address, user=user, password="-")  # noqa: S106 (any password is right here)

    def send(self, type_: str, data: Any = None, *, user: str = "t", raw: bytes | None = None) -> Exchange:
        """Send one message as a user; return its report, and what the user was sent before it."""
        with self.client(user) as client:
            arguments = {"data": data} if raw is None else {"raw": raw}
            report = client.send(type_, timeout_s=ANSWER_S, **arguments)
            received: list[Any] = []
            with contextlib.suppress(TimeoutError):
                while True:
                    received.append(client.receive(timeout_s=0).data)
            return Exchange(report, received)

    def log(self) -> str:
        """Return the server's log up to now; its handler's lines are in it."""
        return (self.directory / "log").read_text(encoding="utf-8", errors="replace")

    def wait_for(self, text: str) -> str:
        """Wait until the log has a line with this text; return the line. Raises RuntimeError where none comes."""
        deadline = time.monotonic() + START_S
        while True:
            for line in self.log().splitlines():
                if text in line:
                    return line
            if self._process.poll() is not None:
                raise RuntimeError(f"the server ended with status {self._process.returncode}:\n{self.log()}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"no line with {text!r} in the server's log:\n{self.log()}")
            time.sleep(STEP_S)


@contextlib.contextmanager
def running(spec: str, path: Path) -> Iterator[Server]:
    """Run a server with the app MODULE:APP, whose module is found at `path` too, until the end of the context."""
    app, types = (json.dumps(value, ensure_ascii=False) for value in (spec, sorted(load(spec).serving(None))))
    with tempfile.TemporaryDirectory(prefix="b-") as name:  # short, for the path of a Unix socket
        directory = Path(name)
        (directory / "bester.toml").write_text(
            '[server]\nname = "test"\ndata_dir = "data"\n[native]\ntcp4 = "127.0.0.1:0"\n[accounts]\nauth = "open"\n'
            f"[handlers.app]\napp = {app}\ntypes = {types}\n",  # JSON's text of these is TOML
            encoding="utf-8",
        )
        paths = [str(path), *filter(None, [os.environ.get("PYTHONPATH")])]
        with (directory / "log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "bester.cli", "up"],
                cwd=directory,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            server = Server(directory, process)
            server.address = server.wait_for(" serves ").partition(" serves ")[2].split(",")[0].strip()
            server.wait_for("joined role='handler'")
            yield server
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
