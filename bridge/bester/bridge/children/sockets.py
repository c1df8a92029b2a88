"""Check for a server on a Unix socket that does not disturb the server."""

from __future__ import annotations

import socket
from pathlib import Path


def is_served(path: Path) -> bool:
    """Return whether a living process holds the stream socket at this path.

    No connection is made, which a handler that serves one after the other would have to answer: the system is asked to
    connect a socket of another kind, and reports the kind of the one at the path, or that nobody has it.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
            other.connect(str(path))
    except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
        return False
    except OSError:
        return True  # EPROTOTYPE: of another kind, and alive; any other socket is not ours to replace
    return True
