"""The cost of encryption: TLS on the clients' side and CURVE on the fabric, each beside the same server in plain.

A handler that comes by tcp is compared with one that comes by tcp and CURVE: over ipc would be another comparison.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import zmq

from tests.benchmarks.comparison import Maker
from tests.benchmarks.processes import Running, free_port
from tests.benchmarks.sides import Side, bester, bester_up, configuration, echoes

PLAIN, TLS = "bester up", "clients by TLS"
OPEN, CURVE = "handler by tcp", "handler by CURVE"
ECHO = "bester.handlers.stock.echo:app"


def peers_of(side: str) -> Sequence[str]:
    """Return the plain side that an encrypted one is compared with."""
    return {TLS: [PLAIN], CURVE: [OPEN]}.get(side, [])


def makers() -> list[Maker]:
    """Return what starts each side, the plain one before its encrypted twin."""
    return [bester_up, over_tls, handler_by_tcp, handler_by_curve]


@contextmanager
def over_tls(folder: Path) -> Iterator[Side]:
    """`bester up` to clients that speak TLS and verify its certificate; the echo handler its child."""
    from tests.authorities import Authority  # here: a comparison in plain needs no cryptography

    authority = Authority(folder)
    cert, key = authority.issue("127.0.0.1")
    port, plain = free_port(), free_port()
    section = f'[native.tls]\nlisten = "127.0.0.1:{port}"\ncert = "{cert}"\nkey = "{key}"\n'
    file = configuration(folder, plain, f'{section}[handlers.echo]\napp = "{ECHO}"\n')
    with Running("bester up tls", bester("up", "-c", file), folder) as server:
        server.wait_until(lambda: echoes(plain))
        yield Side(TLS, "bester-tls", port, {"server": server}, ca=authority.ca)


def handler_by_tcp(folder: Path) -> AbstractContextManager[Side]:
    """`bester up` and a handler that comes by tcp on loopback, in plain."""
    return _handler_elsewhere(folder, OPEN, curve=False)


def handler_by_curve(folder: Path) -> AbstractContextManager[Side]:
    """`bester up` and a handler that comes by tcp on loopback, encrypted as from another host."""
    return _handler_elsewhere(folder, CURVE, curve=True)


def _pair(folder: Path, name: str) -> tuple[str, Path]:
    """Write the secret key of a new pair to a file; return the public key and the file."""
    public, secret = zmq.curve_keypair()
    file = folder / f"{name}.key"
    with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as written:
        written.write(secret + b"\n")
    return public.decode(), file


@contextmanager
def _handler_elsewhere(folder: Path, name: str, *, curve: bool) -> Iterator[Side]:
    port, fabric = free_port(), f"tcp://127.0.0.1:{free_port()}"
    section = f'[fabric]\nlisten = ["ipc://DATA_DIR/fabric.sock", "{fabric}"]\n'
    options: list[str] = []
    if curve:
        server, server_file = _pair(folder, "server")
        handler, handler_file = _pair(folder, "handler")
        section += f'curve = true\nkey = "{server_file}"\n'
        section += f'[fabric.parties.h]\nkey = "{handler}"\nrole = "handler"\ntypes = ["echo"]\n'
        options = ["--key", str(handler_file), "--server-key", server]
    file = configuration(folder, port, section)
    with ExitStack() as stack:
        up = stack.enter_context(Running("bester up", bester("up", "-c", file), folder))
        elsewhere = stack.enter_context(
            Running("handler", bester("handler", ECHO, "--fabric", fabric, *options), folder)
        )
        up.wait_until(lambda: echoes(port))
        yield Side(name, "bester", port, {"server": up, "handler": elsewhere})
