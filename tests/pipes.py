"""A pipe in place of a file, whose reader need not wait: a program that opens the pipe finds it empty, and goes on."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def fed(pipe: Path) -> Iterator[None]:
    """Let a writer, which writes nothing, wait at a named pipe meanwhile; whoever opens the pipe reads its end."""
    writer = threading.Thread(target=lambda: os.close(os.open(pipe, os.O_WRONLY)))
    writer.start()
    try:
        yield
    finally:
        reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)  # lets the writer go where nobody has opened the pipe
        writer.join()
        os.close(reader)
