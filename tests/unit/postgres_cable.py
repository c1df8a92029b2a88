"""A cable between a store and PostgreSQL that a test cuts at a chosen moment: a Unix socket in a temporary folder."""

from __future__ import annotations

import selectors
import socket
import tempfile
import threading
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from bester.broker.postgres import Database

NAME = ".s.PGSQL.5432"


class Cable:
    """Passes on what both sides say. `database` is the database at the far end.

    With `cut` set to `before` or `after`, the next client to say `word` is cut off before PostgreSQL hears that, or
    after PostgreSQL has answered. While the cable is out nobody is connected."""

    def __init__(self, database: Database) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="b-cable-", dir="/tmp")
        self._far = f"{parse_qs(urlsplit(database.url).query)['host'][0]}/{NAME}"
        self.database = Database(f"postgresql://bester@/postgres?host={self._folder.name}", database.schema)
        self.cut = ""
        self.word = b"COMMIT"
        self._listener: socket.socket | None = None
        self._ends: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self.plug_in()

    def plug_in(self) -> None:
        """Accept connections."""
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(f"{self._folder.name}/{NAME}")
        self._listener.listen()
        self._run(self._accept, self._listener)

    def pull_out(self) -> None:
        """Cut all connections, and refuse new ones."""
        assert self._listener is not None
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        Path(self._folder.name, NAME).unlink()
        for end in list(self._ends):
            _shut(end)
        for thread in self._threads:
            thread.join(30)
        self._threads.clear()
        self._listener = None

    def close(self) -> None:
        """Cut everything."""
        if self._listener is not None:
            self.pull_out()
        self._folder.cleanup()

    def _run(self, target: object, *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)  # type: ignore[arg-type]  # one of two methods
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            far = socket.socket(socket.AF_UNIX)
            far.connect(self._far)
            self._ends |= {near, far}
            self._run(self._pass_on, near, far)

    def _pass_on(self, near: socket.socket, far: socket.socket) -> None:
        with near, far, selectors.DefaultSelector() as selector:
            for end in (near, far):
                selector.register(end, selectors.EVENT_READ)
            is_last = False
            while True:
                for key, _ in selector.select():
                    source = near if key.fileobj is near else far
                    try:
                        said = source.recv(2**20)
                        if source is near and self.cut and self.word in said:
                            is_last, cut, self.cut = True, self.cut, ""
                            if cut == "before":
                                return
                        if not said or (is_last and source is far and b"COMMIT\0" in said):
                            return
                        (far if source is near else near).sendall(said)
                    except OSError:
                        return
                    finally:
                        self._ends -= {end for end in (near, far) if end.fileno() < 0}


def _shut(end: socket.socket) -> None:
    try:
        end.shutdown(socket.SHUT_RDWR)
    except OSError:  # already shut
        pass
