"""Whether somebody serves a Unix socket, found out without disturbing whoever does."""

from __future__ import annotations

import socket
from pathlib import Path


def is_served(path: Path) -> bool:
    """Say whether a living process holds the stream socket at this path.

    No connection is made, which a handler that serves one after the other would have to answer: the system is asked to
    connect a socket of another kind, and says of what kind the one at the path is, or that nobody has it.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
            other.connect(str(path))
    except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
        return False
    except OSError:
        return True  # EPROTOTYPE: of another kind, and alive. What may not even be asked is not for us to replace
    return True
